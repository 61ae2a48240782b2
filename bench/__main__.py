"""Measures evertap against floor and peers: python -m bench [--quick] [PART ...]"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import traceback
from pathlib import Path

from bench.part import Part
from bench.report import print_part, write

PARTS = ("connect", "failover", "scale", "memory", "start", "events", "cli", "backends", "small_frames")
OUT = Path(__file__).parent / "out"


def run_part(name: str, quick: bool) -> Part:
    """Measure one part; one that breaks is reported and does not end the run."""
    started, load = time.monotonic(), os.getloadavg()[0]
    print(f"{name} …", file=sys.stderr, flush=True)
    try:
        part: Part = importlib.import_module(f"bench.{name}").run(quick)
    except Exception as error:
        traceback.print_exc()
        part = Part(name, name, notes=[f"not measured: {error!r}"], failed=True)
    took = time.monotonic() - started
    part.notes.append(f"Took {took:.0f} s. Load average {load:.1f} before, {os.getloadavg()[0]:.1f} after.")
    return part


def main() -> int:
    """Run the parts named on the command line, or all."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that it works")
    parser.add_argument("part", nargs="*", help=", ".join(PARTS))
    arguments = parser.parse_args()
    if unknown := set(arguments.part) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    parts = []
    for name in arguments.part or PARTS:
        parts.append(run_part(name, arguments.quick))
        print_part(parts[-1])
        write(parts, OUT)
    print(f"\nreport: {OUT / 'report.md'}")
    return 1 if any(part.failed for part in parts) else 0


if __name__ == "__main__":
    sys.exit(main())
