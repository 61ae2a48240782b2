"""Takes turns: every system once a round, so that what disturbs one disturbs all."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Final

from bench.observer import DisturbedError

ATTEMPTS: Final = 50
"""How often a disturbed measurement is made again."""


class Rounds:
    """Milliseconds of every measurement, by system, and how many had to be made again."""

    def __init__(self, systems: Mapping[str, Callable[[], float]]) -> None:
        self._systems = dict(systems)
        self.times: dict[str, list[float]] = {name: [] for name in systems}
        self.disturbed = 0

    def run(self, count: int, warm_up: int = 0) -> None:
        """Measure so often, in another order each time; the first `warm_up` do not count."""
        for number in range(count + warm_up):
            for name in random.sample(list(self._systems), len(self._systems)):
                took = self.measure(self._systems[name])
                if number >= warm_up:
                    self.times[name].append(1000 * took)

    def measure(self, one: Callable[[], float]) -> float:
        """One measurement, in seconds. DisturbedError if every attempt was disturbed."""
        for _ in range(ATTEMPTS):
            try:
                return one()
            except DisturbedError:
                self.disturbed += 1
        raise DisturbedError("the machine is too busy with other programs; measure again later")

    @property
    def note(self) -> str:
        """For the report."""
        return (
            f"{self.disturbed} measurements were made again: other programs had kept the watcher from "
            "looking at the moment when the clock was to start."
        )
