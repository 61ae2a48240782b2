"""Folders that are full, read-only or hold garbage, files half written, a clock that jumps."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from evertap.api.client import Client
from evertap.lab.errors import LabError
from evertap.lab.netns import Namespace
from evertap.lab.wires import Lab
from evertap.model.errors import EvertapError

from .refusing_stage import MAC, AskedTrial, definition, eventually

FULL = "No space left on device"
READ_ONLY = "Read-only file system"
SMALL = "size=64k"


class FolderTrial(AskedTrial):
    """Folders can be file systems of their own, which the daemon sees, and the test by `there`."""

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(namespace)
        self._host = namespace
        self.there = Path(f"/proc/{namespace.pid}/root{self.path}")

    @property
    def daemon_command(self) -> list[str]:
        python, _, _, *arguments = super().daemon_command
        return [python, "-m", "tests.faults.clock_daemon", str(self.path / "clock"), *arguments]

    def mount(self, folder: str) -> None:
        """Give a folder a small file system of its own."""
        path = self.path / folder
        path.mkdir(parents=True, exist_ok=True)
        self._host.run("mount", "-t", "tmpfs", "-o", f"mode=755,{SMALL}", "tmpfs", str(path))

    def spoil(self, folder: str, way: str) -> None:
        """Make it full or read-only."""
        if way == READ_ONLY:
            self._host.run("mount", "-o", "remount,ro", str(self.path / folder))
            return
        with (self.there / folder / "ballast").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                assert error.strerror == FULL  # noqa: PT017

    def spoil_state(self, way: str) -> None:
        """Spoil the state folder; read-only, it can only be for a new daemon: this one writes its history."""
        if way == READ_ONLY:
            self.kill()
        self.spoil("state", way)
        if way == READ_ONLY:
            self.start()

    def mend(self, folder: str, way: str) -> None:
        """Undo `spoil`."""
        if way == READ_ONLY:
            self._host.run("mount", "-o", "remount,rw", str(self.path / folder))
        else:
            (self.there / folder / "ballast").unlink()

    def set_clock(self, seconds: float) -> None:
        """How far off the daemon's wall clock is."""
        (self.path / "clock.new").write_text(str(seconds))
        (self.path / "clock.new").replace(self.path / "clock")

    def restart(self) -> None:
        """As after a crash."""
        self.kill()
        self.start()

    def connected(self, name: str, uplink: str) -> bool:
        """Whether the NIC is connected there."""
        nic = self.nic(name)
        return (nic.state, nic.uplink) == ("connected", uplink)


@pytest.fixture
def trial(lab: Lab) -> Iterator[FolderTrial]:
    lab.uplink("eth0")
    lab.uplink("eth1")
    with FolderTrial(lab.host) as made:
        yield made
        assert "Traceback" not in made.log, made.log


def files(folder: Path) -> dict[str, str]:
    """What the files of a folder hold."""
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("way", [FULL, READ_ONLY])
def test_definitions_that_cannot_be_written_stay_whole_and_in_force(trial: FolderTrial, way: str) -> None:
    trial.mount("config")
    trial.start()
    good = definition("eth0", more="# " + "x" * 5000)
    trial.ask(lambda client: client.define({"web0": good}))
    trial.wait("web0", "connected")
    nics_d = trial.there / "config" / "nics.d"
    trial.spoil("config", way)
    other = {
        "web0": definition("eth1", more="# " + "y" * 9000),
        "db0": definition("eth0", mac="52:54:00:00:00:02"),
    }
    for change in (
        lambda client: client.define(other),
        lambda client: client.retarget("web0", ["eth1"]),
        *([lambda client: client.undefine(["web0"])] if way == READ_ONLY else []),
    ):
        with pytest.raises(EvertapError, match=f"config/nics.d.*{way}. Nothing was changed"):
            trial.ask(change)
        assert files(nics_d) == {"web0.toml": good}
        assert trial.connected("web0", "eth0")
    # What needs no file goes on.
    trial.ask(lambda client: client.retarget("web0", ["eth1"], live=True))
    eventually(lambda: trial.connected("web0", "eth1"), "retargeted live")
    trial.ask(lambda client: client.disconnect("web0"))
    trial.restart()
    assert trial.nic("web0").state == "disconnected"
    trial.ask(lambda client: client.connect("web0"))
    eventually(lambda: trial.connected("web0", "eth1"), "connected as it was retargeted")
    trial.mend("config", way)
    trial.ask(lambda client: client.define(other))
    assert files(nics_d) == {f"{name}.toml": text for name, text in other.items()}
    trial.ask(lambda client: client.undefine(["db0"]))
    assert list(files(nics_d)) == ["web0.toml"]


