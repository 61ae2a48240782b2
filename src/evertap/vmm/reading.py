"""What QEMU's answers mean: pure functions over what may be anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from evertap.model.vmm import RxFilter
from evertap.vmm.limits import PARTS

_OURS: Final = "evertap-"
# Two forms (hmp_info_network, net_hub_info): "[ \ ]ID: index=…,type=…" and " \ PORT[: ID: index=…,type=…]".
_ID: Final = r"([A-Za-z0-9._-]{1,200})"
_LINE: Final = re.compile(rf"[\s\\]*{_ID}(?:: (?!index=){_ID}(?=: ))?(?:: index=\d+,type=(\w+))?")
_MAC: Final = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_GROUPS: Final = 256
"""Multicast addresses of one guest; QEMU itself keeps 64 (MAC_TABLE_ENTRIES of virtio-net)."""
_PCI_BRIDGE: Final = 0x0604


class Parts(NamedTuple):
    """Ids of ours."""

    devices: frozenset[str] = frozenset()
    netdevs: frozenset[str] = frozenset()


def parts(text: object) -> Parts | None:
    """The parts that `info network` names; None if that is no such text, or there are too many."""
    if not isinstance(text, str):
        return None
    devices, netdevs = set[str](), set[str]()
    for line in text.splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        first, second, kind = found.groups()
        last = second or first
        if last.startswith(_OURS):
            (devices if kind == "nic" else netdevs).add(last)
        if second and first.startswith(_OURS):
            netdevs.add(first)  # the hub port before its peer
    if len(devices) + len(netdevs) > PARTS:
        return None
    return Parts(frozenset(devices), frozenset(netdevs))


def commands(answer: object) -> frozenset[str]:
    """The names in query-commands' answer."""
    names = (_get(entry, "name") for entry in _items(answer))
    return frozenset(name for name in names if isinstance(name, str))


def version(answer: object) -> str:
    """query-version's answer as people write it: "7.2.22"; empty if it says none."""
    numbers = [_get(_get(answer, "qemu"), key) for key in ("major", "minor", "micro")]
    return ".".join(map(str, numbers)) if all(isinstance(number, int) for number in numbers) else ""


def rx_filter(answer: object) -> RxFilter | None:
    """The filter in query-rx-filter's answer for one device."""
    info = next(_items(answer), None)
    mac = _get(info, "main-mac")
    if not isinstance(mac, str) or not _MAC.fullmatch(mac.lower()):
        return None
    groups = [group.lower() for group in _items(_get(info, "multicast-table")) if isinstance(group, str)]
    every = (
        _get(info, "promiscuous") is True
        or _get(info, "multicast") == "all"
        or _get(info, "multicast-overflow") is True
        or len(groups) > _GROUPS
    )
    wanted = [] if len(groups) > _GROUPS or _get(info, "multicast") == "none" else groups
    return RxFilter(mac.lower(), frozenset(filter(_MAC.fullmatch, wanted)), every)


def free_ports(answer: object) -> list[str]:
    """Bridges of query-pci's answer that have an id and nothing behind them."""
    found = []
    left = [device for bus in _items(answer) for device in _items(_get(bus, "devices"))]
    while left:
        device = left.pop(0)
        bridge = _get(device, "pci_bridge")
        behind = list(_items(_get(bridge, "devices")))
        left += behind
        ident = _get(device, "qdev_id")
        kind = _get(_get(device, "class_info"), "class")
        if bridge is not None and not behind and isinstance(ident, str) and ident and kind == _PCI_BRIDGE:
            found.append(ident)
    return found


def _get(value: object, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _items(value: object) -> Iterator[Any]:
    return iter(value if isinstance(value, list) else ())
