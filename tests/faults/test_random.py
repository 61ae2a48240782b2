"""Random operations on a real kernel: at every pause the host is what the definitions want; nothing leaks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.random_operations import Operation, generate
from tests.faults.random_run import PATIENCE, Run, WrongError
from tests.faults.random_shrink import shrink

AT_ONCE = {"failback_delay": 0, "flap_hold": 0}
SHRINKING = 120.0
"""Seconds for finding the shortest failing sequence."""


def wrong(operations: list[Operation], patience: float = PATIENCE) -> WrongError | None:
    """What is wrong after the operations, on a host and with a daemon of their own."""
    with Run(patience) as run:
        try:
            run.perform(operations)
        except WrongError as error:
            error.add_note(f"The daemon said:\n{run.log[-3000:]}")
            return error
        print(run.figures)
    return None


def check(seed: int, count: int, nics: int, shrinking: float = SHRINKING) -> None:
    """Fail with the seed and the shortest failing sequence, which `replay` takes."""
    operations = generate(seed, count, nics)
    error = wrong(operations)
    if error is None:
        return
    shortest = shrink(operations[: error.place], lambda part: wrong(part, 3) is not None, shrinking)
    listed = "\n".join(f"    {operation!r}," for operation in shortest)
    raise AssertionError(
        f"seed {seed}, {count} operations, {nics} NICs: {error}\n"
        f"fails so, too ({len(shortest)} operations):\n[\n{listed}\n]\n" + "\n".join(error.__notes__)
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("seed", "nics"), [(20, 12), (21, 30)])
def test_the_host_is_as_wanted_at_every_pause_of_random_operations(
    namespaces: None, seed: int, nics: int
) -> None:
    check(seed, 150, nics)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [int(word) for word in os.environ.get("EVERTAP_SEEDS", "1 2").split()])
def test_the_host_is_as_wanted_at_every_pause_of_ten_thousand_operations(namespaces: None, seed: int) -> None:
    check(seed, 10_000, 50, shrinking=600)


# What random operations have found.


def replay(*operations: Operation) -> None:
    """Carry out a sequence that once failed."""
    if error := wrong([*operations, ("pause",)]):
        raise error


def test_a_macvlan_is_no_uplink_for_the_kernel_would_use_what_it_stands_on(namespaces: None) -> None:
    replay(
        ("define", 2, {"mac": "52:54:00:00:00:02", "uplinks": ["u19", "u9"]}),
        ("add", "u2", 0, True, "", 1500),
        ("foreign", "u19", "u2", "02:00:00:00:0b:01", "bridge"),
        ("up", "u19"),
        ("pause",),
        ("add", "u9", 0, True, "", 1500),
    )


def test_a_macvlan_whose_uplink_went_away_is_not_taken_for_one_on_an_interface_with_its_index(
    namespaces: None,
) -> None:
    replay(
        ("add", "u0", 100, True, "", 1500),
        ("define", 0, {"mac": "52:54:00:00:00:00", "uplinks": ["u0", "u1"], **AT_ONCE}),
        ("define", 1, {"mac": "52:54:00:00:00:01", "uplinks": ["u0"], **AT_ONCE}),
        ("pause",),
        ("kill",),
        ("away", "u0"),
        ("add", "u1", 100, True, "", 1500),
    )


def test_a_tap_that_is_down_is_not_taken_from_the_vm_that_holds_it(namespaces: None) -> None:
    replay(
        ("define", 0, {"mac": "52:54:00:00:00:00", "uplinks": ["u0"], **AT_ONCE}),
        ("hold", 0),
        ("undefine", 0),
        ("meddle", 0, "tap-down"),
    )


def test_the_same_seed_gives_the_same_operations_and_another_others() -> None:
    assert generate(1, 500, 50) == generate(1, 500, 50) != generate(2, 500, 50)


def test_shrinking_finds_the_operations_that_matter() -> None:
    operations = generate(3, 400, 20)
    culprits = [entry for entry in operations if entry[0] in ("swap", "promisc")][-2:]

    def fails(part: list[Operation]) -> bool:
        return all(culprit in part for culprit in culprits)

    began = time.monotonic()
    shortest = shrink(operations, fails, 30)
    assert [entry for entry in shortest if entry != ("pause",)] == culprits
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "otherwise",
    [
        {"mode": "vepa"},
        {"mtu": 1400},
        {"uplinks": ["u2", "u1"]},
        {"uplinks": ["u1"]},
        {"uplinks": ["u1", "u2", "u3"]},
        {"failover": "cold"},
        {"spoof_check": False},
        {"mac": "52:54:00:00:00:03"},
        {"backend": "macvtap"},
    ],
    ids=str,
)
def test_the_judge_sees_what_is_not_as_it_should_be(run: Run, otherwise: dict[str, Any]) -> None:
    assert run.wrong() == []
    assert run.wrong_if(2, otherwise)


@pytest.fixture(scope="module")
def run(namespaces: None) -> Iterator[Run]:
    """NIC 2 is on u1, and stands ready on u2."""
    with Run() as made:
        for name in ("u1", "u2", "u3"):
            made.do("add", name, 0, True, "", 1500)
        made.do("define", 2, {"mac": "52:54:00:00:00:02", "uplinks": ["u1", "u2"], **AT_ONCE})
        made.rest()
        yield made
