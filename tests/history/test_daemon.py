"""The history of a real daemon, over kills, restarts and disks in trouble."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from evertap.api.client import connect
from evertap.lab.netns import Namespace
from evertap.lab.trial import Trial
from evertap.lab.wires import Lab
from evertap.model.views import EventView

WEB0 = 'mac = "52:54:00:00:02:01"\nuplinks = ["eth0"]\n'


@pytest.fixture
def trial(lab: Lab) -> Iterator[Trial]:
    """Not started yet."""
    with Trial(lab.host) as made:
        yield made
        assert "Traceback" not in made.log, made.log


def told(trial: Trial) -> list[tuple[str, str | None]]:
    """Without the tenth of a second that a command takes to start."""

    async def asking() -> list[EventView]:
        async with connect(trial.path / "runtime") as client:
            return await client.nic_history("web0")

    return [(event.event, event.uplink) for event in asyncio.run(asking())]


def last_written(trial: Trial) -> str:
    """The last event on the disk, of a copy: the daemon has the file for itself."""
    with tempfile.TemporaryDirectory() as folder:
        for file in (trial.path / "state").glob("history.db*"):
            shutil.copy(file, folder)
        with closing(sqlite3.connect(Path(folder) / "history.db")) as db, suppress(sqlite3.Error):
            for (event,) in db.execute("SELECT event FROM events ORDER BY seq DESC LIMIT 1"):
                return str(event)
    return ""


def test_an_outage_over_a_kill_is_one_and_has_its_whole_length(lab: Lab, trial: Trial) -> None:
    trial.start()
    lab.uplink("eth0")
    trial.define("web0", WEB0)
    trial.wait("web0", "connected")
    lab.remove("eth0")
    trial.wait("web0", "waiting")
    began = time.monotonic()
    while last_written(trial) != "waiting":  # a second later, by itself
        assert time.monotonic() < began + 20
        time.sleep(0.1)
    trial.kill()
    trial.start()
    trial.wait("web0", "waiting")
    atleast = time.monotonic() - began
    lab.uplink("eth0")
    trial.wait("web0", "connected")
    events = trial.json("history", "web0")
    atmost = time.monotonic() - began + 0.2
    expected = [("defined", None), ("connected", "eth0"), ("waiting", None), ("connected", "eth0")]
    assert told(trial) == expected
    assert list(events[3]) == ["time", "nic", "event", "uplink", "reason", "latency_ms", "outage_seconds"]
    assert atleast < events[3]["outage_seconds"] < atmost
    assert "outage_seconds" not in events[1]
    assert events[2]["reason"].startswith("eth0: ")
    # `events` tells of this daemon's life alone.
    assert len(trial.events("web0")) == 3
    # A gentle end loses nothing, even of the last second; and what is defined no more has its history still.
    lab.remove("eth0")
    trial.wait("web0", "waiting")
    assert trial.stop() == 0
    (trial.nics_d / "web0.toml").unlink()
    trial.start()
    assert told(trial) == [*expected, ("waiting", None), ("undefined", None)]
    assert trial.try_run("history", "web1").returncode == 4
    assert [line for line in trial.log.splitlines() if "history" in line] == []


def mount(namespace: Namespace, folder: Path, options: str) -> None:
    folder.mkdir(exist_ok=True)
    namespace.run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder))


def test_with_a_disk_that_is_full_or_read_only_the_daemon_works_on_and_loses_nothing(
    lab: Lab, trial: Trial
) -> None:
    state = trial.path / "state"
    mount(lab.host, state, "size=64k,mode=755")
    lab.host.run("dd", "if=/dev/zero", f"of={state}/rest", "bs=4k", check=False)
    trial.start()
    trial.define("web0", WEB0)
    lab.uplink("eth0")
    trial.wait("web0", "connected")
    assert trial.log.count("history: ") == 1
    assert "history.db: database or disk is full. Events are not kept until this is mended" in trial.log
    lab.host.run("mount", "-o", "remount,size=10m", str(state))
    expected = [("defined", None), ("waiting", None), ("connected", "eth0")]
    assert told(trial) == expected
    assert "history: kept again" in trial.log
    # The same where nothing can be written at all.
    trial.stop()
    lab.host.run("mount", "-o", "remount,ro", str(state))
    trial.start()
    lab.remove("eth0")
    trial.wait("web0", "waiting")
    refused = trial.try_run("history", "web0")
    assert refused.returncode == 1
    assert "history.db: Read-only file system" in refused.stderr
    lab.host.run("mount", "-o", "remount,rw", str(state))
    # This daemon could not know what the last one left.
    assert told(trial) == [*expected, ("defined", None), ("connected", "eth0"), ("waiting", None)]
    assert trial.log.count("WARNING history: ") == 2
