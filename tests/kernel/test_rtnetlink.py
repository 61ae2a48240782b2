"""Requests in batches, refusals, dumps and overflow, on the real kernel."""

from __future__ import annotations

import errno
import os
import select
import socket
from pathlib import Path

import pytest

from evertap.kernel import bpf, codec
from evertap.kernel.codec import Message
from evertap.kernel.rtnetlink import (
    DumpInterruptedError,
    KernelRefusal,
    LinkMonitor,
    Overflow,
    Rtnetlink,
)
from evertap.model.errors import EvertapError
from evertap.model.links import Gone, Link
from tests.kernel.conftest import MAC, TAP_INDEX, Lab, Vmm

INDEX = 600_000
IPV6_ADDRESSES = Path("/proc/thread-self/net/if_inet6")


def connect(vmm: Vmm, uplink: int, index: int = INDEX, name: str = "web0.0") -> list[Message]:
    """All that a connect sends."""
    return [
        codec.new_macvlan(index, name, uplink, MAC, "bridge", 1500),
        codec.set_link(index, alias="evertap:web0", addrgen_none=True),
        codec.add_clsact(index),
        codec.add_bpf_filter(index, vmm.uplink_program, bpf.UPLINK_PROGRAM),
        codec.set_link(index, up=True),
    ]


def test_a_whole_connect_is_one_request_with_an_index_of_our_choice(lab: Lab, vmm: Vmm) -> None:
    uplink = lab.wire("up0")
    assert lab.rtnetlink.request([connect(vmm, uplink)]) == [None]
    link = lab.rtnetlink.get_link(INDEX)
    assert link is not None
    assert (link.name, link.kind, link.mode, link.lower) == ("web0.0", "macvlan", "bridge", uplink)
    assert (link.mac, link.owner, link.up, link.carrier) == (MAC, "web0", True, True)
    assert link.flags & codec.IFF_NOARP
    assert link.flags & codec.IFF_ALLMULTI
    (entry,) = lab.rtnetlink.dump_filters(INDEX)
    assert (entry.kind, entry.name, entry.priority, entry.index) == ("bpf", bpf.UPLINK_PROGRAM, 1, INDEX)
    fd = bpf.prog_fd_by_id(entry.prog_id)
    assert bpf.prog_info(fd).name == bpf.UPLINK_PROGRAM
    os.close(fd)


def test_link_that_is_set_up_has_no_address_of_its_own(lab: Lab, vmm: Vmm) -> None:
    lab.do(*connect(vmm, lab.wire("up0")))
    assert "web0.0" not in IPV6_ADDRESSES.read_text()


@pytest.mark.parametrize("kind", ["macvlan", "macvtap"])
@pytest.mark.parametrize("mode", list(codec.MODES))
def test_every_mode_and_kind_can_be_made(lab: Lab, kind: str, mode: str) -> None:
    uplink = lab.wire("up0")
    lab.do(codec.new_macvlan(INDEX, "m0", uplink, MAC, mode, 1400, kind=kind))  # type: ignore[arg-type]
    link = lab.link("m0")
    assert (link.kind, link.mode, link.mtu, link.up) == (kind, mode, 1400, False)


def test_refusal_within_a_group_names_that_group_and_its_first_error(lab: Lab, vmm: Vmm) -> None:
    uplink = lab.wire("up0")
    before = connect(vmm, uplink, INDEX, "a0")
    bad = [
        codec.new_macvlan(INDEX + 1, "b0", uplink, MAC.replace("01", "02"), "bridge"),
        codec.add_clsact(77_777),
        codec.del_link(88_888),
        codec.set_link(INDEX + 1, up=True),
    ]
    after = connect(vmm, uplink, INDEX + 2, "c0")
    after[0] = codec.new_macvlan(INDEX + 2, "c0", uplink, MAC.replace("01", "03"), "bridge")
    first, second, third, fourth = lab.rtnetlink.request([before, bad, [], after])
    assert first is None
    assert third is None
    assert fourth is None
    assert second is not None
    assert second.errno == errno.ENODEV
    assert lab.link("b0").up, "the rest of the group is carried out"
    assert lab.link("c0").up


def test_refusal_reads_well_and_carries_the_kernels_own_words(lab: Lab) -> None:
    uplink = lab.wire("up0")
    lab.ip("link add br0 type bridge")
    lab.ip("link add br1 type bridge")
    bridge, other = lab.link("br0").index, lab.link("br1").index
    refusal, silent = lab.rtnetlink.request(
        [[codec.set_link(other, master=bridge)], [codec.new_macvlan(INDEX, "up0", uplink, MAC, "bridge")]]
    )
    assert refusal is not None
    assert silent is not None
    assert (refusal.errno, refusal.name) == (errno.ELOOP, "ELOOP")
    assert str(refusal) == "ELOOP: Can not enslave a bridge to a bridge"
    assert (silent.errno, silent.text) == (errno.EEXIST, "")
    assert str(silent) == "EEXIST: File exists"
    assert isinstance(refusal, OSError)
    assert isinstance(refusal, EvertapError)