def test_on_a_full_disk_a_definition_can_be_removed(trial: FolderTrial) -> None:
    trial.mount("config")
    trial.start()
    trial.ask(lambda client: client.define({"web0": definition("eth0")}))
    trial.spoil("config", FULL)
    trial.ask(lambda client: client.undefine(["web0"]))
    assert trial.ask(Client.nics) == []
    assert list(files(trial.there / "config" / "nics.d")) == []


@pytest.mark.parametrize("way", [FULL, READ_ONLY])
def test_a_state_folder_that_cannot_be_written_is_told_and_costs_only_what_it_would_have_held(
    trial: FolderTrial, way: str
) -> None:
    trial.mount("state")
    trial.start()
    trial.ask(lambda client: client.define({"web0": definition("eth0")}))
    trial.spoil_state(way)
    for uplink in ("eth1", "eth0"):
        _retarget(trial, uplink)
    copy = trial.there / "state" / "accepted" / "web0.toml"
    before = copy.read_text()
    longer = definition("eth0", more="# " + "x" * 9000)
    trial.ask(lambda client: client.define({"web0": longer}))
    number = errno.ENOSPC if way == FULL else errno.EROFS
    assert f"copies of the last good definitions cannot be kept: [Errno {number}] {way}" in trial.log
    assert copy.read_text() == before, "the older copy is whole"
    eventually(lambda: "WARNING history: " in trial.log, "the history's trouble is told")
    trial.restart()
    eventually(lambda: trial.connected("web0", "eth0"), "as its file says")
    # The last good one is in force while the daemon runs, with no copy of it.
    (trial.nics_d / "web0.toml").write_text("mac = ")
    eventually(lambda: "is not TOML" in trial.nic("web0").problem, "the problem is told")
    assert trial.connected("web0", "eth0")
    trial.mend("state", way)
    trial.ask(lambda client: client.define({"db0": definition("eth0", mac="52:54:00:00:00:02")}))
    assert copy.read_text() == longer, "the copy is kept at the next occasion"
    (trial.nics_d / "web0.toml").write_text(longer)
    eventually(lambda: not trial.nic("web0").problem, "mended")
    _retarget(trial, "eth1")
    eventually(lambda: "retargeted" in _kept(trial), "the history is kept again")


def _retarget(trial: FolderTrial, uplink: str) -> None:
    trial.ask(lambda client: client.retarget("web0", [uplink]))
    eventually(lambda: trial.connected("web0", uplink), f"on {uplink}")


def _kept(trial: FolderTrial) -> list[str]:
    return [event.event for event in trial.ask(lambda client: client.nic_history("web0"))]


@pytest.mark.parametrize("way", [FULL, READ_ONLY])
def test_what_is_said_for_the_running_state_is_refused_if_it_cannot_be_kept(
    trial: FolderTrial, way: str
) -> None:
    trial.mount("runtime/live")
    trial.start()
    trial.ask(lambda client: client.define({"web0": definition("eth0", "eth1")}))
    trial.wait("web0", "connected")
    trial.spoil("runtime/live", way)
    for change in (
        lambda client: client.disconnect("web0"),
        lambda client: client.retarget("web0", ["eth1"], live=True),
    ):
        with pytest.raises(EvertapError, match=f"runtime/live/web0.json: cannot be written: {way}"):
            trial.ask(change)
        assert trial.connected("web0", "eth0")
    trial.mend("runtime/live", way)
    trial.ask(lambda client: client.disconnect("web0"))
    assert trial.nic("web0").state == "disconnected"
    trial.spoil("runtime/live", way)
    if way == READ_ONLY:
        with pytest.raises(EvertapError, match=way):
            trial.ask(lambda client: client.connect("web0"))
        assert trial.nic("web0").state == "disconnected"
    # A NIC that goes leaves no word behind, or it is said.
    trial.ask(lambda client: client.undefine(["web0"]))
    assert trial.ask(Client.nics) == []
    assert (way == FULL) != (f"web0.json: cannot be written: {way}" in trial.log)


def test_a_read_only_runtime_folder_is_said_in_a_line(trial: FolderTrial) -> None:
    trial.mount("runtime")
    trial.spoil("runtime", READ_ONLY)
    with pytest.raises(LabError, match=f"(?m)^evertap: .*runtime.*{READ_ONLY}"):
        trial.start()


def test_a_domain_that_cannot_be_remembered_gets_its_nic_nevertheless(trial: FolderTrial) -> None:
    trial.mount("state")
    trial.spoil("state", READ_ONLY)
    trial.start()
    xml = f"""<domain type='kvm'><name>vm1</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
        <metadata><e:nics xmlns:e='urn:evertap:1'><e:nic mac='{MAC}'><e:uplink name='eth0'/></e:nic></e:nics>
        </metadata><devices><interface type='ethernet'><mac address='{MAC}'/>
        <target dev='web0' managed='no'/></interface></devices></domain>"""
    trial.ask(lambda client: client.prepare_domain(xml))
    assert trial.nic("web0").tap == "web0"
    assert "domain vm1 is forgotten when the daemon restarts" in trial.log


