"""Fuzzing led by coverage, where atheris is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

_ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed"),
]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", TARGETS)
def test_very_many_inputs_led_by_coverage_find_nothing(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, str(TARGETS[name].inputs), str(tmp_path)],
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": f"{_ROOT / 'src'}:{_ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        check=False,
    )
    found = [path.read_bytes() for path in tmp_path.iterdir() if re.match("crash|timeout|oom", path.name)]
    assert (done.returncode, found) == (0, []), done.stdout[-5000:]
    print(name, *re.findall(r"DONE.*|stat::.*", done.stdout))