def test_taken_index_is_refused(lab: Lab) -> None:
    uplink = lab.wire("up0")
    (refusal,) = lab.rtnetlink.request([[codec.new_macvlan(uplink, "m0", uplink, MAC, "bridge")]])
    assert refusal is not None
    assert refusal.errno in (errno.EBUSY, errno.EEXIST)


def test_alias_is_ignored_and_address_generation_refused_when_a_link_is_made(lab: Lab) -> None:
    uplink = lab.wire("up0")
    made = codec.new_macvlan(INDEX, "m0", uplink, MAC, "bridge")
    alias = codec.set_link(INDEX, alias="evertap:web0").body[16:]
    addrgen = codec.set_link(INDEX, addrgen_none=True).body[16:]
    lab.do(made._replace(body=made.body + alias))
    assert lab.link("m0").alias == ""
    lab.do(codec.del_link(INDEX))
    (refusal,) = lab.rtnetlink.request([[made._replace(body=made.body + addrgen)]])
    assert refusal is not None
    assert refusal.errno == errno.EAFNOSUPPORT


def test_address_generation_comes_too_late_in_the_message_that_sets_up(lab: Lab) -> None:
    uplink = lab.wire("up0")
    lab.do(
        codec.new_macvlan(INDEX, "m0", uplink, MAC, "bridge"),
        codec.set_link(INDEX, up=True, addrgen_none=True),
    )
    assert "m0" in IPV6_ADDRESSES.read_text()


def test_address_generation_is_refused_where_ipv6_is_not(lab: Lab) -> None:
    uplink = lab.wire("up0")
    small = codec.new_macvlan(INDEX, "m0", uplink, MAC, "bridge", 1000)
    (refusal,) = lab.rtnetlink.request([[small, codec.set_link(INDEX, alias="x", addrgen_none=True)]])
    assert refusal is not None
    assert refusal.errno == errno.EAFNOSUPPORT
    assert lab.link("m0").alias == "", "the whole message is refused"


def test_many_messages_go_out_in_several_sends(lab: Lab) -> None:
    index = lab.wire("up0")
    groups = [[codec.set_link(index, mtu=1400 + number % 2)] * 3 for number in range(500)]
    groups[321] = [codec.del_link(99_999)] * 1000
    refusals = lab.rtnetlink.request(groups)
    assert [place for place, refusal in enumerate(refusals) if refusal is not None] == [321]
    assert lab.link("up0").mtu == 1401


