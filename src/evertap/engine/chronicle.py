"""Has the journal's events kept in the history: in batches, by a thread of its own, disk or no disk."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from evertap.engine.ports import History, Kept, Last
from evertap.model.errors import EvertapError
from evertap.model.views import EventView, HistoryPage

_log = logging.getLogger(__name__)

_DELAY: Final = 1.0
"""Seconds that events are gathered: a burst is over when they are written."""

_RETRY: Final = 30.0
"""Seconds until events that could not be kept are tried again."""

_PENDING: Final = 10_000
"""Events that wait for a disk in trouble; of more, the oldest are lost."""

_PATIENCE: Final = 10.0
"""Seconds for an answer from the disk."""

_CONNECTED: Final = frozenset(("connected", "failover", "failback", "retargeted", "renamed"))


class Chronicle:
    """Stands between the loop, which must not wait, and the history, which may. Belongs to the loop."""

    def __init__(self, history: History) -> None:
        self.last: dict[str, Last] = {}
        """The history's last of the NICs of which this daemon has not yet said what they are."""
        self.lost = 0
        """Events that could not be kept."""
        self._history = history
        self._pending: deque[Kept] = deque()
        self._trouble = ""
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "evertap-history")

    async def start(self) -> None:
        """Read what the daemon before has left."""
        try:
            self.last = await self._in_thread(self._history.last)
        except EvertapError as error:
            self._say(str(error))

    async def close(self) -> None:
        """Keep what is there, and end."""
        await self._write()
        if self._timer:
            self._timer.cancel()
        await self._in_thread(self._history.close)
        self._thread.shutdown()

    def note(self, event: EventView, since: float | None) -> None:
        """Have an event kept; `since` as in Kept. What a daemon finds as the last one left it is not news."""
        if self.last and self._is_old(event):
            return
        self._pending.append(Kept(event, since))
        if len(self._pending) > _PENDING:
            self._pending.popleft()
            self.lost += 1
        if not self._is_writing():
            self._write_in(_DELAY)

    def _is_old(self, event: EventView) -> bool:
        last = self.last.get(event.nic)
        if last is None:
            return False
        if event.event == "defined":
            return last.event != "undefined"
        del self.last[event.nic]
        was = "connected" if last.event in _CONNECTED else last.event
        return last.same_boot and (was, last.uplink) == (event.event, event.uplink)

    async def page(self, nic: str, before: int | None, limit: int) -> HistoryPage:
        """A page of a NIC's history (ports.History.page); EvertapError."""
        try:
            async with asyncio.timeout(_PATIENCE):
                await asyncio.shield(self._write())
                page: HistoryPage = await self._in_thread(self._history.page, nic, before, limit)
        except TimeoutError:
            raise EvertapError(
                f"the history has not answered for {_PATIENCE:g} s: is the disk of the state folder in order?"
            ) from None
        if before is None:  # what the disk does not take is known nevertheless
            page.events.extend(kept.event for kept in self._pending if kept.event.nic == nic)
        return page

    def _write_in(self, delay: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(delay, self._write)

    def _write(self) -> asyncio.Task[None]:
        """Write what there is; done when all is written or some of it cannot be."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write_all())
        return self._writing

    def _is_writing(self) -> bool:
        return self._writing is not None and not self._writing.done()

    async def _write_all(self) -> None:
        while self._pending:
            batch = list(self._pending)
            self._pending.clear()
            try:
                await self._in_thread(self._history.append, batch)
            except EvertapError as error:
                self._put_back(batch)
                self._say(str(error))
                self._write_in(_RETRY)
                return
            except Exception:  # a defect of ours: it would come again with every try
                _log.exception("history: %d events are lost", len(batch))
                self.lost += len(batch)
                continue
            if self._trouble:
                _log.info("history: kept again")
            self._trouble = ""

    def _put_back(self, batch: list[Kept]) -> None:
        room = max(_PENDING - len(self._pending), 0)
        self.lost += max(len(batch) - room, 0)
        self._pending.extendleft(reversed(batch[-room:] if room else []))

    def _say(self, trouble: str) -> None:
        if not self._trouble:
            _log.warning("history: %s", trouble)
        self._trouble = trouble

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)
