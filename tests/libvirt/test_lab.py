"""The libvirtd of our own: it leaves nothing, and there may be several."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from evertap.lab.libvirtd import Libvirtd
from evertap.lab.netns import Namespace
from tests.libvirt.conftest import Blank
from tests.libvirt.following import until_now

SOURCES = Path(__file__).parents[2] / "src"

KILLED = """
import os, signal
from evertap.lab.libvirtd import Libvirtd
from evertap.lab.netns import Namespace

with Namespace("killed") as namespace, Libvirtd(namespace) as libvirtd:
    libvirtd.start()
    libvirtd.create(libvirtd.domain_xml("killed"), "--paused")
    print(libvirtd.path, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def traces(folder: str) -> list[str]:
    """Processes that name the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if folder in line:
            found.append(line)
    return found


def test_nothing_is_left_of_a_killed_process(namespaces: None, libvirtd: Libvirtd) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED],
        env=os.environ | {"PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    folder = done.stdout.strip()
    assert folder, done.stderr
    until_now(lambda: not Path(folder).exists() and not traces(folder))


def test_two_do_not_see_each_other_and_closing_ends_the_domains(libvirtd: Libvirtd, paused: Blank) -> None:
    before = time.monotonic()
    with Namespace("second") as namespace, Libvirtd(namespace) as second:
        second.start()
        assert second.virsh("list", "--all", "--name").strip() == ""
        second.create(second.domain_xml("blank"), "--paused")
        second.pause()
        folder = str(second.path)
        assert traces(folder)
        before = time.monotonic()
    assert time.monotonic() - before < 3
    until_now(lambda: not traces(folder))
    assert libvirtd.virsh("domstate", "blank").strip() == "paused"
