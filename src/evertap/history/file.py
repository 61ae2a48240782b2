"""The history's file: a small SQLite database with bounds (engine.ports.History).

Write-ahead logging: a daemon that is killed at any point leaves a sound file, and a batch needs no fsync
(4 MB of changes do). A host that loses its power may lose what the kernel had not yet written, some 30 s.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from evertap.engine.ports import Kept, Last
from evertap.model.errors import EvertapError
from evertap.model.views import EventView, HistoryPage

EVENTS_MAX: Final = 100_000
NIC_EVENTS_MAX: Final = 1_000
SIZE_MAX: Final = 32 * 1024 * 1024  # bytes
REASON_MAX: Final = 500  # characters

_LOG_MAX: Final = 4 * 1024 * 1024  # bytes of the write-ahead log that are kept for use again
_ID: Final = 0x65767470  # application_id: "evtp"
_SCHEMA: Final = 1
_BUSY: Final = 1.0  # seconds

_TABLES: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order; clocks may jump
    nic TEXT NOT NULL,
    time TEXT NOT NULL,
    event TEXT NOT NULL,
    uplink TEXT,
    reason TEXT NOT NULL,
    latency_ms REAL,
    seconds REAL,   -- without an uplink, where that ended
    since REAL,     -- CLOCK_MONOTONIC of the boot, while it lasts
    boot INTEGER NOT NULL
);
CREATE INDEX of_nic ON events (nic, seq);
PRAGMA application_id = {_ID};
PRAGMA user_version = {_SCHEMA};
COMMIT;
"""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class _NotOursError(Exception):
    """The file is no history of evertap's."""