def test_requests_work_with_the_receive_buffer_of_an_unprivileged_process(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evertap.kernel.rtnetlink._REQUEST_BUFFER", 8192)
    with Rtnetlink() as rtnetlink:
        refusals = rtnetlink.request([[codec.del_link(99_999)]] * 1000)
    assert {refusal.errno if refusal else 0 for refusal in refusals} == {errno.ENODEV}


def test_lost_answers_are_an_error_and_the_socket_lives_on(lab: Lab) -> None:
    with Rtnetlink() as rtnetlink:
        rtnetlink._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with pytest.raises(Overflow):
            rtnetlink.request([[codec.del_link(99_999)]] * 300)
        (refusal,) = rtnetlink.request([[codec.del_link(99_999)]])
        assert refusal is not None


def test_missing_answer_is_a_timeout_and_a_late_one_is_ignored(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    uplink = lab.wire("up0")
    with Rtnetlink() as rtnetlink:
        rtnetlink._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, b"\0" * 8 + b"\1" + b"\0" * 7)
        with monkeypatch.context() as patch:
            patch.setattr(rtnetlink, "_send", lambda stamped: None)
            with pytest.raises(TimeoutError):
                rtnetlink.request([[codec.set_link(uplink, up=True)]])
        rtnetlink._send([codec.HEADER.pack(32, codec.RTM_DELLINK, 5, 12345, 0) + bytes(16)])
        assert rtnetlink.request([[codec.set_link(uplink, up=True)]]) == [None]


def test_dump_gives_all_links_and_get_link_one(lab: Lab) -> None:
    for number in range(40):
        lab.ip(f"link add v{number} type veth peer name w{number}")
    links = lab.rtnetlink.dump_links()
    assert len(links) == 81
    assert {link.name for link in links} >= {"lo", "v0", "w39"}
    assert all(lab.rtnetlink.get_link(link.index) == link for link in links)
    assert lab.rtnetlink.get_link(99_999) is None


def test_filters_of_a_link_without_clsact_are_none(lab: Lab) -> None:
    assert lab.rtnetlink.dump_filters(lab.wire("up0")) == []


def test_interrupted_dump_is_repeated(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    dumps = 0
    send, split = lab.rtnetlink._send, codec.split

    def count(stamped: list[bytes]) -> None:
        nonlocal dumps
        dumps += 1
        send(stamped)

    def interrupted(buffer: codec.Buffer) -> list[tuple[int, ...]]:
        flag = codec.NLM_F_DUMP_INTR if dumps < 3 else 0
        return [(kind, flags | flag, *rest) for kind, flags, *rest in split(buffer)]

    monkeypatch.setattr(lab.rtnetlink, "_send", count)
    monkeypatch.setattr(codec, "split", interrupted)
    assert [link.name for link in lab.rtnetlink.dump_links()] == ["lo"]
    assert dumps == 3
    assert lab.rtnetlink.interrupted == 2


def test_dump_that_is_always_interrupted_is_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    split = codec.split
    monkeypatch.setattr(
        codec, "split", lambda buffer: [(k, f | codec.NLM_F_DUMP_INTR, *r) for k, f, *r in split(buffer)]
    )
    with pytest.raises(DumpInterruptedError):
        lab.rtnetlink.dump_filters(1)
    # Of links, that is no failure: what is lacking in one dump is in another, and a monitor tells the rest.
    assert [link.name for link in lab.rtnetlink.dump_links()] == ["lo"]


def test_bridge_learns_where_a_guest_is(lab: Lab) -> None:
    lab.ip("link add br0 type bridge")
    lab.ip("link set br0 up")
    port = lab.wire("up0")
    learn = codec.replace_fdb(port, MAC)
    lab.do(codec.set_link(port, master=lab.link("br0").index), learn, learn)


def test_bridge_learns_nothing_of_a_port_that_does_not_forward(lab: Lab) -> None:
    lab.ip("link add br0 type bridge")
    port = lab.wire("up0")
    lab.do(codec.set_link(port, master=lab.link("br0").index))
    (refusal,) = lab.rtnetlink.request([[codec.replace_fdb(port, MAC)]])
    assert refusal is not None
    assert refusal.errno == errno.EPERM


def test_port_joins_and_leaves_a_bridge(lab: Lab) -> None:
    lab.ip("link add br0 type bridge")
    lab.ip("link add v0 type veth peer name v1")
    port, bridge = lab.link("v0").index, lab.link("br0").index
    lab.do(codec.set_link(port, master=bridge))
    assert (lab.link("v0").master, lab.link("v0").port_kind) == (bridge, "bridge")
    lab.do(codec.set_link(port, master=0))
    assert lab.link("v0").master == 0


def test_clsact_is_removed_with_its_filters(lab: Lab, vmm: Vmm) -> None:
    lab.do(*connect(vmm, lab.wire("up0")), codec.del_clsact(INDEX))
    assert lab.rtnetlink.dump_filters(INDEX) == []


def test_monitor_hears_making_change_and_end(lab: Lab) -> None:
    uplink = lab.wire("up0")
    with LinkMonitor() as monitor:
        assert monitor.read() == []
        lab.do(codec.new_macvlan(INDEX, "m0", uplink, MAC, "bridge"), codec.set_link(INDEX, up=True))
        assert select.select([monitor.fileno()], [], [], 1)[0]
        events = monitor.read()
        links = [event for event in events if isinstance(event, Link) and event.index == INDEX]
        assert not links[0].up
        assert links[-1].up
        lab.do(codec.del_link(INDEX))
        assert Gone(INDEX) in monitor.read()
        assert monitor.read() == []


def test_link_that_moves_to_another_namespace_is_gone(lab: Lab) -> None:
    lab.ip("link add v0 type veth peer name v1")
    index = lab.link("v0").index
    with LinkMonitor() as monitor:
        lab.ip("link set v0 netns FAR")
        assert Gone(index) in monitor.read()


def test_overflow_is_told_and_the_monitor_goes_on(lab: Lab) -> None:
    index = lab.wire("up0")
    with LinkMonitor() as monitor:
        monitor._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for number in range(50):
            lab.do(codec.set_link(index, mtu=1000 + number))
        assert select.select([monitor.fileno()], [], [], 1)[0]
        with pytest.raises(Overflow):
            monitor.read()
        # nothing older than the reread that follows is left to be read after it
        assert monitor.read() == []
        lab.do(codec.set_link(index, mtu=1499))
        assert [event.mtu for event in monitor.read() if isinstance(event, Link)] == [1499]


def test_event_that_is_larger_than_the_buffer_counts_as_lost(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = lab.wire("up0")
    monkeypatch.setattr("evertap.kernel.rtnetlink._DATAGRAM", 512)
    with LinkMonitor() as monitor:
        lab.do(codec.set_link(index, mtu=1499))
        with pytest.raises(Overflow, match="larger"):
            monitor.read()
        assert monitor.read() == []


def test_anyone_may_read_and_listen_with_a_smaller_buffer(lab: Lab) -> None:
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            with LinkMonitor() as monitor, Rtnetlink() as rtnetlink:
                buffer = monitor._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
                os._exit(0 if len(rtnetlink.dump_links()) == 1 and buffer > 65536 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_closed_sockets_have_no_descriptor(lab: Lab) -> None:
    monitor, rtnetlink = LinkMonitor(), Rtnetlink()
    monitor.close()
    with rtnetlink:
        pass
    assert (monitor.fileno(), rtnetlink.fileno()) == (-1, -1)


def test_refusal_of_an_unknown_number_is_still_readable() -> None:
    assert str(KernelRefusal(524, "")) == "524: Unknown error 524"


def test_tap_takes_the_index_it_was_given(vmm: Vmm, lab: Lab) -> None:
    assert lab.link("web0").index == TAP_INDEX
