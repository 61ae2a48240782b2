"""Where the files are that come with evertap for others' folders."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Final

_PLACES: Final = (Path(sys.prefix) / "share/evertap", Path(__file__).parents[3] / "packaging")


def install(name: str, target: str, then: str) -> str:
    """The command that installs evertap's file `name`, say "udev/70-evertap.rules", as `target`."""
    place = next((place / name for place in _PLACES if (place / name).exists()), Path("packaging") / name)
    return f"install -D -m 644 {shlex.quote(str(place))} {target} && {then}"
