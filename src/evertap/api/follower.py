"""A bounded buffer between the daemon's events and a client that may be slow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final

from evertap.model.views import EventView

KEPT: Final = 1000
"""Events that wait for a slow client; of more, the oldest are dropped, and a `lost` event says how many."""


async def buffered(
    source: AsyncIterator[EventView], over: asyncio.Future[None], kept: int = KEPT
) -> AsyncIterator[EventView]:
    """The events of `source` until it ends or `over` is done. Never holds `source` up."""
    waiting: deque[EventView] = deque(maxlen=kept)
    more = asyncio.Event()
    lost = 0

    async def take() -> None:
        nonlocal lost
        async for event in source:
            lost += len(waiting) == kept
            waiting.append(event)
            more.set()

    def wake(_: object) -> None:
        more.set()

    taking = asyncio.ensure_future(take())
    taking.add_done_callback(wake)
    over.add_done_callback(wake)
    try:
        while not over.done():
            if lost:
                number, lost = lost, 0
                yield _lost(number)
            elif waiting:
                yield waiting.popleft()
            elif taking.done():
                taking.result()
                return
            else:
                more.clear()
                await more.wait()
    finally:
        over.remove_done_callback(wake)
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)


def _lost(number: int) -> EventView:
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    reason = f"{number} events were dropped here: this client reads too slowly. `history` has them"
    return EventView(now, "", "lost", None, reason)