def test_a_definition_half_written_waits_for_its_other_half(trial: FolderTrial) -> None:
    trial.start()
    good, better = definition("eth0"), definition("eth1")
    trial.ask(lambda client: client.define({"web0": good}))
    file = trial.nics_d / "web0.toml"
    for size in (0, 3, len(better) // 2, len(better) - 4):
        file.write_text(better[:size])
        eventually(lambda: trial.nic("web0").problem, f"the problem of {size} bytes is told")
        assert trial.connected("web0", "eth0")
        assert str(file) in trial.run("show", "web0")
        assert [bool(nic["problem"]) for nic in trial.json("list")] == [True]
        assert file.read_text() == better[:size], "a definition is never written over"
        if size == 3:
            trial.restart()
            assert trial.connected("web0", "eth0")
            with pytest.raises(EvertapError, match=re.escape(str(file))):
                trial.ask(lambda client: client.retarget("web0", ["eth1"]))
            assert file.read_text() == better[:size]
        file.write_text(good)
        eventually(lambda: not trial.nic("web0").problem, "mended")
    file.write_text(better)
    eventually(lambda: trial.connected("web0", "eth1"), "whole, and in force")


def test_garbage_in_the_state_and_runtime_folders_is_told_and_left_aside(trial: FolderTrial) -> None:
    trial.nics_d.mkdir(parents=True)
    (trial.nics_d / "web0.toml").write_text(definition("eth0"))
    garbage = os.urandom(300)
    placed = [
        "state/accepted/web0.toml",
        "state/accepted/gone0.toml",
        "state/domains/4dea22b3-1d52-d8f3-2516-782e98ab3fa0.json",
        "state/domains/x.json",
        "runtime/live/web0.json",
        "runtime/live/other.json",
        "state/history.db",
    ]
    for name in placed:
        path = trial.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(garbage)
    (trial.path / "state/accepted/folder.toml").mkdir()
    (trial.path / "runtime/live/folder.json").mkdir()
    (trial.path / "state/domains/folder.json").mkdir()
    trial.start()
    trial.wait("web0", "connected")
    for said in (
        "accepted/web0.toml: is not",
        "accepted/gone0.toml: is not",
        "accepted/folder.toml: found a folder",
        "4dea22b3-1d52-d8f3-2516-782e98ab3fa0.json is left aside",
        "x.json is left aside",
        "folder.json is left aside",
        "running state of NIC web0 is lost",
        "history.db",
    ):
        assert said in trial.log, f"{said} is not in\n{trial.log}"
    assert [nic.name for nic in trial.ask(Client.nics)] == ["web0"]
    trial.ask(lambda client: client.disconnect("web0"))
    trial.restart()
    assert trial.nic("web0").state == "disconnected"


def test_a_clock_that_jumps_changes_no_order_no_count_and_no_duration(lab: Lab, trial: FolderTrial) -> None:
    trial.start()
    trial.ask(lambda client: client.define({"web0": definition("eth0")}))
    trial.wait("web0", "connected")
    jumps = (6 * 3600, -30 * 86400, 400 * 86400, -3600)
    for seconds in jumps:
        began = time.monotonic()
        lab.remove("eth0")
        trial.wait("web0", "waiting")
        trial.set_clock(seconds)
        lab.uplink("eth0")
        trial.wait("web0", "connected")
        ended = time.monotonic()
        nic = trial.nic("web0")
        since = datetime.fromisoformat(nic.since)
        assert abs(since.timestamp() - time.time() - seconds) < 60
        last = trial.ask(lambda client: client.history("web0"))[-1]
        assert last.event == "connected"
        assert last.outage_seconds is not None
        assert 0 <= last.outage_seconds <= ended - began
        assert last.latency_ms is not None
        assert 0 <= last.latency_ms <= (ended - began) * 1000
    assert trial.nic("web0").outages == len(jumps)
    order = ["defined", "connected", *["waiting", "connected"] * len(jumps)]
    assert [event.event for event in trial.ask(lambda client: client.history("web0"))] == order
    trial.stop()
    trial.start()
    kept = trial.ask(lambda client: client.nic_history("web0"))
    assert [event.event for event in kept] == order
    assert all(event.outage_seconds is None or event.outage_seconds >= 0 for event in kept)
    assert trial.run("history", "web0")
    assert trial.run("show", "web0")
