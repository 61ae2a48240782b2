"""What a real bash offers on a tab, by the packaged file, and that all packaged pages are current."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.api.fake import FakeService
from tests.cli.conftest import SRC, Shell

_PACKAGING = SRC.parent / "packaging"
_BASH = shutil.which("bash") or ""
_OFFERED = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_TYPE=9
_evertap_completion evertap 2>&1
printf '%s\\n' "${COMPREPLY[@]}"
"""

pytestmark = pytest.mark.skipif(not _BASH, reason="bash is not installed")


@pytest.fixture
def environment(evertap: Shell) -> dict[str, str]:
    """With `evertap` in the PATH."""
    tools = evertap.folder / "bin"
    tools.mkdir()
    (tools / "evertap").write_text(f'#!/bin/sh\nexec {sys.executable} -m evertap "$@"\n')
    (tools / "evertap").chmod(0o755)
    return evertap.environment | {"PATH": f"{tools}:{os.environ['PATH']}"}


def _offered(environment: dict[str, str], *words: str) -> list[str]:
    """What bash offers for the last word."""
    command = [_BASH, "--norc", "-c", _OFFERED, "bash", str(_PACKAGING / "completion/bash/evertap"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.split()


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("evertap", "show", "w"), ["web0", "web1"]),
        (("evertap", "undefine", "web0", ""), ["web1"]),
        (("evertap", "run", "--nic", "web"), ["web0", "web1"]),
        (("evertap", "retarget", "web0", "e"), ["eth0"]),
        (("evertap", "wait", "web0", "--for", "c"), ["connected"]),
    ],
)
def test_names_and_states(environment: dict[str, str], words: tuple[str, ...], offered: list[str]) -> None:
    assert _offered(environment, *words) == offered


def test_without_a_daemon_nothing_is_said(environment: dict[str, str]) -> None:
    assert _offered(environment, "evertap", "show", "") == []


def test_the_runtime_folder_on_the_line_counts(environment: dict[str, str], service: FakeService) -> None:
    there = environment.pop("EVERTAP_RUNTIME_DIR")
    assert _offered(environment, "evertap", f"--runtime-dir={there}", "show", "") == ["web0", "web1"]


def test_the_tab_key_itself(environment: dict[str, str], service: FakeService) -> None:
    ours, theirs = pty.openpty()
    shell = [_BASH, "--norc", "--noprofile", "-i"]
    try:
        with subprocess.Popen(
            shell, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        ) as process:
            os.write(ours, f"source {_PACKAGING}/completion/bash/evertap\n".encode())
            os.write(ours, b"evertap undefine web0 w\t")
            seen = b""
            deadline = time.monotonic() + 20
            while b"web0 web1" not in seen and time.monotonic() < deadline:
                if select.select([ours], [], [], 1)[0]:
                    seen += os.read(ours, 4096)
            process.kill()
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"undefine web0 web1" in seen


@pytest.mark.parametrize(("shell", "file"), [("zsh", "zsh/_evertap"), ("fish", "fish/evertap.fish")])
def test_other_shells_can_read_theirs(shell: str, file: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([program, "-n", str(_PACKAGING / "completion" / file)], check=True, timeout=30)


def test_pages_are_current(tmp_path: Path) -> None:
    maker = SRC.parent / "tools/pages.py"
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    subprocess.run([sys.executable, str(maker), str(tmp_path)], env=environment, check=True, timeout=30)
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(made) == 6
    for path, text in made.items():
        assert (_PACKAGING / path).read_text() == text, f"{path}: run python tools/pages.py"


@pytest.mark.parametrize("page", sorted(path.name for path in (_PACKAGING / "man").iterdir()))
def test_pages_are_well_formed(page: str) -> None:
    if shutil.which("man") is None:
        pytest.skip("man is not installed")
    command = ["man", "--warnings", "-E", "UTF-8", "-l", str(_PACKAGING / "man" / page)]
    environment = os.environ | {"LC_ALL": "C.UTF-8", "MANWIDTH": "80"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=30)
    assert done.stderr == ""
    assert "SEE ALSO" in done.stdout
