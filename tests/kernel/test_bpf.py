"""The splice between a tap and its uplinks, with real frames; and that it is found again."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator

import pytest

from evertap.kernel import bpf, codec, tun
from evertap.model.observed import PASS, Splicing
from tests.kernel.conftest import FAR_MAC, MAC, TAP_INDEX, Lab, Port, Vmm, frame

UPLINK, SPARE = 600_000, 600_001
OTHER_MAC = "52:54:00:00:00:66"
QUIET = 0.15
"""Seconds after which a frame will not come any more."""


@pytest.fixture
def far(lab: Lab, vmm: Vmm) -> Iterator[Port]:
    """The far end of an uplink to which the guest's macvlan stands ready."""
    uplink = lab.wire("up0")
    lab.do(
        codec.new_macvlan(UPLINK, "web0.0", uplink, MAC, "bridge"),
        codec.set_link(UPLINK, addrgen_none=True),
        codec.add_clsact(UPLINK),
        codec.add_bpf_filter(UPLINK, vmm.uplink_program, bpf.UPLINK_PROGRAM),
        codec.set_link(UPLINK, up=True),
    )
    with lab.far():
        port = Port("far0")
    yield port
    port.close()


def test_map_starts_dropping_and_keeps_what_is_written() -> None:
    fd = bpf.create_map("a name-with:odd characters")
    try:
        assert bpf.read_map(fd) == Splicing(bpf.DROP, False, "00:00:00:00:00:00")
        for splice in (Splicing(7, True, MAC), Splicing(PASS, False, MAC), Splicing(0, True, MAC)):
            bpf.write_map(fd, splice)
            assert bpf.read_map(fd) == splice
    finally:
        os.close(fd)


def test_nothing_leaves_the_tap_while_no_uplink_is_chosen(far: Port, vmm: Vmm) -> None:
    vmm.send(frame(MAC))
    assert far.receive(QUIET) is None
    vmm.splice(bpf.DROP, check=True)
    vmm.send(frame(MAC))
    assert far.receive(QUIET) is None


def test_frames_pass_both_ways_as_they_are(far: Port, vmm: Vmm) -> None:
    vmm.splice(UPLINK, check=True)
    out, back = frame(MAC, text=b"out"), frame(FAR_MAC, MAC, b"back")
    vmm.send(out)
    assert far.receive() == out
    far.send(back)
    assert vmm.receive() == back


def test_broadcast_and_multicast_reach_the_guest(far: Port, vmm: Vmm) -> None:
    vmm.splice(UPLINK)
    for destination in ("ff:ff:ff:ff:ff:ff", "33:33:ff:00:00:01"):
        sent = frame(FAR_MAC, destination)
        far.send(sent)
        assert vmm.receive() == sent


def test_macvlan_that_stands_by_is_silent(far: Port, vmm: Vmm) -> None:
    for target in (bpf.DROP, SPARE, PASS):
        vmm.splice(target)
        far.send(frame(FAR_MAC, MAC))
        far.send(frame(FAR_MAC, "ff:ff:ff:ff:ff:ff"))
        assert vmm.receive(QUIET) is None


@pytest.mark.parametrize("place", range(6))
def test_foreign_source_is_dropped_only_if_checked(far: Port, vmm: Vmm, place: int) -> None:
    octets = bytearray.fromhex(MAC.replace(":", ""))
    octets[place] ^= 4
    foreign = frame(octets.hex(":"))
    vmm.splice(UPLINK, check=True)
    vmm.send(foreign)
    vmm.send(frame(MAC))
    assert far.receive() == frame(MAC)
    vmm.splice(UPLINK, check=False)
    vmm.send(foreign)
    assert far.receive() == foreign


def test_short_frames_do_no_harm(far: Port, vmm: Vmm) -> None:
    vmm.splice(UPLINK, check=True)
    for length in range(14):
        with pytest.raises(OSError) as caught:  # the tap itself refuses them
            vmm.send(frame(MAC)[:length])
        assert caught.value.errno == errno.EINVAL
    vmm.send(frame(MAC)[:14])
    assert far.receive() is not None
    vmm.send(frame(MAC))
    assert far.receive() == frame(MAC)


def test_full_size_frames_pass(far: Port, vmm: Vmm) -> None:
    vmm.splice(UPLINK, check=True)
    vmm.send(frame(MAC).ljust(1514, b"x"))
    received = far.receive()
    assert received is not None
    assert len(received) == 1514


def test_one_write_moves_the_guest_to_another_uplink(lab: Lab, far: Port, vmm: Vmm) -> None:
    spare = lab.wire("up1", "far1")
    lab.do(
        codec.new_macvlan(SPARE, "web0.1", spare, MAC, "bridge"),
        codec.add_clsact(SPARE),
        codec.add_bpf_filter(SPARE, vmm.uplink_program, bpf.UPLINK_PROGRAM),
        codec.set_link(SPARE, up=True),
    )
    with lab.far():
        other = Port("far1")
    try:
        for chosen, target, idle in ((far, UPLINK, other), (other, SPARE, far)) * 2:
            vmm.splice(target, check=True)
            vmm.send(frame(MAC))
            assert chosen.receive() == frame(MAC)
            assert idle.receive(QUIET) is None
            idle.send(frame(FAR_MAC, MAC, b"idle"))
            chosen.send(frame(FAR_MAC, MAC, b"chosen"))
            assert vmm.receive() == frame(FAR_MAC, MAC, b"chosen")
            assert vmm.receive(QUIET) is None
    finally:
        other.close()


