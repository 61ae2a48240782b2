"""What a part of the benchmark gives to the report.

Every module of a part has `def run(quick: bool) -> Part`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Figure:
    """One measured value beside its reference (a floor or a peer of the same run) and its goal.

    `ratio` is value / reference; `reached` is None where the goal does not name this figure.
    """

    name: str
    value: float
    unit: str
    reference_label: str = ""
    reference: float | None = None
    goal: str = ""
    reached: bool | None = None

    @property
    def ratio(self) -> float | None:
        return self.value / self.reference if self.reference else None


@dataclass(frozen=True)
class Plot:
    """Lines of (x, y) points, one a label."""

    name: str  # the file's name, without .svg
    title: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float]]]
    log_x: bool = False
    log_y: bool = False


@dataclass
class Part:
    """One part: a table of text cells (`columns` name them, the first is the row's label), figures, plots."""

    name: str
    title: str
    columns: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: bool = False  # it could not be measured


SPREAD = ("p10 ms", "median ms", "p99 ms", "rounds")
"""The lowest tenth shows what is left when other programs of the machine disturb least."""


def p99(values: Sequence[float]) -> float:
    """The 99th percentile (nearest rank: of fewer than 100 values the greatest)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * 99 // 100) - 1)]


def median_p99(values: Sequence[float]) -> tuple[float, float]:
    return median(values), p99(values)


def spread(values: Sequence[float]) -> tuple[str, ...]:
    """Cells for the columns `SPREAD`."""
    ordered = sorted(values)
    tenth = ordered[len(ordered) // 10]
    return (f"{tenth:.3f}", f"{median(ordered):.3f}", f"{p99(ordered):.3f}", str(len(ordered)))


def distribution(values: Sequence[float]) -> list[tuple[float, float]]:
    """Points of a cumulative distribution for a plot: (value, share of values up to it, in percent)."""
    ordered = sorted(values)
    return [(value, 100 * (rank + 1) / len(ordered)) for rank, value in enumerate(ordered)]
