"""Kernel calls that fail: said with the reason, tried again with pauses, mended when the fault is gone."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from evertap.api.client import Client
from evertap.lab.errors import LabError
from evertap.lab.wires import Lab
from tests.vmm.fake_qmp import FakeQmp

from .refusing_stage import NIC, RefusingTrial, Stage, attempts, definition, eventually

ERRORS = ("EBUSY", "ENOMEM", "EPERM", "ENODEV", "EINVAL", "ENOBUFS")


class Scenario(NamedTuple):
    """From what `prepare` makes, `trigger` makes the daemon work; `done` is what it leads to."""

    prepare: Callable[[Stage], object]
    trigger: Callable[[Stage], object]
    done: Callable[[Stage], object]


def _on(uplink: str) -> Callable[[Stage], bool]:
    return lambda stage: stage.on(uplink)


def _ip(line: str) -> Callable[[Stage], object]:
    return lambda stage: stage.lab.host.ip(*line.split())


def _define(*uplinks: str, more: str = "") -> Callable[[Stage], object]:
    def define(stage: Stage) -> None:
        stage.define(*uplinks, more=more)

    return define


def _with_qemu(stage: Stage, more: str) -> None:
    stage.define("eth0", more=f'announce = false\n{more}\n[vm]\nqmp = "{stage.qemu.path}"')


def _macvtap_without_uplink(stage: Stage) -> None:
    stage.lab.remove("eth0")
    _with_qemu(stage, 'backend = "macvtap"')
    eventually(lambda: "no such interface" in stage.nic().reason, "QEMU is there, the uplink is not")


def _define_and(step: Callable[[Stage], object], *uplinks: str) -> Callable[[Stage], object]:
    def prepare(stage: Stage) -> None:
        stage.define(*uplinks)
        step(stage)

    return prepare


SCENARIOS = {
    "connect": Scenario(lambda _: None, _define("eth0", "eth1", more='owner = "nobody"'), _on("eth0")),
    "uplink appears": Scenario(
        _define_and(lambda stage: stage.lab.remove("eth0"), "eth0"),
        lambda stage: stage.lab.uplink("eth0"),
        _on("eth0"),
    ),
    "uplink appears down": Scenario(
        _define_and(lambda stage: stage.lab.remove("eth0"), "eth0"),
        lambda stage: stage.lab.uplink("eth0", up=False),
        _on("eth0"),
    ),
    "failover": Scenario(
        _define("eth0", "eth1"), lambda stage: stage.lab.carrier("eth0", False), _on("eth1")
    ),
    "to a bridge": Scenario(_define("eth0"), lambda stage: stage.retarget("br0"), _on("br0")),
    "from a bridge": Scenario(_define("br0"), lambda stage: stage.retarget("eth0"), _on("eth0")),
    "undefine": Scenario(
        _define("eth0", "eth1", more="announce = false"),
        lambda stage: stage.undefine(),
        lambda stage: stage.known() is None,
    ),
    "another MTU": Scenario(_define("eth0"), _define("eth0", more="mtu = 1400"), _on("eth0")),
    "the tap renamed": Scenario(_define("eth0"), _ip(f"link set {NIC} name stolen"), _on("eth0")),
    "the macvlan's MAC changed": Scenario(
        _define("eth0", more="announce = false"),
        lambda stage: stage.lab.host.ip("link", "set", stage.macvlan(), "address", "52:54:00:00:00:77"),
        _on("eth0"),
    ),
    "a macvtap for QEMU": Scenario(
        _macvtap_without_uplink, lambda stage: stage.lab.uplink("eth0"), _on("eth0")
    ),
    "the guest's own multicast": Scenario(
        _define("eth0", more="announce = false"),
        lambda stage: _with_qemu(stage, 'multicast = "guest"'),
        lambda stage: "ALLMULTI" not in stage.lab.host.ip("link", "show", stage.macvlan()),
    ),
    "disconnect": Scenario(
        _define("eth0", more="announce = false"),
        lambda stage: stage.trial.ask(lambda client: client.disconnect(NIC)),
        lambda stage: stage.nic().state == "disconnected" and not stage.trial.json("plan")["actions"],
    ),
}

# What may fail without harm: announcements are lost on any network; a bridge learns by itself.
HARMLESS = {"announce", "new neigh", "new neigh self", "delete neigh"}
NO_TCX = ("bpf PROG_QUERY", "EINVAL")
"""So an older kernel says that a program has to be attached by clsact."""


@pytest.fixture(scope="module")
def built_stage(namespaces: None) -> Iterator[Stage]:
    with Lab() as lab, RefusingTrial(lab.host) as trial, FakeQmp(trial.path / "qmp") as qemu:
        yield Stage(lab, trial, qemu)
        assert "Traceback" not in trial.log, trial.log


@pytest.fixture
def stage(built_stage: Stage) -> Stage:
    """As it was at first, whatever the test before did."""
    built_stage.reset()
    return built_stage


def _calls_of(stage: Stage, scenario: Scenario) -> list[str]:
    """The kinds of calls that the daemon makes for it, in their order."""
    scenario.prepare(stage)
    time.sleep(0.15)
    since = time.monotonic()
    scenario.trigger(stage)
    eventually(lambda: scenario.done(stage), "the scenario is done without a fault")
    found = list(dict.fromkeys(call["call"] for call in stage.trial.calls(since)))
    stage.reset()
    return found


def _refuse(stage: Stage, scenario: Scenario, call: str, error: str, times: int) -> None:
    """Have every such call fail for so many attempts, look, let them succeed, look again."""
    number = getattr(errno, error)
    scenario.prepare(stage)
    since = time.monotonic()
    quoted = call.replace("(", r"\(").replace(")", r"\)")
    stage.trial.fail({"call": quoted, "errno": error})
    scenario.trigger(stage)
    if call in HARMLESS or (call, error) == NO_TCX:
        eventually(lambda: scenario.done(stage), "done in spite of the refusal")
    else:
        _check_failing(stage, number, since, times)
    stage.check_calm()
    stage.trial.fail()
    tried = attempts(stage.trial.calls(since))
    eventually(
        lambda: scenario.done(stage),
        f"done after the fault: {stage.known()}",
        2 + 3 * (time.monotonic() - since),
    )
    assert tried, "nothing was refused"
    stage.reset()
    stage.check_nothing_left()


def _check_failing(stage: Stage, number: int, since: float, times: int) -> None:
    words = os.strerror(number)

    def tells(reason: str) -> bool:
        if number == errno.ENODEV and "the kernel agreed but nothing changed" in reason:
            return True  # what is to be removed and is not there any more was removed
        return any(text in reason for text in (words, errno.errorcode[number], f"[Errno {number}]"))

    def told() -> bool:
        nic = stage.known()
        return nic is not None and tells(nic.reason)

    eventually(told, f"{words} is told; {stage.known()}")
    eventually(lambda: len(attempts(stage.trial.calls(since))) >= times, "it is tried again")
    nic = stage.nic()
    assert nic.state in ("failed", "connected"), nic
    assert nic.reason.partition(":")[0], "names the step"
    if nic.state == "failed":
        events = [event for event in stage.events() if event.event == "failed"]
        assert any(tells(event.reason) for event in events)
        assert f"{NIC}: failed" in stage.trial.log
    if number == errno.EPERM:
        assert "root" in nic.reason, f"no remedy: {nic.reason}"
    if number in (errno.ENOMEM, errno.ENOBUFS):
        assert "memory" in nic.reason, f"no remedy: {nic.reason}"
    # Two more than the doubling pauses allow, since what happens outside may ask for an early one.
    allowed = math.log2((time.monotonic() - since) / 0.1 + 1) + 3
    tried = attempts(stage.trial.calls(since))
    assert len(tried) <= allowed, [round(at - since, 3) for at in tried]


_done: set[str] = set()


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_kind_of_call_refused_is_told_and_tried_again_with_pauses_until_it_succeeds(
    stage: Stage, name: str
) -> None:
    for call in _calls_of(stage, SCENARIOS[name]):
        if call not in _done:
            _done.add(call)
            _refuse_and_tell(stage, name, call, ERRORS[len(_done) % len(ERRORS)], 2)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_call_of_every_scenario_refused_with_every_error(stage: Stage, name: str) -> None:
    for call in _calls_of(stage, SCENARIOS[name]):
        for error in ERRORS:
            _refuse_and_tell(stage, name, call, error, 3)


def _refuse_and_tell(stage: Stage, name: str, call: str, error: str, times: int) -> None:
    try:
        _refuse(stage, SCENARIOS[name], call, error, times)
    except Exception as failure:
        failure.add_note(f"in {name}: {call} refused with {error}")
        raise


# What is particular


def test_a_macvlan_whose_mark_is_refused_goes_again_whatever_the_error(stage: Stage) -> None:
    for error in ("EBUSY", "EEXIST"):
        _refuse_and_tell(stage, "connect", "set link(alias af_spec)", error, 2)


def test_pauses_double_and_a_change_of_the_host_ends_them(stage: Stage) -> None:
    time.sleep(1.2)  # the kernel tells of a fresh interface's carrier within a second
    since = time.monotonic()
    stage.trial.fail({"call": "new link.*", "errno": "ENOMEM"})
    stage.define("eth0")
    eventually(lambda: len(attempts(stage.trial.calls(since))) >= 5, "five attempts")
    tried = attempts(stage.trial.calls(since))
    pauses = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert all(pause > 0.08 * 2**place for place, pause in enumerate(pauses)), pauses
    stage.trial.fail()
    time.sleep(0.1)  # the attempt is over; the next by itself would come after 1.5 s
    stage.lab.host.ip("link", "set", "eth0", "mtu", "1600")
    eventually(lambda: stage.on("eth0"), "connected", 1.2)
    stage.reset()
    stage.check_nothing_left()


def test_one_nic_of_fifty_is_refused_and_the_others_are_connected_by_the_same_request(stage: Stage) -> None:
    names = [f"vm{number}" for number in range(50)]
    macs = {name: f"52:54:01:00:00:{number:02x}" for number, name in enumerate(names)}
    stage.lab.remove("eth0")
    texts = {name: definition("eth0", mac=mac) for name, mac in macs.items()}
    stage.trial.ask(lambda client: client.define(texts))
    stage.trial.fail(
        {"call": r"new link\(.*", "errno": "ENOBUFS", "bytes": macs["vm25"].replace(":", "")},
    )
    stage.lab.uplink("eth0")
    wanted = dict.fromkeys(names, "connected") | {"vm25": "failed"}
    eventually(lambda: _states(stage, names) == wanted, "all but one are connected")
    refused = stage.nic("vm25")
    assert refused.reason.startswith("create macvlan (mode bridge) on eth0: ENOBUFS"), refused.reason
    events = [event for event in stage.trial.ask(lambda client: client.history(None)) if event.nic in names]
    assert {event.nic for event in events if event.event == "failed"} == {"vm25"}
    stage.trial.fail()
    stage.trial.wait("vm25", "connected")
    assert stage.trial.ask(Client.plan) == []
    stage.trial.ask(lambda client: client.undefine(names))
    stage.reset()
    stage.check_nothing_left()


def _states(stage: Stage, names: list[str]) -> dict[str, str]:
    return {nic.name: nic.state for nic in stage.trial.ask(Client.nics) if nic.name in names}


def _uplinks(stage: Stage) -> list[str]:
    return [uplink.name for uplink in stage.trial.ask(Client.uplinks)]


@pytest.mark.parametrize("call", [r"new link\(.*", "bpf MAP_UPDATE_ELEM", "announce"])
def test_an_uplink_that_goes_between_plan_and_deed_is_no_failure(stage: Stage, call: str) -> None:
    stage.lab.remove("eth0")
    stage.define("eth0")
    before = len(stage.events())
    stage.trial.fail({"call": call, "run": ["ip", "link", "del", "eth0"], "times": 1})
    since = time.monotonic()
    stage.lab.uplink("eth0", up=False)
    eventually(
        lambda: [seen for seen in stage.trial.calls(since) if re.fullmatch(call, seen["call"])], "asked"
    )
    eventually(lambda: "eth0" not in _uplinks(stage), "eth0 is gone")
    stage.lab.remove("eth0")
    nic = stage.nic()
    assert (nic.state, nic.reason) == ("waiting", "eth0: no such interface")
    assert not [event for event in stage.events()[before:] if event.event == "failed"]
    stage.trial.fail()
    stage.lab.uplink("eth0")
    eventually(lambda: stage.on("eth0"), "connected")
    stage.reset()
    stage.check_nothing_left()


def test_a_macvlan_that_could_be_neither_marked_nor_removed_is_named_with_the_remedy(stage: Stage) -> None:
    stage.trial.fail(
        {"call": r"set link\(alias af_spec\)", "errno": "ENOMEM", "times": 1},
        {"call": "delete link", "errno": "ENOMEM", "times": 1},
    )
    stage.define("eth0")
    eventually(lambda: "ip link del" in stage.nic().reason, "the remedy is told")
    stage.lab.host.run("sh", "-c", stage.nic().reason.partition("remove it: ")[2])
    eventually(lambda: stage.on("eth0"), f"connected: {stage.nic()}")
    stage.reset()
    stage.check_nothing_left()


# At the start


def test_calls_refused_while_the_daemon_starts_are_told_in_a_line_and_traffic_goes_on(stage: Stage) -> None:
    stage.define("eth0", more="announce = false")
    since = time.monotonic()
    stage.trial.kill()
    stage.trial.start()
    calls = dict.fromkeys(call["call"] for call in stage.trial.calls(since))
    for place, call in enumerate(calls):
        error = ERRORS[place % len(ERRORS)]
        stage.trial.kill()
        stage.trial.fail({"call": call, "errno": error})
        told = len(stage.trial.log)
        with contextlib.suppress(LabError):
            stage.trial.start()
            eventually(lambda: stage.on("eth0"), f"{call}: {error} does not matter")
            continue
        said = stage.trial.log[told:]
        assert os.strerror(getattr(errno, error)) in said, said
        assert "Traceback" not in said, said
        assert stage.macvlan(), "the NIC's devices stay"
    stage.trial.fail()
    stage.trial.start()
    assert stage.on("eth0")
    stage.restarted()
    stage.reset()
