"""What is known of a running QEMU, and the names by which evertap finds its own parts in it."""

from __future__ import annotations

import re
import zlib
from collections.abc import Set

import msgspec


class Vmm(msgspec.Struct, frozen=True):
    """A QEMU as its QMP socket shows it."""

    running: bool = False  # connected, and its parts are known
    parts: frozenset[str] = frozenset()  # ids of evertap's devices and netdevs in it
    gone: bool = False  # there is no QEMU (no socket, nobody behind it): one that only hangs may recover
    reason: str = "its QMP socket was not looked at yet"  # why not running, for people


class RxFilter(msgspec.Struct, frozen=True):
    """What the guest's card wants to receive (query-rx-filter)."""

    mac: str
    multicast: frozenset[str] = frozenset()
    all_multicast: bool = False  # also when promiscuous


def qemu_id(name: str) -> str:
    """The id of a NIC's device: its name, made to fit QEMU's rules for ids (id_wellformed in util/id.c)."""
    fitted = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    # A NIC "web-host" must not have the id of NIC "web"'s netdev.
    if fitted != name or re.search(r"-(host|card|sink|up\d+|hub\d+)$", name):
        fitted += f"-{zlib.crc32(name.encode('utf-8', 'surrogateescape')):08x}"
    return f"evertap-{fitted}"


def host_netdev(name: str) -> str:
    """The netdev on the NIC's tap."""
    return f"{qemu_id(name)}-host"


def card_port(name: str) -> str:
    """The hub port that the NIC's device is on (backend macvtap)."""
    return f"{qemu_id(name)}-card"


def sink_port(name: str) -> str:
    """The hub port without a peer: it keeps the guest's queue from stalling while there is no uplink."""
    return f"{qemu_id(name)}-sink"


def uplink_netdev(name: str, index: int) -> str:
    """The netdev of a macvtap with that interface index."""
    return f"{qemu_id(name)}-up{index}"


def uplink_port(name: str, index: int) -> str:
    """The hub port of a macvtap with that interface index."""
    return f"{qemu_id(name)}-hub{index}"


def hub_id(name: str) -> int:
    """The number of the NIC's hub in its QEMU (an int32)."""
    return zlib.crc32(name.encode("utf-8", "surrogateescape")) & 0x7FFFFFFF


def has_device(name: str, vmm: Vmm) -> bool:
    """Whether QEMU has the NIC's device."""
    return vmm.running and qemu_id(name) in vmm.parts


def is_plugged(name: str, index: int, vmm: Vmm) -> bool:
    """Whether the macvtap is on the NIC's hub, and not only half of it."""
    return {uplink_netdev(name, index), uplink_port(name, index)} <= vmm.parts


def plugged(name: str, parts: Set[str]) -> set[int]:
    """Interface indexes of the macvtaps of which a QEMU with these parts has one, whole or half."""
    pattern = re.compile(re.escape(qemu_id(name)) + r"-(?:up|hub)(\d+)")
    return {int(found.group(1)) for part in parts if (found := pattern.fullmatch(part))}
