"""The command as a person starts it, against a daemon that serves a fake."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.fake import FakeService, served, view

SRC = Path(__file__).parents[2] / "src"


class Shell:
    """Runs `evertap` with the folders of one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime = folder / "run"

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "PYTHONPATH": str(SRC),
            "PYTHONWARNINGS": "error",
            "EVERTAP_CONFIG_DIR": str(self.folder / "etc"),
            "EVERTAP_RUNTIME_DIR": str(self.runtime),
            "EVERTAP_STATE_DIR": str(self.folder / "lib"),
            "COLUMNS": "100",
        }

    def start(self, *arguments: str, **how: int) -> subprocess.Popen[str]:
        """Start it and go on."""
        return subprocess.Popen(
            [sys.executable, "-m", "evertap", *arguments],
            env=self.environment,
            cwd=self.folder,
            text=True,
            stdout=how.get("stdout", subprocess.PIPE),
            stderr=subprocess.PIPE,
        )

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Run it to its end: exit code, output, errors."""
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=30)
        return process.returncode, out, err


@pytest.fixture
def evertap(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def service(evertap: Shell) -> Iterator[FakeService]:
    fake = FakeService(view("web0"), view("web1", state="waiting", uplink=None, tap=None))
    with served(fake, evertap.runtime):
        yield fake
