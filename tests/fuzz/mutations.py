"""Inputs for a target: what it starts from, changed in a few places."""

from __future__ import annotations

from random import Random

from tests.fuzz.targets import Target

_EDITS = ("insert", "insert", "delete", "repeat", "flip", "cut", "splice")


def make_input(target: Target, random: Random) -> bytes:
    """Mostly a changed seed; now and then bytes of nothing but words, or any."""
    match random.randint(0, 9):
        case 0:
            return b"".join(random.choice(target.words) for _ in range(random.randint(0, 20)))
        case 1:
            return random.randbytes(random.randint(0, 200))
    data = random.choice(target.seeds)
    for _ in range(random.randint(1, 4)):
        data = _edit(data, target, random)
    return data


def _edit(data: bytes, target: Target, random: Random) -> bytes:
    start = random.randint(0, len(data))
    end = min(len(data), start + random.randint(0, 40))
    match random.choice(_EDITS):
        case "insert":
            return data[:start] + random.choice(target.words) + data[start:]
        case "delete":
            return data[:start] + data[end:]
        case "repeat":
            return data[:end] + data[start:end] * random.randint(1, 3) + data[end:]
        case "flip":
            return data[:start] + random.randbytes(random.randint(1, 2)) + data[start + 1 :]
        case "cut":
            return data[:start]
    other = random.choice(target.seeds)
    return data[:start] + other[random.randint(0, len(other)) :]
