"""What happened to the NICs, when and why: the last of it in memory, all of it handed to the history."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import Final

from evertap.engine.chronicle import Chronicle
from evertap.engine.ports import Distribution, Last
from evertap.model.errors import EvertapError
from evertap.model.views import EventView

_KEPT: Final = 10_000
_UNREAD: Final = 1_000

_WITHOUT: Final = frozenset(("waiting", "failed"))
_WITH: Final = frozenset(("connected", "failover", "failback", "retargeted", "disconnected", "undefined"))
"""Events after which a NIC has an uplink, or wants none."""

_LATENCIES: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_OUTAGES: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800, 7200, 86400)


def timestamp() -> str:
    """The time now as the JSON output gives it: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Tally:
    """Counts durations, in seconds, by ranges."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def read(self) -> Distribution:
        """What was counted so far."""
        return Distribution(self._bounds, tuple(self._counts), self._sum)


class Journal:
    """The last events of all NICs, those who follow them, and how long each NIC was without an uplink."""

    def __init__(self, chronicle: Chronicle | None = None) -> None:
        self.chronicle = chronicle
        self.counted: Counter[str] = Counter()
        """Events, by kind."""
        self.latencies = Tally(_LATENCIES)
        self.outages = Tally(_OUTAGES)
        self._events: deque[EventView] = deque(maxlen=_KEPT)
        self._followers: set[asyncio.Queue[EventView | None]] = set()
        self._since: dict[str, float] = {}  # NICs without an uplink, by CLOCK_MONOTONIC
        self._over: dict[str, float] = {}  # seconds of the times that are over
        if chronicle:
            self._resume(chronicle.last)

    def _resume(self, last: Mapping[str, Last]) -> None:
        """Take up since when NICs are without an uplink, of what the daemon before has left."""
        now = time.monotonic()
        for nic, was in last.items():
            if was.same_boot and was.since is not None and was.since <= now:
                self._since[nic] = was.since
                self._over[nic] = was.since - now  # `without` counts from this daemon's start

    def take_leave(self, defined: Set[str]) -> None:
        """Note of NICs that the daemon before had, and that are not `defined` now, that they have gone."""
        for nic, was in list(self.chronicle.last.items() if self.chronicle else ()):
            if nic not in defined and was.event != "undefined":
                self.record(nic, "undefined", None, "its definition was removed while no daemon ran")

    def record(
        self, nic: str, event: str, uplink: str | None, reason: str, latency: float | None = None
    ) -> None:
        """Note an event; `latency` in seconds."""
        latency_ms = None if latency is None else round(latency * 1000, 3)
        outage = self._outage(nic, event)
        entry = EventView(timestamp(), nic, event, uplink, reason, latency_ms, outage)
        self._events.append(entry)
        self.counted[event] += 1
        # What a daemon finds connected, or makes on a command, does not say how quickly it follows the host.
        if latency is not None and (outage is not None or event != "connected"):
            self.latencies.add(latency)
        if self.chronicle:
            self.chronicle.note(entry, self._since.get(nic))
        for queue in list(self._followers):
            if queue.qsize() >= _UNREAD:
                self._followers.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(entry)

    def _outage(self, nic: str, event: str) -> float | None:
        """Keep count of the time without an uplink; how long it was, in seconds, where it ends."""
        if event in _WITHOUT:
            self._since.setdefault(nic, time.monotonic())
            return None
        if event not in _WITH:
            return None
        since = self._since.pop(nic, None)
        outage = None
        if since is not None:
            outage = round(time.monotonic() - since, 6)
            self.outages.add(outage)
            self._over[nic] = self._over.get(nic, 0.0) + outage
        if event == "undefined":
            self._over.pop(nic, None)
        return outage

    def without(self, nic: str) -> float:
        """How long the NIC was without an uplink since the daemon started, in seconds."""
        since = self._since.get(nic)
        return self._over.get(nic, 0.0) + (0.0 if since is None else time.monotonic() - since)

    def events(self, nic: str | None) -> list[EventView]:
        """The events of one NIC, or of all, oldest first."""
        return [event for event in self._events if nic is None or event.nic == nic]

    async def follow(self, nic: str | None) -> AsyncIterator[EventView]:
        """Events from now on. EvertapError for a reader that leaves more than 1,000 unread."""
        queue: asyncio.Queue[EventView | None] = asyncio.Queue()
        self._followers.add(queue)
        try:
            while event := await queue.get():
                if nic is None or event.nic == nic:
                    yield event
            raise EvertapError("events came faster than they were read; follow again")
        finally:
            self._followers.discard(queue)
