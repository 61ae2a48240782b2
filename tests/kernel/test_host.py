"""Host on the real kernel: what refused steps say and leave behind, and what is never touched or leaked."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evertap.engine.ports import Done
from evertap.kernel import bpf, codec, tun
from evertap.kernel.host import Host
from evertap.model.actions import (
    Action,
    Announce,
    BringUp,
    CreateMacvlan,
    CreateTap,
    JoinBridge,
    LeaveBridge,
    RemoveMacvlan,
    RemoveTap,
    SetMtu,
    Splice,
)
from evertap.model.links import Gone, Link
from evertap.model.nic import Nic
from evertap.model.observed import PASS, Splicing
from tests.kernel.conftest import FAR_MAC, Lab, Port, frame
from tests.support.nics import nic

WEB = nic("web0")
DB = nic("db0")


class Bench:
    """A host in the test's namespace, and short ways to use it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.host = Host()

    def make(self, *nics: Nic) -> list[Done]:
        return [self.slow(CreateTap(nic=each.name, definition=each)) for each in nics]

    def slow(self, *actions: Action) -> Done:
        return asyncio.run(self.host.perform_slow(actions))

    def perform(self, *actions: Action) -> Done:
        (done,) = self.host.perform([actions])
        return done

    def links(self) -> dict[str, Link]:
        return {link.name: link for link in self.host.read_links()}

    def macvlans(self) -> list[Link]:
        return [link for link in self.host.read_links() if link.kind == "macvlan"]


@pytest.fixture
def bench(lab: Lab) -> Iterator[Bench]:
    made = Bench(lab)
    yield made
    made.host.close()


def create(of: Nic, lower: int, mode: str = "bridge") -> CreateMacvlan:
    return CreateMacvlan(nic=of.name, lower=lower, uplink="up0", mac=of.mac, mode=mode, mtu=1500)


def splice(of: Nic, lower: int, target: int | None = None) -> Splice:
    return Splice(nic=of.name, lower=lower, uplink="up0", target=target, mac=of.mac, check=True)


def connect(of: Nic, lower: int) -> list[Action]:
    announce = Announce(nic=of.name, lower=lower, uplink="up0", bridge=False, mac=of.mac)
    return [create(of, lower), splice(of, lower), announce]


def details(name: str) -> dict[str, Any]:
    """All that ip(8) says of an interface, and its filters."""
    command = ["ip", "-d", "-j", "link", "show", name]
    (link,) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    found: dict[str, Any] = link
    command = ["tc", "filter", "show", "dev", name, "ingress"]
    found["filters"] = subprocess.run(command, check=False, capture_output=True).stdout
    return found


def descriptors() -> Counter[str]:
    """This process's open descriptors by kind: files by path, BPF programs and maps as such."""
    found: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = entry.readlink().name
            info = Path("/proc/self/fdinfo", entry.name).read_text()
        except FileNotFoundError:  # the one by which the folder is read
            continue
        kind = "program" if "prog_id:" in info else "map" if "map_id:" in info else target.partition(":")[0]
        found[kind] += 1
    return found


def refused(done: Done) -> str:
    assert done.error is not None
    return str(done.error)


# What works


def test_a_nic_is_connected_in_one_go_and_the_monitor_tells_of_it(bench: Bench) -> None:
    uplink = bench.lab.wire("up0")
    assert bench.make(WEB) == [Done(None, Splicing(0, True, WEB.mac))]
    bench.host.events()
    with bench.lab.far():
        far = Port("far0")
    done = bench.perform(*connect(WEB, uplink))
    (macvlan,) = bench.macvlans()
    assert done == Done(None, Splicing(macvlan.index, True, WEB.mac))
    assert (macvlan.owner, macvlan.lower, macvlan.mode, macvlan.up) == ("web0", uplink, "bridge", True)
    assert macvlan in bench.host.events()
    vmm = tun.open_tap("web0")
    os.write(vmm, bytes(10) + frame(WEB.mac))
    os.write(vmm, bytes(10) + frame("52:54:00:99:99:99"))
    assert far.receive() == frame(WEB.mac)
    assert far.receive(0.1) is None
    os.close(vmm)
    far.close()


@pytest.mark.parametrize("queues", [1, 4])
def test_a_tap_has_no_queue_before_its_own_with_a_vmm_and_with_the_next(bench: Bench, queues: int) -> None:
    bench.make(nic("web0", queues=queues))
    for _ in range(2):
        vmm = [tun.open_tap("web0", queues) for _ in range(queues)]
        shown = json.loads(subprocess.check_output(["tc", "-j", "qdisc", "show", "dev", "web0"]))
        assert {qdisc["kind"] for qdisc in shown} - {"clsact"} == {"noqueue"}
        for descriptor in vmm:
            os.close(descriptor)


