"""The pinned Python packages: whole, with hashes, and watched over by tools/audit."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(ROOT.glob("constraints*.txt"))


def test_every_pin_has_hashes_and_no_file_names_a_host() -> None:
    assert {path.name for path in FILES} >= {
        "constraints.txt",
        "constraints-runtime.txt",
        "constraints-build.txt",
    }
    for path in FILES:
        text = path.read_text()
        assert "://" not in text
        for pin in re.split(r"\n(?=\S)", text.strip()):
            assert re.match(
                r"[\w.-]+==[\w.]+( ; [^\\]+)? \\\n( +--hash=sha256:[0-9a-f]{64}( \\\n)?)+$", pin
            ), pin


def without_a_hash(text: str) -> str:
    return re.sub(r"(rich==\S+) (\\\n +--hash=\S+( |$))+", r"\1\n", text)


def with_any_version(text: str) -> str:
    return re.sub(r"rich==", "rich>=", text)


def too_old_and_incomplete(text: str) -> str:
    return re.sub(r"(?m)^click==(.*\\\n)+.*\n", "", re.sub(r"rich==[\d.]+", "rich==1.0", text))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (without_a_hash, "rich has no SHA-256"),
        (with_any_version, "rich>=.* is no exact version"),
        (
            too_old_and_incomplete,
            r"(?s)click is not pinned for runtime: run tools/pin.*rich: ==1.0 is pinned, >=13.0 is asked for",
        ),
    ],
)
def test_the_audit_finds(tmp_path: Path, damage: Callable[[str], str], told: str) -> None:
    for path in (*FILES, ROOT / "pyproject.toml"):
        shutil.copy(path, tmp_path)
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "audit", tmp_path / "tools")
    runtime = tmp_path / "constraints-runtime.txt"
    assert damage(runtime.read_text()) != runtime.read_text()
    runtime.write_text(damage(runtime.read_text()))
    done = subprocess.run(
        [sys.executable, tmp_path / "tools" / "audit"], capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert re.search(told, done.stderr), done.stderr
