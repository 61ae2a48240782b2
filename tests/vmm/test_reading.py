"""QEMU's answers, and what could stand in their place."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evertap.model.vmm import RxFilter
from evertap.vmm import reading

# As QEMU 7.2 writes it.
INFO_NETWORK = """\
hub 5\r
 \\ evertap-a-hub7: evertap-a-up7: index=0,type=tap,fd=21\r
 \\ evertap-a-sink\r
 \\ evertap-a-card: evertap-a: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\r
 \\ theirs: evertap-c-host: index=0,type=tap,ifname=evertap-x,script=no\r
filters:\r
  - evertap-filter: type=filter-dump,file=evertap-y: index=1\r
lonely: index=0,type=user,net=10.0.2.0,restrict=off\r
evertap-b.x_1: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:57\r
 \\ evertap-b.x_1-host: index=0,type=tap,ifname=b,script=no,downscript=no\r
"""


def test_the_parts_are_the_ids_of_ours() -> None:
    found = reading.parts(INFO_NETWORK)
    assert found is not None
    assert found.devices == {"evertap-a", "evertap-b.x_1"}
    assert found.netdevs == {
        *("evertap-a-hub7", "evertap-a-up7", "evertap-a-sink", "evertap-a-card", "evertap-c-host"),
        "evertap-b.x_1-host",
    }


@pytest.mark.parametrize("answer", [None, {}, 1, "evertap-x: index=0\n" * 3 and ["x"]])
def test_no_text_has_no_parts(answer: object) -> None:
    assert reading.parts(answer) is None


def test_a_flood_of_parts_is_none() -> None:
    assert reading.parts("".join(f"evertap-{number}\n" for number in range(100_000))) is None


def port(ident: object, *behind: object, kind: object = 0x0604) -> dict[str, Any]:
    return {"qdev_id": ident, "class_info": {"class": kind}, "pci_bridge": {"devices": list(behind)}}


def test_a_free_port_is_a_bridge_with_an_id_and_nothing_behind_it() -> None:
    card = {"qdev_id": "net", "class_info": {"class": 0x0200}}
    switch = port("up", port("down1"), port("down2", card))
    buses = [
        {"devices": [card, port("rp1"), port("rp2", card), port(""), port(None), port("x", kind=1), switch]}
    ]
    assert reading.free_ports(buses) == ["rp1", "down1"]


def test_the_receive_filter() -> None:
    info: dict[str, Any] = {
        "main-mac": "52:54:00:AA:00:01",
        "promiscuous": False,
        "multicast": "normal",
        "multicast-table": ["33:33:00:00:00:01", "nonsense", 7],
    }
    mac, group = "52:54:00:aa:00:01", frozenset({"33:33:00:00:00:01"})
    assert reading.rx_filter([info]) == RxFilter(mac, group)
    assert reading.rx_filter([info | {"promiscuous": True}]) == RxFilter(mac, group, True)
    assert reading.rx_filter([info | {"multicast": "all"}]) == RxFilter(mac, group, True)
    assert reading.rx_filter([info | {"multicast": "none"}]) == RxFilter(mac)
    assert reading.rx_filter([info | {"multicast-overflow": True}]) == RxFilter(mac, group, True)
    many = [f"33:33:00:00:{number >> 8:02x}:{number & 255:02x}" for number in range(300)]
    assert reading.rx_filter([info | {"multicast-table": many}]) == RxFilter(mac, frozenset(), True)
    assert reading.rx_filter([info | {"main-mac": "x"}]) is None


_KEYS = st.sampled_from(
    [
        "name",
        "qemu",
        "major",
        "devices",
        "pci_bridge",
        "class_info",
        "class",
        "qdev_id",
        "main-mac",
        "multicast-table",
    ]
)
_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("52:54:00:12:34:56"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=20,
)


@given(_ANYTHING)
def test_nothing_is_too_strange(answer: object) -> None:
    reading.parts(answer)
    reading.commands(answer)
    reading.version(answer)
    reading.rx_filter(answer)
    reading.free_ports(answer)


@given(st.text())
def test_no_text_is_too_strange(text: str) -> None:
    found = reading.parts(text)
    assert found is not None
    assert all(part.startswith("evertap-") for part in found.devices | found.netdevs)
