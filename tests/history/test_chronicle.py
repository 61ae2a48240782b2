"""The journal's way into the history: over restarts, and with a disk that fails or hangs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from evertap.engine import chronicle as chronicling
from evertap.engine import journal as journalling
from evertap.engine.chronicle import Chronicle
from evertap.engine.journal import Journal
from evertap.engine.ports import Kept
from evertap.history import file as history_file
from evertap.history.file import HistoryFile
from evertap.model.errors import EvertapError
from evertap.model.views import EventView, HistoryPage

Told = list[tuple[str, str | None]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


async def told(journal: Journal, nic: str = "web0") -> Told:
    assert journal.chronicle
    return [(event.event, event.uplink) for event in (await journal.chronicle.page(nic, None, 500)).events]


def daemon(path: Path, body: Callable[[Journal], Awaitable[None]]) -> None:
    """One daemon's life."""

    async def main() -> None:
        chronicle = Chronicle(HistoryFile(path))
        await chronicle.start()
        try:
            await body(Journal(chronicle))
        finally:
            await chronicle.close()

    asyncio.run(main())


def test_what_a_daemon_finds_as_it_was_is_not_told_again(path: Path) -> None:
    async def first(journal: Journal) -> None:
        for name in ("web0", "web1", "web2"):
            journal.record(name, "defined", None, "")
        journal.record("web0", "connected", "eth0", "", 0.001)
        journal.record("web0", "failover", "eth1", "", 0.001)
        journal.record("web1", "connected", "eth0", "")
        journal.record("web2", "disconnected", None, "")

    async def second(journal: Journal) -> None:
        for name in ("web0", "web1", "web2", "web3"):
            journal.record(name, "defined", None, "")
        journal.record("web0", "connected", "eth1", "")
        journal.record("web1", "connected", "eth5", "")
        journal.record("web2", "disconnected", None, "")
        assert await told(journal) == [("defined", None), ("connected", "eth0"), ("failover", "eth1")]
        assert await told(journal, "web1") == [
            ("defined", None),
            ("connected", "eth0"),
            ("connected", "eth5"),
        ]
        assert await told(journal, "web2") == [("defined", None), ("disconnected", None)]
        assert await told(journal, "web3") == [("defined", None)]
        # From then on all is news.
        journal.record("web0", "connected", "eth1", "")
        journal.record("web0", "undefined", None, "")
        journal.record("web0", "defined", None, "")
        assert (await told(journal))[-3:] == [("connected", "eth1"), ("undefined", None), ("defined", None)]
        assert len(journal.events("web1")) == 2

    daemon(path, first)
    daemon(path, second)


def test_after_a_boot_a_state_is_told_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def life(journal: Journal) -> None:
        journal.record("web0", "defined", None, "")
        journal.record("web0", "waiting", None, "")

    async def after(journal: Journal) -> None:
        await life(journal)
        assert await told(journal) == [("defined", None), ("waiting", None), ("waiting", None)]
        # How long it was before the boot is not known, nor of interest: no guest was there.
        assert journal.without("web0") < 60

    monkeypatch.setattr(history_file, "_boot", lambda: 5)
    daemon(path, life)
    monkeypatch.setattr(history_file, "_boot", lambda: 6)
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 1000)
    daemon(path, after)


def test_a_nic_that_lost_its_definition_while_no_daemon_ran_is_told_of_once(path: Path) -> None:
    async def first(journal: Journal) -> None:
        journal.record("web0", "defined", None, "")
        journal.record("web0", "waiting", None, "")
        journal.record("web1", "defined", None, "")

    async def later(journal: Journal) -> None:
        journal.record("web1", "defined", None, "")
        journal.take_leave({"web1"})
        assert await told(journal) == [("defined", None), ("waiting", None), ("undefined", None)]
        assert await told(journal, "web1") == [("defined", None)]

    daemon(path, first)
    daemon(path, later)
    daemon(path, later)


