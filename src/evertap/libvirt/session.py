"""One connection's life: what it has said that is not dealt with yet, who waits for what, channels."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

from evertap.libvirt.connection import Connection, Kind

_T = TypeVar("_T")

CHANGES: Final = 3
"""Changes at a time, those not counted that have exceeded their limit."""


class Channels:
    """Further connections for changes, one for each at a time. Called in threads, except where said.

    So a change that waits for a QEMU keeps neither reading nor other changes waiting.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._spare: list[Connection] = []
        self._lock = threading.Lock()
        self._over = False

    def carry_out(self, work: Callable[[Connection], _T]) -> _T:
        """Carry out `work` on a connection of its own."""
        with self._lock:
            channel = self._spare.pop() if self._spare else None
        if channel is not None and not channel.alive:
            channel.close()
            channel = None
        if channel is None:
            channel = Connection(self._uri)
        try:
            return work(channel)
        finally:
            with self._lock:
                keep = not self._over and len(self._spare) < CHANGES
                if keep:
                    self._spare.append(channel)
            if not keep:
                channel.close()

    def close(self) -> None:
        """Close what is idle; the others are closed once they are idle."""
        with self._lock:
            self._over = True
            spare, self._spare = self._spare, []
        for channel in spare:
            channel.close()


class Session:
    """One connection: what it has said that is not dealt with yet, and who waits for what."""

    connection: Connection

    def __init__(self, loop: asyncio.AbstractEventLoop, uri: str) -> None:
        self.channels = Channels(uri)
        self.asking = asyncio.Lock()  # `connection` is for one thread at a time
        self.outdated = set[str]()
        self.news = asyncio.Event()
        self.lost: asyncio.Future[str] = loop.create_future()
        self._loop = loop
        self._departures: dict[tuple[str, str], asyncio.Future[str]] = {}
        self._doubt: asyncio.Task[None] | None = None

    def hear_from_thread(self, kind: Kind, uuid: str, alias: str) -> None:
        """Called by libvirt, in its thread."""
        with suppress(RuntimeError):  # the loop was closed
            self._loop.call_soon_threadsafe(self._hear, kind, uuid, alias)

    def lose_from_thread(self, reason: str) -> None:
        """Called by libvirt, in any thread."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.lose, reason)

    def _hear(self, kind: Kind, uuid: str, alias: str) -> None:
        self.mark(uuid)
        for (of, device), left in self._departures.items():
            if of == uuid and not left.done():
                if kind == "ended" or (kind == "removed" and device == alias):
                    left.set_result("")
                elif kind == "kept" and device == alias:
                    left.set_result("the guest refuses to let go of it")

    def mark(self, uuid: str) -> None:
        """Something about the domain has changed: it is to be read."""
        self.outdated.add(uuid)
        self.news.set()

    def lose(self, reason: str) -> None:
        """The connection is of no use any more: nobody need wait for events."""
        if not self.lost.done():
            self.lost.set_result(reason)
        for left in self._departures.values():
            if not left.done():
                left.set_result(reason)
        if self._doubt is not None and self._doubt is not asyncio.current_task():
            self._doubt.cancel()

    def doubt(self, probe: Any) -> None:
        """Find out whether libvirt itself hangs, unless that is being done."""
        if self._doubt is None or self._doubt.done():
            self._doubt = asyncio.create_task(probe)
        else:
            probe.close()

    @contextmanager
    def departure(self, uuid: str, alias: str) -> Iterator[asyncio.Future[str]]:
        """A future of what hinders the device's departure: nothing (an empty text) once it is gone."""
        left: asyncio.Future[str] = self._loop.create_future()
        self._departures[uuid, alias] = left
        try:
            yield left
        finally:
            if self._departures.get((uuid, alias)) is left:
                del self._departures[uuid, alias]