class HistoryFile:
    """The history in one file. Of no use to two processes at once, nor to two threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._file = (0, 0)  # device and inode of what is open
        self._count = 0  # of events
        self._boot = _boot()

    def last(self) -> dict[str, Last]:
        """The last event of every NIC."""
        rows = self._do(
            lambda db: db.execute(
                "SELECT nic, event, uplink, since, boot FROM events"
                " WHERE seq IN (SELECT max(seq) FROM events GROUP BY nic)"
            ).fetchall()
        )
        return {
            nic: Last(event, uplink, since, boot == self._boot) for nic, event, uplink, since, boot in rows
        }

    def append(self, events: Sequence[Kept]) -> None:
        """Keep events, all or none; the oldest go where there are too many."""
        rows = [self._row(kept) for kept in events]
        self._do(lambda db: self._append(db, rows))

    def page(self, nic: str, before: int | None, limit: int) -> HistoryPage:
        """At most `limit` of a NIC's events: the last, or the last before a page's `earlier`."""
        rows = self._do(
            lambda db: db.execute(
                "SELECT seq, time, nic, event, uplink, reason, latency_ms, seconds FROM events"
                " WHERE nic = ? AND seq < ? ORDER BY seq DESC LIMIT ?",
                (_text(nic), 2**63 - 1 if before is None else before, limit),
            ).fetchall()
        )
        earlier = rows[-1][0] if len(rows) == limit else None
        return HistoryPage([EventView(*row[1:]) for row in reversed(rows)], earlier)

    def close(self) -> None:
        """End. A later call opens the file anew."""
        db, self._db = self._db, None
        if db:
            with suppress(sqlite3.Error):
                db.close()

    def _row(self, kept: Kept) -> tuple[str | float | None, ...]:
        event = kept.event
        reason = event.reason if len(event.reason) <= REASON_MAX else event.reason[: REASON_MAX - 1] + "…"
        return (
            _text(event.nic),
            event.time,
            event.event,
            None if event.uplink is None else _text(event.uplink),
            _text(reason),
            event.latency_ms,
            event.outage_seconds,
            kept.since,
            self._boot,
        )

    def _append(self, db: sqlite3.Connection, rows: Sequence[tuple[str | float | None, ...]]) -> None:
        db.execute("BEGIN IMMEDIATE")
        db.executemany(
            "INSERT INTO events (nic, time, event, uplink, reason, latency_ms, seconds, since, boot)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        count = self._count + len(rows)
        for nic in {row[0] for row in rows}:
            count -= db.execute(
                "DELETE FROM events WHERE nic = ?1 AND seq <="
                " (SELECT seq FROM events WHERE nic = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
                (nic, NIC_EVENTS_MAX),
            ).rowcount
        count -= _drop_oldest(db, count - EVENTS_MAX)
        while _size(db) > SIZE_MAX and count:
            count -= _drop_oldest(db, count // 20 + 1)
        db.execute("COMMIT")
        self._count = count

    def _do(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do the work on the open file; on a new one, if this one is damaged or not ours (EvertapError)."""
        try:
            try:
                return work(self._open())
            except (sqlite3.DatabaseError, _NotOursError) as error:
                if not _is_beyond_use(error):
                    raise
                self._move_aside(error)
                return work(self._open())
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise EvertapError(
                f"{self._path}: {getattr(error, 'strerror', None) or error}. Events are not kept until "
                "this is mended; the daemon tries again by itself"
            ) from error
        except BaseException:
            self.close()
            raise

    def _open(self) -> sqlite3.Connection:
        if self._db and self._is_there():
            return self._db
        self.close()
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._make_file()
        self._db = db = sqlite3.connect(
            self._path, timeout=_BUSY, isolation_level=None, check_same_thread=False
        )
        # Nobody else has it open, which saves the shared memory and a lock for each batch.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._check(db)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA journal_size_limit = {_LOG_MAX}")
        if not _number(db, "PRAGMA user_version"):
            db.executescript(_TABLES)
        self._count = _number(db, "SELECT count(*) FROM events")
        return db

    def _is_there(self) -> bool:
        """Whether the file that is open is still the one of that name."""
        with suppress(OSError):
            status = self._path.stat()
            return (status.st_dev, status.st_ino) == self._file
        return False

    def _make_file(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"is not a regular file. Move {self._path.name} away")
        self._file = (status.st_dev, status.st_ino)

    def _check(self, db: sqlite3.Connection) -> None:
        identity = _number(db, "PRAGMA application_id")
        version = _number(db, "PRAGMA user_version")
        if identity == _ID and version > _SCHEMA:
            raise EvertapError(
                f"{self._path}: written by a newer evertap (schema {version}, known is {_SCHEMA}), and left "
                "as it is. Start the newer evertap, or move the file away"
            )
        if identity != _ID and (identity or version or _number(db, "SELECT count(*) FROM sqlite_master")):
            raise _NotOursError("it is a database of another program")

    def _move_aside(self, error: Exception) -> None:
        self.close()
        bad = self._path.with_name(self._path.name + ".bad")
        for suffix in ("-wal", "-shm", "-journal", ""):  # a log must never be found beside another file
            Path(f"{bad}{suffix}").unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                Path(f"{self._path}{suffix}").rename(f"{bad}{suffix}")
        _log.warning("history: %s: %s; moved to %s, and begun anew", self._path, error, bad.name)


def _is_beyond_use(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest tells details
    return isinstance(error, _NotOursError) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _drop_oldest(db: sqlite3.Connection, number: int) -> int:
    if number <= 0:
        return 0
    return db.execute(
        "DELETE FROM events WHERE seq IN (SELECT seq FROM events ORDER BY seq LIMIT ?)", (number,)
    ).rowcount


def _size(db: sqlite3.Connection) -> int:
    """Bytes that are in use; what is free in the file is used again."""
    pages = _number(db, "PRAGMA page_count") - _number(db, "PRAGMA freelist_count")
    return pages * _number(db, "PRAGMA page_size")


def _number(db: sqlite3.Connection, question: str) -> int:
    return int(db.execute(question).fetchone()[0])


def _text(text: str) -> str:
    """Interfaces may have names that are not text, which SQLite does not take."""
    return text.encode("utf-8", "backslashreplace").decode()


def _boot() -> int:
    """A number that is another each time the host starts (60 bits: SQLite's integers are signed)."""
    return int(Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", "")[:15], 16)
