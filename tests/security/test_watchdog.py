"""What systemd hears of the daemon: that it is ready, that its loop turns, and that it stops."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evertap import systemd
from evertap.lab.trial import Trial
from evertap.lab.wires import Lab

from . import unit


@pytest.fixture
def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield made


def test_systemd_hears_of_start_life_and_end(
    lab: Lab, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    with Trial(lab.host) as trial:
        trial.start()
        heard = [listening.recv(100) for _ in range(4)]
        assert trial.stop() == 0
        listening.setblocking(False)
        last = b""
        while True:
            try:
                last = listening.recv(100)
            except BlockingIOError:
                break
    assert heard == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"WATCHDOG=1"]
    assert last == b"STOPPING=1"


def heard_of(listening: socket.socket, seconds: float) -> int:
    """How often systemd heard of a loop that turns for so long, and then hangs for as long."""

    async def life() -> None:
        with systemd.watchdog():
            await asyncio.sleep(seconds)
            time.sleep(seconds)  # noqa: ASYNC251

    asyncio.run(life())
    listening.setblocking(False)
    number = 0
    while True:
        try:
            assert listening.recv(100) == b"WATCHDOG=1"
        except BlockingIOError:
            return number
        number += 1


def test_a_loop_that_hangs_is_not_heard_of(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert 2 <= heard_of(listening, 0.35) <= 5


@pytest.mark.parametrize(
    ("name", "value"), [("WATCHDOG_USEC", ""), ("WATCHDOG_USEC", "0"), ("WATCHDOG_PID", "1")]
)
def test_where_nobody_watches_nothing_wakes_the_daemon(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv(name, value)
    assert heard_of(listening, 0.1) == 0


def test_the_units_watchdog_wakes_an_idle_daemon_once_a_minute_at_most() -> None:
    ((interval,),) = unit.values("WatchdogSec")
    assert interval == "2min"
