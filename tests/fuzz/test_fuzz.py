"""Each target with inputs of hypothesis, and with those that once were too much."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.fuzz import targets
from tests.fuzz.mutations import make_input
from tests.fuzz.targets import TARGETS

_GROWTH = 64 << 20  # bytes; hypothesis itself takes some
_AT_ONCE = 20


@pytest.fixture(scope="module", autouse=True)
def _servers() -> Iterator[None]:
    yield
    targets.close()


def _fuzz(name: str, examples: int, randoms: st.SearchStrategy[Random], at_once: int = 1) -> None:
    target = TARGETS[name]

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(randoms)
    def each(random: Random) -> None:
        for _ in range(at_once):
            data = make_input(target, random)
            try:
                target.run(data)
            except BaseException:
                note(f"{name}: {data!r}")
                raise

    each()


@pytest.mark.parametrize("name", TARGETS)
def test_what_it_starts_from_is_read(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_read_or_refused(name: str) -> None:
    _fuzz(name, TARGETS[name].inputs // 200, st.randoms(use_true_random=False))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", TARGETS)
def test_very_many_inputs_are_read_or_refused_and_leave_no_memory(name: str) -> None:
    randoms = st.randoms(use_true_random=True)
    _fuzz(name, 100, randoms, _AT_ONCE)
    gc.collect()
    before = _resident()
    _fuzz(name, TARGETS[name].inputs // _AT_ONCE, randoms, _AT_ONCE)
    gc.collect()
    assert _resident() - before < _GROWTH


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
