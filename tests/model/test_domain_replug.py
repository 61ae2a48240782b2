"""Replug: only an interface that was lost and can come back, and the same device for the guest."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from evertap.model.domain_direct import DirectInterface, direct_interfaces
from evertap.model.domain_replug import device_xml, needs_replug
from evertap.model.links import IFF_LOWER_UP, IFF_UP, Link
from evertap.model.table import LinkTable
from tests.model.domain_xmls import MAC, MAC2, MIXED, RUNNING, domain_xml

UP = IFF_UP | IFF_LOWER_UP
PLAIN, TRUSTED = direct_interfaces(RUNNING)


def table(*links: Link) -> LinkTable:
    found = LinkTable()
    for link in links:
        found.put(link)
    return found


def eth0(**fields: Any) -> Link:
    return Link(**{"index": 2, "name": "eth0", "flags": UP, **fields})


def macvtap(**fields: Any) -> Link:
    given = {"index": 9, "name": "macvtap0", "mac": MAC, "kind": "macvtap", "lower": 2, "flags": UP}
    return Link(**{**given, **fields})


def test_direct_interfaces_are_read() -> None:
    assert msgspec.structs.replace(PLAIN, xml="") == DirectInterface(
        mac=MAC,
        source="eth0",
        mode="bridge",
        target="macvtap0",
        model="virtio",
        queues=4,
        address="0000:01:00.0",
        alias="net0",
        boot=1,
    )
    assert msgspec.structs.replace(TRUSTED, xml="") == DirectInterface(
        mac=MAC2,
        source="eth1",
        mode="passthru",
        target="macvtap1",
        network="macvtaps",
        model="e1000",
        address="0000:02:01.0",
        alias="ua-lan",
        trusts_guest=True,
    )
    front = direct_interfaces(MIXED)[0]
    assert (front.mode, front.link_up, front.target) == ("vepa", False, "lan0")


def test_a_lost_interface_that_is_back_is_replugged() -> None:
    assert needs_replug(PLAIN, table(eth0()))


def test_without_its_interface_it_waits() -> None:
    assert not needs_replug(PLAIN, table())
    assert not needs_replug(PLAIN, table(eth0(flags=0)))
    assert not needs_replug(PLAIN, table(eth0(master=7, port_kind="bridge")))
    assert not needs_replug(PLAIN, table(eth0(type=772)))


@pytest.mark.parametrize(
    "device",
    [
        macvtap(),
        macvtap(flags=0),
        macvtap(lower=5),  # its uplink has another index in the table by now, or a name of its own
        macvtap(name="renamed"),
        macvtap(kind="macvlan"),
    ],
)
def test_a_device_that_lives_is_never_replugged(device: Link) -> None:
    assert not needs_replug(PLAIN, table(eth0(), device))


def test_a_trusted_guest_may_have_changed_its_mac() -> None:
    links = table(eth0(name="eth1"), macvtap(name="macvtap1", mac="02:00:00:00:00:01"))
    assert not needs_replug(TRUSTED, links)


@pytest.mark.parametrize(
    "device",
    [
        macvtap(mac="02:00:00:00:00:01"),  # another VM's, which got the free name
        macvtap(name="other", lower=5),  # the same MAC on another network
        macvtap(kind="veth"),
    ],
)
def test_anothers_device_does_not_count(device: Link) -> None:
    assert needs_replug(PLAIN, table(eth0(), Link(index=5, name="eth5", flags=UP), device))


def test_an_interface_that_libvirt_is_still_making_is_left_alone() -> None:
    assert not needs_replug(msgspec.structs.replace(PLAIN, target=""), table(eth0()))


def test_the_device_is_the_same_for_the_guest() -> None:
    assert (
        device_xml(PLAIN)
        == """<interface type='direct'>
      <mac address='52:54:00:12:34:56'/>
      <source dev='eth0' mode='bridge'/>
      <model type='virtio'/>
      <driver name='vhost' queues='4'/>
      <link state='up'/>
      <boot order='1'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>"""
    )


def test_a_network_chooses_the_interface_again() -> None:
    assert (
        device_xml(TRUSTED)
        == """<interface type='network' trustGuestRxFilters='yes'>
      <mac address='52:54:00:12:34:57'/>
      <source network='macvtaps' portgroup='fast'/>
      <model type='e1000'/>
      <alias name='ua-lan'/>
      <rom bar='off'/>
      <address type='pci' domain='0x0000' bus='0x02' slot='0x01' function='0x0'/>
    </interface>"""
    )


def test_names_that_the_user_gave_are_kept() -> None:
    element = (
        "<interface type='direct'><mac address='52:54:00:12:34:56' currentAddress='02:00:00:00:00:01'/>"
        "<source dev='eth0'/><target dev='lan0'/><backenddomain name='x'/><alias name='net0'/></interface>"
    )
    (interface,) = direct_interfaces(domain_xml(element))
    assert device_xml(interface) == (
        "<interface type='direct'><mac address='52:54:00:12:34:56'/>"
        "<source dev='eth0'/><target dev='lan0'/></interface>"
    )