def test_target_that_is_gone_drops_and_a_new_one_serves(lab: Lab, far: Port, vmm: Vmm) -> None:
    vmm.splice(UPLINK)
    lab.do(codec.del_link(UPLINK))
    vmm.send(frame(MAC))
    assert far.receive(QUIET) is None
    lab.do(
        codec.new_macvlan(UPLINK, "again", lab.link("up0").index, MAC, "bridge"),
        codec.set_link(UPLINK, up=True),
    )
    vmm.send(frame(MAC))
    assert far.receive() == frame(MAC)


def test_pass_lets_frames_into_a_bridge_and_back(lab: Lab, vmm: Vmm) -> None:
    uplink = lab.wire("up0")
    lab.ip("link add br0 type bridge")
    bridge = lab.link("br0").index
    lab.do(
        codec.set_link(bridge, addrgen_none=True),
        codec.set_link(uplink, master=bridge),
        codec.set_link(TAP_INDEX, master=bridge),
        codec.set_link(bridge, up=True),
    )
    # a port without spanning tree forwards as soon as it is up; carrier events come by a work queue
    time.sleep(0.1)
    with lab.far():
        far = Port("far0")
    try:
        vmm.send(frame(MAC))
        assert far.receive(QUIET) is None, "dropped before the bridge saw it"
        vmm.splice(PASS, check=True)
        vmm.send(frame(OTHER_MAC))
        vmm.send(frame(MAC))
        assert far.receive() == frame(MAC)
        far.send(frame(FAR_MAC, MAC))
        assert vmm.receive() == frame(FAR_MAC, MAC)
    finally:
        far.close()


@pytest.mark.parametrize("tcx", [True, False])
def test_splice_outlives_every_descriptor_and_is_found_again(lab: Lab, tcx: bool) -> None:
    vmm = Vmm(lab, "web1", tcx=tcx)
    try:
        tun.persist(vmm.fd)
        vmm.splice(4711, check=True)
    finally:
        vmm.close()
    found = bpf.find_splice(TAP_INDEX, lab.rtnetlink)
    assert found is not None
    fd, splice = found
    assert splice == Splicing(4711, True, MAC)
    bpf.write_map(fd, Splicing(0, False, MAC))
    os.close(fd)
    again = bpf.find_splice(TAP_INDEX, lab.rtnetlink)
    assert again is not None
    assert again[1] == Splicing(0, False, MAC)
    os.close(again[0])
    tun.delete_tap("web1")


def test_interface_without_a_splice_has_none(lab: Lab, vmm: Vmm) -> None:
    uplink = lab.wire("up0")
    assert bpf.find_splice(uplink, lab.rtnetlink) is None
    lab.do(codec.add_clsact(uplink), codec.add_bpf_filter(uplink, vmm.uplink_program, bpf.UPLINK_PROGRAM))
    assert bpf.find_splice(uplink, lab.rtnetlink) is None, "the other program has the map, but is no tap's"


def test_tcx_attaches_once_and_detaches(lab: Lab) -> None:
    assert bpf.tcx_supported()
    uplink = lab.wire("up0")
    map_fd = bpf.create_map("m")
    program = bpf.load_tap_program(map_fd)
    try:
        assert bpf.tcx_programs(uplink) == []
        bpf.attach_tcx(uplink, program)
        (prog_id,) = bpf.tcx_programs(uplink)
        with pytest.raises(FileExistsError):
            bpf.attach_tcx(uplink, program)
        fd = bpf.prog_fd_by_id(prog_id)
        info = bpf.prog_info(fd)
        os.close(fd)
        assert info.name == bpf.TAP_PROGRAM
        (map_id,) = info.map_ids
        same = bpf.map_fd_by_id(map_id)
        bpf.write_map(map_fd, Splicing(9, False, MAC))
        assert bpf.read_map(same).target == 9
        os.close(same)
        bpf.detach_tcx(uplink, program)
        assert bpf.tcx_programs(uplink) == []
        with pytest.raises(FileNotFoundError):
            bpf.detach_tcx(uplink, program)
    finally:
        os.close(program)
        os.close(map_fd)


def test_refusals_say_what_failed(lab: Lab) -> None:
    with pytest.raises(OSError, match="bpf PROG_QUERY: No such device"):
        bpf.tcx_programs(99_999)
    with pytest.raises(FileNotFoundError, match="bpf PROG_GET_FD_BY_ID"):
        bpf.prog_fd_by_id(0x7FFFFFFF)
    with pytest.raises(OSError, match="bpf MAP_LOOKUP_ELEM: Bad file descriptor"):
        bpf.read_map(1_000_000)


def test_program_that_does_not_verify_is_explained_by_the_verifier() -> None:
    with pytest.raises(OSError, match=r"loading evertap_tap: .*R0 !read_ok"):
        bpf._load_program(bpf.TAP_PROGRAM, [bpf._leave()])
