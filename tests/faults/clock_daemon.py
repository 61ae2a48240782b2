"""A daemon whose wall clock is off by the seconds that stand in a file, read anew at every look at it."""

from __future__ import annotations

import datetime as datetimes
import sys
import time
from pathlib import Path
from typing import Any

from evertap.cli.main import main as evertap


def main(file: str, *arguments: str) -> None:
    """Run `evertap` with these arguments."""
    real_time, real_datetime = time.time, datetimes.datetime

    def off() -> float:
        try:
            return float(Path(file).read_text())
        except FileNotFoundError:
            return 0.0

    class Datetime(datetimes.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return real_datetime.now(tz) + datetimes.timedelta(seconds=off())

    time.time = lambda: real_time() + off()
    time.time_ns = lambda: int(time.time() * 1e9)
    datetimes.datetime = Datetime  # type: ignore[misc]
    sys.argv = ["evertap", *arguments]
    evertap()


if __name__ == "__main__":
    main(*sys.argv[1:])
