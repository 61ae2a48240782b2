"""The QEMU arguments: ids that fit QEMU's rules, tap by name or descriptor, hub, QMP socket."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from evertap.model.arguments import qemu_arguments, qmp_arguments
from evertap.model.vmm import card_port, host_netdev, hub_id, qemu_id, sink_port, uplink_netdev, uplink_port
from tests.support.nics import nic

WELL_FORMED = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")  # id_wellformed, util/id.c
names = st.text(
    st.characters(codec="utf-8", exclude_characters="/:%", exclude_categories=("Z", "C")), min_size=1
)


@given(names)
def test_every_id_is_well_formed(name: str) -> None:
    for ident in (qemu_id, host_netdev, card_port, sink_port):
        assert WELL_FORMED.fullmatch(ident(name))
    assert 0 <= hub_id(name) < 1 << 31


@given(names, names)
def test_no_nics_device_has_the_id_of_another_nics_part(one: str, other: str) -> None:
    if one != other:
        parts = {qemu_id(other), host_netdev(other), card_port(other), sink_port(other)}
        assert not parts & {qemu_id(one), host_netdev(one), card_port(one), sink_port(one)}


def test_names_that_look_like_parts_of_others_are_told_apart() -> None:
    for looks_like, part in (
        ("web-host", host_netdev("web")),
        ("web-card", card_port("web")),
        ("web-sink", sink_port("web")),
        ("web-up5", uplink_netdev("web", 5)),
        ("web-hub5", uplink_port("web", 5)),
    ):
        assert qemu_id(looks_like) != part


def test_a_tap_is_named_or_handed_over() -> None:
    named = qemu_arguments(nic("a,b", queues=2, mtu=9000), vhost=True)
    ident = qemu_id("a,b")
    assert named == [
        "-netdev",
        f"tap,id={ident}-host,ifname=a,,b,script=no,downscript=no,queues=2,vhost=on",
        "-device",
        f"virtio-net-pci,id={ident},mac={nic('a,b').mac},host_mtu=9000,mq=on,vectors=6,netdev={ident}-host",
    ]
    handed = qemu_arguments(nic("web0", queues=2), vhost=False, descriptors=[7, 8])
    assert handed[1] == "tap,id=evertap-web0-host,fds=7:8"
    assert qemu_arguments(nic("web0"), vhost=False, descriptors=[7])[1] == "tap,id=evertap-web0-host,fd=7"


def test_a_macvtap_nic_is_on_a_hub_with_a_sink() -> None:
    arguments = qemu_arguments(nic("web0", backend="macvtap"), vhost=True)
    hub = hub_id("web0")
    assert arguments[:4] == [
        "-netdev",
        f"hubport,id=evertap-web0-card,hubid={hub}",
        "-netdev",
        f"hubport,id=evertap-web0-sink,hubid={hub}",
    ]
    assert arguments[5].endswith(",netdev=evertap-web0-card")


def test_a_qmp_sockets_path_may_hold_commas() -> None:
    assert "path=/run/a,,b,server=on,wait=off" in qmp_arguments("/run/a,b")[1]
