"""What happened to the NICs, when and why; in memory, bounded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final

from evertap.model.errors import EvertapError
from evertap.model.views import EventView

_KEPT: Final = 10_000
_UNREAD: Final = 1_000


def timestamp() -> str:
    """The time now as the JSON output gives it: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Journal:
    """The last events of all NICs, and those who follow them."""

    def __init__(self) -> None:
        self._events: deque[EventView] = deque(maxlen=_KEPT)
        self._followers: set[asyncio.Queue[EventView | None]] = set()

    def record(
        self, nic: str, event: str, uplink: str | None, reason: str, latency: float | None = None
    ) -> None:
        """Note an event; `latency` in seconds."""
        latency_ms = None if latency is None else round(latency * 1000, 3)
        entry = EventView(timestamp(), nic, event, uplink, reason, latency_ms)
        self._events.append(entry)
        for queue in list(self._followers):
            if queue.qsize() >= _UNREAD:
                self._followers.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(entry)

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
