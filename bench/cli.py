"""How long commands take, from the start of their process to its end."""

from __future__ import annotations

import subprocess
import sys
import time

from bench.fleet import connected_fleet
from bench.part import Figure, Part, median_p99

TITLE = "Commands, whole process"
HELP_GOAL = 0.15
LIST_GOAL = 0.4
"""Seconds."""


def run(quick: bool) -> Part:
    """Measure and judge."""
    count, rounds = (100, 5) if quick else (1000, 25)
    trial = connected_fleet(count).trial
    base, help_, list_ = "python -c pass", "evertap --help", f"evertap list, {count} NICs"
    commands = {
        base: [sys.executable, "-c", "pass"],
        help_: [*trial.command, "--help"],
        list_: [*trial.command, "list"],
        f"evertap list --json, {count} NICs": [*trial.command, "list", "--json"],
        "evertap show": [*trial.command, "show", "vm0"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            started = time.monotonic()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(time.monotonic() - started)
    part = Part("cli", TITLE, ("command", "median s", "p99 s"))
    middle = {}
    for name, values in times.items():
        middle[name], high = median_p99(values)
        part.rows.append((name, f"{middle[name]:.3f}", f"{high:.3f}"))
    for name, limit in ((help_, HELP_GOAL), (list_, LIST_GOAL)):
        goal = f"at most {limit:g} s"
        part.figures.append(Figure(name, middle[name], "s", base, middle[base], goal, middle[name] <= limit))
    return part
