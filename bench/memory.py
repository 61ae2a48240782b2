"""What the daemon takes of the host while nothing happens: memory, and wake-ups."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from bench.fleet import Fleet, connected_fleet
from bench.part import Figure, Part

TITLE = "Memory, and idling"
GOAL = 60
"""MB resident."""
IDLE = 20
"""Seconds."""

_OWN_SIZE = "print(open('/proc/self/status').read())"


def run(quick: bool) -> Part:
    """Measure and judge."""
    count, seconds = (100, 5) if quick else (1000, IDLE)
    bare = resident(subprocess.run([sys.executable, "-c", _OWN_SIZE], capture_output=True, text=True).stdout)
    with Fleet(["up0"]) as empty:
        small = resident(status(empty.trial.pid))
    fleet = connected_fleet(count)
    size = resident(status(fleet.trial.pid))
    before = wake_ups(fleet.trial.pid)
    time.sleep(seconds)
    woken = wake_ups(fleet.trial.pid) - before
    part = Part("memory", TITLE, ("process", "resident MB"))
    part.rows = [
        ("an interpreter", f"{bare:.1f}"),
        ("evertap without NICs", f"{small:.1f}"),
        (f"evertap with {count} NICs", f"{size:.1f}"),
    ]
    goal = f"at most {GOAL} MB"
    part.figures = [
        Figure(f"resident with {count} NICs", size, "MB", "no NICs", small, goal, size <= GOAL),
        Figure(f"wake-ups in {seconds} s", woken, "", goal="none", reached=woken == 0),
    ]
    part.notes.append("Wake-ups are the context switches of all of the daemon's threads, of either kind.")
    return part


def status(pid: int) -> str:
    """What the kernel says of a process or thread."""
    return Path(f"/proc/{pid}/status").read_text()


def field(text: str, name: str) -> int:
    """One number of it."""
    return int(next(line for line in text.splitlines() if line.startswith(f"{name}:")).split()[1])


def resident(text: str) -> float:
    """MB resident."""
    return field(text, "VmRSS") * 1024 / 1e6


def wake_ups(pid: int) -> int:
    """How often any thread of the process has gone to sleep or was interrupted."""
    texts = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    kinds = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
    return sum(field(text, kind) for text in texts for kind in kinds)