def test_what_comes_after_a_refused_step_is_not_left_behind(bench: Bench) -> None:
    uplink = bench.lab.wire("up0")
    bench.make(WEB)
    done = bench.perform(BringUp(nic="web0", index=999_999, uplink="none"), *connect(WEB, uplink))
    assert "set none up" in refused(done)
    assert bench.macvlans() == []
    assert done.splicing is None


def test_one_nic_that_fails_in_the_middle_does_not_hold_up_the_others(bench: Bench) -> None:
    uplink = bench.lab.wire("up0")
    nics = [nic(f"vm{number}", mac=f"52:54:00:00:03:{number:02x}") for number in range(9)]
    bench.make(*nics)
    work: list[list[Action]] = [connect(each, uplink) for each in nics]
    work[3] = connect(nics[3], 999_999)  # that uplink has just gone
    work[5] = connect(nic("never0"), uplink)  # nobody made its tap
    work[7] = [create(nics[7], uplink), SetMtu(nic="vm7", index=uplink, device="up0", mtu=1), *work[7][1:]]
    outcomes = bench.host.perform(work)
    failed = [number for number, done in enumerate(outcomes) if done.error]
    assert failed == [3, 5, 7]
    assert [number for number, done in enumerate(outcomes) if done.splicing] == [0, 1, 2, 4, 6, 8]
    made = {link.owner: link.index for link in bench.macvlans()}
    # What was whole before the step that failed stays: the next plan goes on from there.
    assert sorted(made) == ["vm0", "vm1", "vm2", "vm4", "vm6", "vm7", "vm8"]
    for number in (0, 1, 2, 4, 6, 8):
        assert outcomes[number].splicing == Splicing(made[f"vm{number}"], True, nics[number].mac)
    links = bench.links()
    assert bench.host.read_splicing(links["vm7"]) == Splicing(0, True, nics[7].mac)
    assert refused(outcomes[3]).startswith("create macvlan (mode bridge) on up0: ENODEV")
    assert refused(outcomes[5]) == "create macvlan (mode bridge) on up0: [Errno 19] the tap never0 is gone"
    assert refused(outcomes[7]).startswith("set MTU of up0 to 1: EINVAL: ")


def test_a_new_host_adopts_what_the_one_before_has_left(bench: Bench) -> None:
    uplink = bench.lab.wire("up0")
    bench.make(WEB)
    before = bench.perform(*connect(WEB, uplink)).splicing
    bench.host.close()
    bench.host = Host()
    links = bench.links()
    assert bench.host.read_splicing(links["web0"]) == before
    assert bench.host.read_splicing(links["up0"]) is None
    # And it works on: the map is at hand, and so is a program for more macvlans.
    (macvlan,) = bench.macvlans()
    assert bench.perform(splice(WEB, 0, 0)) == Done(None, Splicing(0, True, WEB.mac))
    gone = RemoveMacvlan(nic="web0", index=macvlan.index, device=macvlan.name, uplink="up0")
    assert bench.slow(gone) == Done(None, None)
    assert bench.perform(*connect(WEB, uplink)).error is None


def test_a_tap_whose_program_was_taken_off_is_given_one_again(bench: Bench) -> None:
    bench.make(WEB)
    tap = bench.links()["web0"]
    (program,) = bpf.tcx_programs(tap.index)
    fd = bpf.prog_fd_by_id(program)
    bpf.detach_tcx(tap.index, fd)
    os.close(fd)
    assert bench.host.read_splicing(tap) is None
    assert bench.make(WEB) == [Done(None, Splicing(0, True, WEB.mac))]
    assert bench.links()["web0"].index == tap.index
    assert bench.host.read_splicing(tap) == Splicing(0, True, WEB.mac)


def test_removing_what_has_gone_already_is_no_failure(bench: Bench) -> None:
    uplink = bench.lab.wire("up0")
    bench.make(WEB)
    bench.perform(*connect(WEB, uplink))
    (macvlan,) = bench.macvlans()
    bench.lab.ip("link del up0")
    bench.lab.ip("link del web0")
    gone = RemoveMacvlan(nic="web0", index=macvlan.index, device=macvlan.name, uplink="up0")
    assert bench.slow(gone, RemoveTap(nic="web0", queues=1)) == Done(None, None)
    assert Gone(uplink) in bench.host.events()


