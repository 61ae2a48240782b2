"""The history's file: order, bounds, and every state in which a disk can leave it."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evertap.engine.ports import Kept, Last
from evertap.history import file as history_file
from evertap.history.file import HistoryFile
from evertap.model.errors import EvertapError
from evertap.model.views import EventView

SOURCES = Path(__file__).parents[2] / "src"


def kept(number: int, nic: str = "web0", since: float | None = None, **changes: object) -> Kept:
    fields = {"time": f"2026-11-22T10:00:00.{number:06d}+00:00", "nic": nic, "event": "connected"}
    fields |= {"uplink": "eth0", "reason": f"{number}"}
    return Kept(EventView(**fields | changes), since)  # type: ignore[arg-type]


def reasons(history: HistoryFile, nic: str = "web0", limit: int = 500) -> list[str]:
    return [event.reason for event in history.page(nic, None, limit).events]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.db"


@pytest.fixture
def history(path: Path) -> Iterator[HistoryFile]:
    made = HistoryFile(path)
    yield made
    made.close()


def test_what_is_kept_is_there_for_the_next_daemon_and_for_nobody_else(path: Path) -> None:
    first = HistoryFile(path)
    whole = EventView("2026-11-22T10:00:00.000001+00:00", "web0", "connected", "eth0", "why", 0.25, 12.5)
    first.append([Kept(whole, None), kept(2, "web1", since=7.5, event="waiting", uplink=None)])
    first.close()
    second = HistoryFile(path)
    assert second.page("web0", None, 10).events == [whole]
    assert second.page("web2", None, 10).events == []
    assert second.last() == {
        "web0": Last("connected", "eth0", None, True),
        "web1": Last("waiting", None, 7.5, True),
    }
    second.close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["history.db"]


def test_the_order_is_that_of_the_events_whatever_the_clock_did(history: HistoryFile) -> None:
    history.append([kept(1, time="2026-11-22T10:00:00.000000+00:00")])
    history.append([kept(2, time="1970-01-01T00:00:00.000000+00:00")])
    history.append([kept(3, time="2026-11-22T09:00:00.000000+00:00")])
    assert reasons(history) == ["1", "2", "3"]


def test_pages_follow_each_other_without_a_gap(history: HistoryFile) -> None:
    history.append([kept(number, f"web{number % 2}") for number in range(25)])
    found: list[str] = []
    before: int | None = None
    while True:
        page = history.page("web1", before, 5)
        found[:0] = [event.reason for event in page.events]
        before = page.earlier
        if before is None:
            break
    assert found == [str(number) for number in range(25) if number % 2]


def test_the_last_of_a_nic_is_of_this_boot_or_another(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = HistoryFile(path)
    before.append([kept(1, since=7.5), kept(2, "web1")])
    before.close()
    monkeypatch.setattr(history_file, "_boot", lambda: 5)
    after = HistoryFile(path)
    after.append([kept(3, "web1")])
    assert after.last() == {
        "web0": Last("connected", "eth0", 7.5, False),
        "web1": Last("connected", "eth0", None, True),
    }
    after.close()


def test_the_oldest_go_first_of_one_nic_and_of_all(
    history: HistoryFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_file, "NIC_EVENTS_MAX", 10)
    monkeypatch.setattr(history_file, "EVENTS_MAX", 25)
    for start in range(0, 100, 7):
        history.append([kept(number) for number in range(start, start + 7)])
    assert reasons(history) == [str(number) for number in range(95, 105)]
    history.append([kept(number, f"vm{number}") for number in range(20)])
    assert reasons(history) == ["100", "101", "102", "103", "104"]
    history.append([kept(number, f"vm{number}") for number in range(20, 44)])
    assert reasons(history) == []
    assert reasons(history, "vm18") == []
    assert reasons(history, "vm19") == ["19"]
    history.close()
    again = HistoryFile(path)
    again.append([kept(44, "vm44")])  # it counts what it finds
    assert len(again.last()) == 25
    again.close()


def test_the_file_does_not_outgrow_its_bound(
    history: HistoryFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_file, "SIZE_MAX", 200_000)
    for start in range(0, 4000, 50):
        history.append(
            [kept(n, f"vm{n % 100}", reason=f"{n} " + "x" * 900) for n in range(start, start + 50)]
        )
    history.close()
    assert path.stat().st_size < 300_000
    last = history.page("vm99", None, 1).events[0].reason
    assert last.startswith("3999 xxx")
    assert len(last) == history_file.REASON_MAX
    history.close()


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(20_000))


def torn(path: Path) -> None:
    """A sound file of which the disk has lost all but the first page."""
    history = HistoryFile(path)
    history.append([kept(number, reason="x" * 200) for number in range(900)])
    history.close()
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE songs (name TEXT)")
    db.close()


@pytest.mark.parametrize("spoil", [garbage, torn, foreign])
def test_a_damaged_or_foreign_file_is_moved_aside_and_a_new_one_begun(
    history: HistoryFile, path: Path, spoil: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(spoil)
    path.parent.mkdir()
    (path.parent / "history.db.bad-wal").write_text("of an earlier one")
    spoil(path)
    bad = path.read_bytes()
    history.append([kept(1)])
    assert reasons(history) == ["1"]
    assert path.with_name("history.db.bad").read_bytes() == bad
    assert not (path.parent / "history.db.bad-wal").exists()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "moved to history.db.bad" in caplog.text


def test_damage_that_comes_while_it_is_open_is_noticed_and_overcome(history: HistoryFile, path: Path) -> None:
    history.append([kept(number, reason="x" * 200) for number in range(900)])
    history.close()  # else what is read comes from memory
    assert len(reasons(history, limit=1)) == 1
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (len(data) - 4096))
    history.append([kept(number, "web1") for number in range(100)])
    assert reasons(history) == []
    assert len(reasons(history, "web1")) == 100


def test_a_file_of_a_newer_evertap_is_left_as_it_is(history: HistoryFile, path: Path) -> None:
    history.append([kept(1)])
    history.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    data = path.read_bytes()
    for _ in range(2):
        with pytest.raises(EvertapError, match=r"newer evertap \(schema 2, known is 1\)"):
            history.append([kept(2)])
    with pytest.raises(EvertapError, match="newer"):
        history.page("web0", None, 1)
    assert path.read_bytes() == data
    path.unlink()
    history.append([kept(3)])
    assert reasons(history) == ["3"]


def test_a_file_that_was_taken_away_is_begun_anew(history: HistoryFile, path: Path) -> None:
    history.append([kept(1)])
    path.unlink()
    history.append([kept(2)])
    assert reasons(history) == ["2"]
    assert path.exists()


def test_what_is_no_file_is_refused_and_waits_for_nobody(history: HistoryFile, path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)
    with pytest.raises(EvertapError, match=r"history.db: is not a regular file. Move history.db away"):
        history.append([kept(1)])
    path.unlink()
    elsewhere = path.with_name("elsewhere")
    path.symlink_to(elsewhere)
    with pytest.raises(EvertapError, match="symbolic link"):
        history.append([kept(1)])
    assert not elsewhere.exists()
    path.unlink()
    path.mkdir()
    with pytest.raises(EvertapError, match="directory"):
        history.append([kept(1)])


def test_a_file_that_another_program_holds_is_had_when_it_lets_go(
    history: HistoryFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_file, "_BUSY", 0.05)
    history.append([kept(1)])
    history.close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(EvertapError, match="database is locked"):
        history.append([kept(2)])
    holder.close()
    history.append([kept(3)])
    assert reasons(history) == ["1", "3"]


def test_names_that_are_no_text_are_kept_readably(history: HistoryFile) -> None:
    history.append([kept(1, uplink="eth\udcff", reason="eth\udcff: is down")])
    event = history.page("web0", None, 1).events[0]
    assert (event.uplink, event.reason) == ("eth\\udcff", "eth\\udcff: is down")


WRITER = """
import sys
from pathlib import Path
from evertap.engine.ports import Kept
from evertap.history import file
from evertap.model.views import EventView
file.NIC_EVENTS_MAX = 20000
history = file.HistoryFile(Path(sys.argv[1]))
# More than SQLite's cache holds: there is writing from the beginning to the end.
events = [Kept(EventView("t", "web0", "waiting", None, "x" * 500), None)] * 10000
while True:
    history.append(events)
    print(".", end="", flush=True)
"""


def test_a_kill_at_any_time_leaves_a_sound_file_and_whole_batches(path: Path) -> None:
    dice = random.Random(5)
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            env=os.environ | {"PYTHONPATH": str(SOURCES)},
            stdout=subprocess.PIPE,
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.read(1) == b"."
            time.sleep(dice.uniform(0.02, 0.2))
            writer.kill()
        db = sqlite3.connect(path)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        count, first, last = db.execute("SELECT count(*), min(seq), max(seq) FROM events").fetchone()
        db.close()
        assert count == last - first + 1 == min(last, 20_000)
        assert last % 10_000 == 0
    assert [file.name for file in path.parent.iterdir()] == ["history.db"]
