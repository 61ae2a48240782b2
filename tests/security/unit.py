"""What evertap.service says, read from the file that is shipped."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "packaging" / "systemd" / "evertap.service"

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def values(key: str) -> list[list[str]]:
    """The words of each assignment of a key."""
    lines = UNIT.read_text().splitlines()
    return [line.partition("=")[2].split() for line in lines if line.startswith(f"{key}=")]


def capabilities() -> list[str]:
    """As setpriv names them."""
    (bounding,), (ambient,) = values("CapabilityBoundingSet"), values("AmbientCapabilities")
    assert bounding == ambient
    return [name.removeprefix("CAP_").lower() for name in bounding]


def system_calls() -> set[str]:
    """The system calls that SystemCallFilter= leaves (systemd.exec(5))."""
    allowed: set[str] = set()
    for words in values("SystemCallFilter"):
        named = {call for word in words for call in _members(word.removeprefix("~"))}
        allowed = allowed - named if words[0].startswith("~") else allowed | named
    # Those that systemd always allows.
    return allowed | _members("@default")


def system_call_numbers() -> list[int]:
    """Their numbers on this machine; others have some of the calls under other names."""
    text = subprocess.run(
        ["gcc", "-E", "-dM", "-"],
        input="#include <sys/syscall.h>",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", text))
    return sorted(int(numbers[call]) for call in system_calls() if call in numbers)


@functools.cache
def _members(name: str) -> frozenset[str]:
    """The calls of a set like @system-service, which may have sets in it; of a call, itself."""
    if not name.startswith("@"):
        return frozenset((name,))
    lines = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    members = [line.strip() for line in lines[1:] if line.startswith("    ") and "#" not in line]
    return frozenset(call for member in members for call in _members(member))
