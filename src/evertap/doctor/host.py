"""The host as the checks see it: its files, its programs, its interfaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from evertap.kernel.rtnetlink import Rtnetlink
from evertap.model.links import Link

_PATIENCE: Final = 5.0
"""Seconds for a program to answer; a libvirtd that hangs must not stop the doctor."""


class Answer(NamedTuple):
    """What a program said: its exit code, its output, its errors. Code 127: it is not installed."""

    code: int
    output: str
    errors: str = ""


class Host:
    """The real host. `root` is where its files are looked for: tests have a folder of their own."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def path(self, name: str) -> Path:
        """The file with that absolute name."""
        return self._root / name.removeprefix("/")

    def read(self, name: str) -> str:
        """The file's text; empty if there is none, or none for us."""
        try:
            return self.path(name).read_text(errors="replace")
        except OSError:
            return ""

    def list(self, *folders: str) -> dict[str, Path]:
        """Files by name. An earlier folder's hide a later one's."""
        found: dict[str, Path] = {}
        for folder in folders:
            try:
                for path in self.path(folder).iterdir():
                    found.setdefault(path.name, path)
            except OSError:
                continue
        return dict(sorted(found.items()))

    def run(self, *command: str) -> Answer:
        """Run a program that changes nothing."""
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=_PATIENCE,
                check=False,
                text=True,
                errors="replace",
                env=os.environ | {"LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired:
            return Answer(124, "", f"{command[0]} has not answered for {_PATIENCE:g} s")
        except OSError as error:
            return Answer(127, "", f"{command[0]}: {error.strerror}")
        return Answer(done.returncode, done.stdout.strip(), done.stderr.strip())

    @property
    def is_root(self) -> bool:
        """Whether the doctor is root."""
        return os.geteuid() == 0

    @cached_property
    def processes(self) -> frozenset[str]:
        """Names of the programs that run, as far as they can be seen, cut at 15 characters (proc(5))."""
        return frozenset(self._processes())

    def runs(self, program: str) -> bool:
        """Whether a program of this name runs."""
        return program[:15] in self.processes

    def _processes(self) -> Iterator[str]:
        for folder in self.path("/proc").glob("[0-9]*"):
            try:
                yield (folder / "comm").read_text(errors="replace").strip()
            except OSError:  # it has ended
                continue

    @cached_property
    def links(self) -> Sequence[Link]:
        """The interfaces."""
        with Rtnetlink() as rtnetlink:
            return rtnetlink.dump_links()

    @cached_property
    def trials(self) -> dict[str, Any]:
        """What the kernel said to tries in a network namespace of a child's own (see probe.py)."""
        try:
            done = subprocess.run(
                [sys.executable, "-m", "evertap.doctor.probe"],
                capture_output=True,
                timeout=4 * _PATIENCE,
                check=True,
                text=True,
            )
            trials = json.loads(done.stdout)
        except subprocess.CalledProcessError as error:
            return {"namespace": f"the child failed: {error.stderr.strip().splitlines()[-1:]}"}
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            return {"namespace": str(error)}
        assert isinstance(trials, dict)
        return trials