# What is refused


def test_an_uplink_that_has_vanished_is_named_and_nothing_is_left(bench: Bench) -> None:
    bench.make(WEB)
    done = bench.perform(*connect(WEB, 999_999))
    assert refused(done).startswith("create macvlan (mode bridge) on up0: ENODEV: ")
    assert done.splicing is None
    assert bench.macvlans() == []
    assert bench.host.read_splicing(bench.links()["web0"]) == Splicing(0, True, WEB.mac)


def test_a_mac_that_a_foreign_macvlan_has_is_told_and_no_half_macvlan_is_left(bench: Bench) -> None:
    uplink = bench.lab.wire("up0")
    bench.make(WEB)
    bench.lab.ip(f"link add link up0 name other0 address {WEB.mac} type macvlan mode bridge")
    bench.lab.ip("link set other0 up")
    foreign = details("other0")
    done = bench.perform(*connect(WEB, uplink))
    assert refused(done) == (
        "create macvlan (mode bridge) on up0: EADDRINUSE: Address already in use "
        "(another device on the uplink has the NIC's MAC)"
    )
    assert [link.name for link in bench.macvlans()] == ["other0"]
    assert details("other0") == foreign


def test_a_second_device_beside_one_in_passthru_is_refused(bench: Bench) -> None:
    uplink = bench.lab.wire("up0")
    bench.make(WEB, DB)
    assert bench.perform(create(WEB, uplink, "passthru")).error is None
    assert refused(bench.perform(create(DB, uplink))).startswith(
        "create macvlan (mode bridge) on up0: EINVAL"
    )
    assert [link.owner for link in bench.macvlans()] == ["web0"]


def test_a_port_of_a_bridge_as_uplink_and_a_bridge_that_is_none_are_refused(bench: Bench) -> None:
    uplink = bench.lab.wire("up0")
    bench.make(WEB)
    bench.lab.ip("link add br0 type bridge")
    bench.lab.ip("link set up0 master br0")
    assert refused(bench.perform(*connect(WEB, uplink))).startswith(
        "create macvlan (mode bridge) on up0: EBUSY"
    )
    assert bench.macvlans() == []
    wrong = JoinBridge(nic="web0", bridge=uplink, uplink="up0", mac=WEB.mac)
    done = bench.perform(wrong, splice(WEB, uplink, PASS))
    assert refused(done) == "join bridge up0: ENOTSUP: Operation not supported"
    assert bench.links()["web0"].master == 0
    assert bench.host.read_splicing(bench.links()["web0"]) == Splicing(0, True, WEB.mac)


def test_a_bridge_loop_is_refused_and_the_tap_can_join_again(bench: Bench) -> None:
    bench.make(WEB)
    bench.lab.ip("link add br0 type bridge")
    bridge, tap = socket.if_nametoindex("br0"), bench.links()["web0"].index
    join = JoinBridge(nic="web0", bridge=bridge, uplink="br0", mac=WEB.mac)
    assert bench.perform(join, splice(WEB, bridge, PASS)).splicing == Splicing(PASS, True, WEB.mac)
    assert bench.links()["web0"].master == bridge
    # A macvlan on the tap, and the tap as a port of itself.
    assert refused(bench.perform(create(WEB, tap))).startswith("create macvlan (mode bridge) on up0: EBUSY")
    itself = JoinBridge(nic="web0", bridge=tap, uplink="web0", mac=WEB.mac)
    assert refused(bench.perform(itself)) == "join bridge web0: ENOTSUP: Operation not supported"
    assert bench.perform(join).error is None
    assert bench.links()["web0"].master == bridge
    assert bench.perform(splice(WEB, 0, 0), LeaveBridge(nic="web0")).error is None
    assert bench.links()["web0"].master == 0


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (SetMtu(nic="web0", index=999_999, device="web0", mtu=1400), "set MTU of web0 to 1400: ENODEV"),
        (BringUp(nic="web0", index=999_999, uplink="up0"), "set up0 up: ENODEV"),
        (splice(nic("gone0"), 5, 5), "connect to up0: [Errno 19] the tap gone0 is gone"),
        (LeaveBridge(nic="gone0"), "leave bridge: [Errno 19] the tap gone0 is gone"),
    ],
)
def test_a_refused_step_is_named_with_the_kernels_reason(bench: Bench, step: Action, name: str) -> None:
    assert refused(bench.perform(step)).startswith(name)


