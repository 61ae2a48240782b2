"""SIGKILL before and after every operation of the daemon on kernel, QEMU and files.

The operations are found by following the daemon's system calls (kill_tracer.py): each scenario is played once
undisturbed, which tells its operations and what is to come of them, and then again for each of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from evertap.lab.builtin_guest import BuiltinGuest
from evertap.lab.errors import LabError
from evertap.lab.wires import Lab
from evertap.model.errors import EvertapError
from evertap.model.vmm import hub_id

from .kill_qemu import Qemu
from .kill_scenarios import MACVTAP, TAP, Scenario, definition, undefine
from .kill_stage import NIC, Point, Stage, State, Tracer, points

pytestmark = [
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the tracer knows x86-64's calls"),
    pytest.mark.timeout(1800),
]

_TRIES = 3
# For the default run: each verb, and one point of so many.
_SHORT = {
    "an uplink appears": 7,
    "hot failover": 2,
    "disconnect": 9,
    "retarget to a bridge": 17,
    "define another NIC and change one": 31,
    "undefine": 13,
}
_SHORT_WITH_QEMU = {"an uplink appears": 13, "failover": 11, "retarget": 23, "undefine": 13}
CALM_MACVTAP = "calm1"


@pytest.fixture(scope="module")
def stage(namespaces: None) -> Iterator[Stage]:
    with Lab() as lab, Stage(lab) as made:
        lab.uplink("port0")
        lab.bridge("br0", "port0")
        yield made
        assert made.lost(wait=True) == []
        assert "Traceback" not in made.trial.log, made.trial.log


@pytest.fixture(scope="module")
def stage_with_qemu(namespaces: None) -> Iterator[Stage]:
    """With a second NIC that must not notice, which is in the same QEMU."""
    with ExitStack() as stack:
        made = stack.enter_context(Stage(stack.enter_context(Lab())))
        macvtap = 'backend = "macvtap"\nannounce = false'
        made.define(NIC, definition(made.mac, ["eth0"], macvtap))
        made.define(CALM_MACVTAP, definition(made.second_mac, ["eth9"], macvtap))
        arguments = made.trial.arguments(NIC, CALM_MACVTAP)
        qemu = Qemu(
            made.lab.host, made.trial.path, arguments, hub_id(CALM_MACVTAP), made.second_mac, "192.0.2.30"
        )
        stack.enter_context(closing(qemu))
        for name in (NIC, CALM_MACVTAP):
            made.trial.wait(name, "connected")
        made.watch("192.0.2.30")
        made.extra = qemu.lines
        yield made
        assert made.lost(wait=True) == []
        assert "Traceback" not in made.trial.log, made.trial.log


def play(stage: Stage, scenario: Scenario, share: int) -> None:
    """Kill the daemon at each point, or at one of `share` of them."""
    start = stage.rest()
    # What a command does is done when it answers; announcements of an uplink that appeared take longer.
    operations = stage.record(scenario.trigger, quiet=0.2 if scenario.whole else 0.5)
    done = stage.rest()
    assert done.lines != start.lines
    scenario.undo(stage)
    stage.reach(start)
    todo = points(operations)
    todo = todo[min(share, len(todo)) // 2 :: share]
    committed = False
    failures = []
    missed = []
    for point in todo:  # which grows
        with stage.undisturbed(f"killed {point}"):
            try:
                reached, seen = _kill(stage, scenario, point, start)
                missed += [] if reached else [point]
                if share == 1:
                    todo += [other for other in points(seen) if other not in todo]
                stage.trial.start()
                # A command that was carried out when killed earlier is so when killed later.
                in_order = seen == operations[: len(seen)] and point in points(operations)
                undone = scenario.whole and not (committed and in_order)
                outcome = stage.reach(done, *([start] if undone else []))
                committed = committed or (in_order and outcome is done)
                scenario.undo(stage)
                stage.reach(start)
            except (AssertionError, EvertapError, LabError) as error:
                failures.append(f"killed {point}: {error}")
                stage.trial.kill()
                stage.trial.start()
                scenario.undo(stage)
        failures += stage.lost()
    print(f"{len(operations)} operations, {len(todo)} points, {len(failures)} failures", *failures, sep="\n")
    print(*(f"not reached: {point}" for point in missed), sep="\n")
    assert not failures, "\n".join(failures)
    assert share > 1 or len(missed) <= len(todo) // 10


def _kill(stage: Stage, scenario: Scenario, point: Point, start: State) -> tuple[bool, list[str]]:
    """Whether the daemon was killed there, and its operations.

    The order of its threads' operations varies, and several events are answered together or one by one.
    """
    for _ in range(_TRIES - 1):
        reached, seen = stage.kill(scenario.trigger, point)
        if reached:
            return True, seen
        stage.trial.start()
        scenario.undo(stage)
        stage.reach(start)
    return stage.kill(scenario.trigger, point)


def check(stage: Stage, scenario: Scenario, share: int) -> None:
    with ExitStack() as stack:
        stage.lab.remove("eth0")
        stage.uplink(0)
        stack.callback(undefine, stage)
        if scenario.guest:
            stage.define(NIC, definition(stage.mac, ["eth0"], ""))
            guest = stack.enter_context(BuiltinGuest(stage.lab.host, NIC, stage.mac))
            guest.boot()
        scenario.prepare(stage)
        if scenario.guest and scenario.trigger is undefine:
            # Of its carrier the kernel tells up to a second later; until then its removal would be tried.
            time.sleep(1.1)
        play(stage, scenario, share)


@pytest.mark.parametrize("name", _SHORT)
def test_a_share_of_the_operations(stage: Stage, name: str) -> None:
    check(stage, TAP[name], _SHORT[name])


@pytest.mark.parametrize("name", _SHORT_WITH_QEMU)
def test_a_share_of_the_operations_with_qemu(stage_with_qemu: Stage, name: str) -> None:
    check(stage_with_qemu, MACVTAP[name], _SHORT_WITH_QEMU[name])


@pytest.mark.soak
@pytest.mark.parametrize("name", TAP)
def test_every_operation(stage: Stage, name: str) -> None:
    check(stage, TAP[name], 1)


@pytest.mark.soak
@pytest.mark.parametrize("name", MACVTAP)
def test_every_operation_with_qemu(stage_with_qemu: Stage, name: str) -> None:
    check(stage_with_qemu, MACVTAP[name], 1)


# The tracer itself

_CHANGES = """
import os, sys
print("ready", flush=True)
sys.stdin.readline()
for name in "abc":
    os.stat(".")
    os.mkdir(name)
"""


@pytest.mark.parametrize(("when", "made"), [("before", ["a"]), ("after", ["a", "b"])])
def test_a_process_is_killed_exactly_before_and_after_its_call(
    tmp_path: Path, when: str, made: list[str]
) -> None:
    command, pipe = [sys.executable, "-c", _CHANGES], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=tmp_path) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        with Tracer(process.pid, Point("mkdir b", 1, when)) as tracer:
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert tracer.ended()
        assert tracer.seen == ["mkdir a", "mkdir b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == made
