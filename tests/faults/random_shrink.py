"""The shortest part of a sequence of operations that still fails (delta debugging, ddmin)."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.faults.random_operations import PAUSE, Operation


def shrink(
    operations: list[Operation], fails: Callable[[list[Operation]], bool], seconds: float
) -> list[Operation]:
    """Leave out whatever is not needed to fail, for as long as that takes, and no longer than `seconds`.

    With time enough, all that is left is needed. What does not fail every time is given back whole.
    """
    deadline = time.monotonic() + seconds
    shortest = _latest(operations, fails, deadline)
    if shortest is None:
        return operations
    parts = 2
    while len(shortest) > 1 and time.monotonic() < deadline:
        size = -(-len(shortest) // parts)
        for start in range(0, len(shortest), size):
            rest = shortest[:start] + shortest[start + size :]
            if time.monotonic() < deadline and fails([*rest, PAUSE]):
                shortest, parts = rest, max(parts - 1, 2)
                break
        else:
            if parts >= len(shortest):
                break
            parts = min(2 * parts, len(shortest))
    return [*shortest, PAUSE]


def _latest(
    operations: list[Operation], fails: Callable[[list[Operation]], bool], deadline: float
) -> list[Operation] | None:
    """The last operations that fail, with as few pauses as will do, after the definitions before them."""
    bursts = 1
    places = [place for place, operation in enumerate(operations) if operation == PAUSE]
    while time.monotonic() < deadline:
        start = places[-bursts - 1] + 1 if bursts < len(places) else 0
        last = {op[1]: op for op in operations[:start] if op[0] in ("define", "undefine")}
        before = [operation for operation in operations[:start] if operation[0] in ("add", "bridge")]
        part = [*before, *last.values(), PAUSE, *operations[start:]]
        without = [operation for operation in part if operation != PAUSE]
        for candidate in (without, part):
            if fails([*candidate, PAUSE]):
                return candidate
        if start == 0:
            return None
        bursts *= 4
    return None