def test_an_owner_that_no_system_user_is_leaves_no_tap(bench: Bench) -> None:
    (done,) = bench.make(nic("web0", owner="no-such-user"))
    assert refused(done) == "create tap web0: getpwnam(): name not found: 'no-such-user'"
    assert "web0" not in bench.links()


def test_an_announcement_out_of_an_uplink_that_has_gone_is_just_lost(bench: Bench) -> None:
    announce = Announce(nic="web0", lower=999_999, uplink="up0", bridge=False, mac=WEB.mac)
    assert bench.perform(announce) == Done(None, None)


# What is not ours


@pytest.mark.parametrize("kind", ["tuntap add web0 mode tap", "link add web0 type veth peer name web1"])
def test_a_foreign_interface_with_the_nics_name_is_not_touched(bench: Bench, kind: str) -> None:
    bench.lab.ip(kind)
    foreign = details("web0")
    (done,) = bench.make(WEB)
    assert "create tap web0: " in refused(done)
    assert 'an interface named "web0" exists that evertap did not make' in refused(done)
    assert bench.host.read_splicing(bench.links()["web0"]) is None
    assert details("web0") == foreign


def test_an_interface_that_has_the_index_or_the_name_of_a_new_macvlan_is_not_touched(bench: Bench) -> None:
    uplink = bench.lab.wire("up0")
    bench.make(WEB)
    for foreign in ("name", "index"):
        # The next index is the last one's successor.
        assert bench.perform(create(WEB, uplink)).error is None
        index = bench.macvlans()[0].index
        bench.lab.do(codec.del_link(index))
        name, chosen = (f"ev{index + 1}", 900_000) if foreign == "name" else ("other0", index + 1)
        bench.lab.ip(f"link add {name} index {chosen} type veth peer name other1")
        before = details(name)
        done = bench.perform(*connect(WEB, uplink))
        assert details(name) == before
        if foreign == "name":
            assert refused(done).startswith("create macvlan (mode bridge) on up0: EEXIST")
            assert bench.macvlans() == []
        # Once more, and all is well.
        if done.error:
            assert bench.perform(*connect(WEB, uplink)).error is None
        (macvlan,) = bench.macvlans()
        bench.lab.do(codec.del_link(macvlan.index))
        bench.lab.ip(f"link del {name}")


def test_a_tap_that_a_vmm_holds_is_not_removed(bench: Bench) -> None:
    bench.make(WEB)
    vmm = tun.open_tap("web0")
    done = bench.slow(RemoveTap(nic="web0", queues=1))
    assert refused(done).startswith("remove tap web0: [Errno 16] ")
    # It is still at hand, for the VMM's traffic goes on.
    assert bench.perform(splice(WEB, 0, 0)).error is None
    os.close(vmm)
    assert bench.slow(RemoveTap(nic="web0", queues=1)) == Done(None, None)
    assert "web0" not in bench.links()


# Descriptors


def test_fifty_rounds_of_connecting_and_removing_leak_no_descriptor(bench: Bench) -> None:
    uplink = bench.lab.wire("up0")

    async def rounds(count: int) -> None:
        for turn in range(count):
            await bench.host.perform_slow([CreateTap(nic="web0", definition=WEB)])
            # Every other connection fails half-way.
            bench.host.perform([connect(WEB, uplink if turn % 2 else 999_999)])
            tap = bench.links()["web0"]
            assert bench.host.read_splicing(tap) is not None
            for macvlan in bench.macvlans():
                gone = RemoveMacvlan(nic="web0", index=macvlan.index, device=macvlan.name, uplink="up0")
                await bench.host.perform_slow([gone])
            await bench.host.perform_slow([RemoveTap(nic="web0", queues=1)])

    asyncio.run(rounds(1))
    before = descriptors()
    assert (before["program"], before["map"]) == (0, 0)
    asyncio.run(rounds(50))
    assert descriptors() == before


def test_a_living_nic_takes_one_map_and_one_program_and_close_gives_all_back(lab: Lab) -> None:
    before = descriptors()
    bench = Bench(lab)
    uplink = lab.wire("up0")
    bench.make(WEB, DB)
    bench.perform(*connect(WEB, uplink))
    found = descriptors()
    assert (found["program"], found["map"]) == (2, 2)
    bench.make(WEB)  # refused or adopted: it must not add up
    assert descriptors()["map"] == 2
    (refusal,) = bench.make(nic("foreign0", mac=FAR_MAC, owner="no-such-user"))
    assert refusal.error
    assert descriptors() == found
    bench.host.close()
    assert descriptors() == before