def test_an_outage_goes_on_over_a_restart_and_is_measured_by_no_clock_that_jumps(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    wall = ["2026-11-22T10:00:00.000000+00:00"]
    monkeypatch.setattr(journalling, "timestamp", lambda: wall[0])

    async def first(journal: Journal) -> None:
        journal.record("web0", "connected", "eth0", "")
        clock[0] += 5
        journal.record("web0", "failed", None, "refused")
        clock[0] += 1
        journal.record("web0", "waiting", None, "")
        clock[0] += 10
        assert journal.without("web0") == 11

    async def second(journal: Journal) -> None:
        assert journal.without("web0") == 0  # since this daemon's start
        journal.record("web0", "waiting", None, "")
        clock[0] += 3
        assert journal.without("web0") == 3
        wall[0] = "1970-01-01T00:00:00.000000+00:00"
        journal.record("web0", "connected", "eth0", "", 0.002)
        clock[0] += 7
        assert journal.without("web0") == 3
        assert journal.chronicle
        events = (await journal.chronicle.page("web0", None, 10)).events
        assert [event.event for event in events] == ["connected", "failed", "waiting", "connected"]
        assert [event.outage_seconds for event in events] == [None, None, None, 16.0]
        assert journal.outages.read().sum == 16
        assert journal.latencies.read().sum == 0.002

    daemon(path, first)
    clock[0] += 2
    daemon(path, second)


def test_time_without_an_uplink_ends_with_a_connection_or_with_the_wish_for_one() -> None:
    async def body() -> None:
        journal = Journal()
        for end in ("connected", "disconnected", "undefined"):
            journal.record("web0", "waiting", None, "")
            journal.record("web0", end, None, "", 0.001)
            journal.record("web0", end, None, "", 0.001)
        ended = [event.outage_seconds is not None for event in journal.events("web0")]
        assert ended == [False, True, False] * 3
        assert sum(journal.outages.read().counts) == 3
        # What is found connected, or made on a command, is no measure of following the host.
        before = sum(journal.latencies.read().counts)
        journal.record("web1", "connected", "eth0", "", 0.001)
        assert sum(journal.latencies.read().counts) == before
        journal.record("web1", "failover", "eth1", "", 0.001)
        assert sum(journal.latencies.read().counts) == before + 1

    asyncio.run(body())


class Disk:
    """A history on a disk with faults."""

    def __init__(self) -> None:
        self.kept: list[EventView] = []
        self.broken = False
        self.stuck = threading.Event()
        self.stuck.set()

    def last(self) -> dict[str, object]:
        return {}

    def append(self, events: Sequence[Kept]) -> None:
        self.stuck.wait(20)
        if self.broken:
            raise EvertapError("the disk is full")
        self.kept += [kept.event for kept in events]

    def page(self, nic: str, before: int | None, limit: int) -> HistoryPage:
        return HistoryPage([event for event in self.kept if event.nic == nic][-limit:], None)

    def close(self) -> None:
        pass


def on_disk(body: Callable[[Disk, Chronicle, Journal], Awaitable[None]]) -> None:
    async def main() -> None:
        disk = Disk()
        chronicle = Chronicle(disk)  # type: ignore[arg-type]
        await chronicle.start()
        try:
            await body(disk, chronicle, Journal(chronicle))
        finally:
            disk.stuck.set()
            await chronicle.close()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_a_full_disk_is_told_once_and_nothing_is_lost_once_there_is_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chronicling, "_DELAY", 0.01)
    monkeypatch.setattr(chronicling, "_RETRY", 0.05)
    caplog.set_level("INFO")

    async def body(disk: Disk, chronicle: Chronicle, journal: Journal) -> None:
        disk.broken = True
        for number in range(50):
            journal.record("web0", "waiting", None, f"{number}")
            await asyncio.sleep(0.005)
        assert disk.kept == []
        journal.record("web1", "waiting", None, "another NIC's")
        page = await chronicle.page("web0", None, 10)  # the disk does not take it, but it is known
        assert [event.reason for event in page.events] == [f"{number}" for number in range(50)]
        disk.broken = False
        await until(lambda: len(disk.kept) == 51)
        disk.kept.pop()
        assert [event.reason for event in disk.kept] == [f"{number}" for number in range(50)]
        assert chronicle.lost == 0
        assert caplog.messages == ["history: the disk is full", "history: kept again"]

    on_disk(body)


def test_a_hung_disk_holds_nobody_up_and_takes_no_more_memory_than_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chronicling, "_DELAY", 0.01)
    monkeypatch.setattr(chronicling, "_PENDING", 100)
    monkeypatch.setattr(chronicling, "_PATIENCE", 0.1)

    async def body(disk: Disk, chronicle: Chronicle, journal: Journal) -> None:
        disk.stuck.clear()
        journal.record("web0", "waiting", None, "first")
        await until(lambda: not chronicle._pending)  # it is being written
        for number in range(150):
            journal.record("web0", "waiting", None, f"{number}")
        assert chronicle.lost == 50
        with pytest.raises(EvertapError, match=r"has not answered for 0.1 s"):
            await chronicle.page("web0", None, 10)
        assert disk.kept == []
        disk.stuck.set()
        await until(lambda: len(disk.kept) == 101)
        assert [event.reason for event in disk.kept] == ["first"] + [f"{n}" for n in range(50, 150)]
        assert chronicle.lost == 50

    on_disk(body)


def test_what_cannot_be_kept_within_bounds_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chronicling, "_DELAY", 0.01)
    monkeypatch.setattr(chronicling, "_RETRY", 0.05)
    monkeypatch.setattr(chronicling, "_PENDING", 10)

    async def body(disk: Disk, chronicle: Chronicle, journal: Journal) -> None:
        disk.broken = True
        disk.stuck.clear()
        for number in range(8):
            journal.record("web0", "waiting", None, f"{number}")
        await until(lambda: not chronicle._pending)  # these eight are being written
        for number in range(8, 16):
            journal.record("web0", "waiting", None, f"{number}")
        disk.stuck.set()
        await until(lambda: chronicle.lost == 6)
        disk.broken = False
        await until(lambda: bool(disk.kept))
        assert [event.reason for event in disk.kept] == [f"{number}" for number in range(6, 16)]

    on_disk(body)


def test_a_defect_costs_what_it_met_and_nothing_after(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chronicling, "_DELAY", 0.01)

    async def body(disk: Disk, chronicle: Chronicle, journal: Journal) -> None:
        with monkeypatch.context() as defect:
            defect.setattr(disk, "append", lambda events: events.no_such_method())
            journal.record("web0", "waiting", None, "1")
            await until(lambda: chronicle.lost == 1)
        journal.record("web0", "waiting", None, "2")
        await until(lambda: bool(disk.kept))
        assert [event.reason for event in disk.kept] == ["2"]
        assert "no_such_method" in caplog.text

    on_disk(body)


def test_a_burst_is_written_at_once_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chronicling, "_DELAY", 0.1)

    async def body(disk: Disk, chronicle: Chronicle, journal: Journal) -> None:
        writes: list[int] = []
        monkeypatch.setattr(disk, "append", lambda events: writes.append(len(events)))
        for number in range(4000):
            journal.record(f"vm{number}", "waiting", None, "")
        assert writes == []
        await until(lambda: bool(writes))
        assert writes == [4000]
        await asyncio.sleep(0.05)  # the thread has done it, and the loop knows
        journal.record("web0", "waiting", None, "")
        await until(lambda: len(writes) > 1)
        assert writes == [4000, 1]

    on_disk(body)
