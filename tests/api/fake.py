"""A Service that remembers what it was asked, and the means to serve it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evertap.api.server import serve
from evertap.model.errors import DefinitionError, NoSuchNicError
from evertap.model.views import (
    ActionView,
    AdoptionView,
    CandidateView,
    EventView,
    HistoryPage,
    NicView,
    UplinkView,
)


def view(name: str = "web0", **changes: Any) -> NicView:
    """A NIC that waits for eth1 although it has eth0."""
    fields: dict[str, Any] = {
        "name": name,
        "mac": "52:54:00:00:00:01",
        "backend": "tap",
        "mode": "bridge",
        "state": "connected",
        "uplink": "eth0",
        "reason": "eth0 is the first usable uplink",
        "since": "2026-11-22T10:00:00.000000+00:00",
        "tap": name,
        "outages": 2,
        "uplinks": ["eth0", "mac=52:54:00:00:00:09"],
        "live": False,
        "problem": "",
        "candidates": [
            CandidateView("eth0", "eth0", "bridge", True, ""),
            CandidateView("mac=52:54:00:00:00:09", None, "vepa", False, "no such interface"),
        ],
    }
    return NicView(**fields | changes)


def event(number: int, nic: str = "web0", latency_ms: float | None = None) -> EventView:
    """One event, numbered in its reason."""
    return EventView("2026-11-22T10:00:00.000000+00:00", nic, "connected", "eth0", f"{number}", latency_ms)


class FakeService:
    """Knows the NICs that it is given; everything else is a list of calls."""

    def __init__(self, *nics: NicView) -> None:
        self.known = {nic.name: nic for nic in nics}
        self.calls: list[tuple[Any, ...]] = []
        self.error: Exception | None = None  # raised by the next call
        self.following: list[asyncio.Queue[EventView]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self.waiting = 0
        self.owner = ""  # of every NIC
        self.queues = 1  # of every tap
        self.past = 2  # events in every NIC's history
        self.added: list[str] = []  # QEMU arguments after those of the NICs

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if self.error:
            error, self.error = self.error, None
            raise error

    def nics(self) -> list[NicView]:
        self._note("nics")
        return list(self.known.values())

    def nic(self, name: str) -> NicView:
        self._note("nic", name)
        if name not in self.known:
            raise NoSuchNicError(name)
        return self.known[name]

    def uplinks(self) -> list[UplinkView]:
        self._note("uplinks")
        return [
            UplinkView("eth0", ["lan"], "02:00:00:00:00:01", "pci-0000:3b:00.0", "", True, True, 1500,
                       ["web0"], ["web1"], ["web0", "web1"])
        ]  # fmt: skip

    def plan(self) -> list[ActionView]:
        self._note("plan")
        return [ActionView("web0", "create_tap", "create tap web0")] if "web0" in self.known else []

    async def define(self, texts: dict[str, str]) -> None:
        self._note("define", texts)
        for name, text in texts.items():
            if "bad" in text:
                raise DefinitionError(f"{name}.toml", "mac", "found bad; allowed: good")

    async def undefine(self, names: Sequence[str]) -> None:
        self._note("undefine", names)
        for name in names:
            self.nic(name)

    async def prepare_domain(self, xml: str) -> None:
        self._note("prepare_domain", xml)

    async def attach_domain(self, name: str, domain: str) -> None:
        self._note("attach_domain", name, domain)
        self.nic(name)

    async def adopt(self, domain: str, dry_run: bool, live: bool) -> AdoptionView:
        self._note("adopt", domain, dry_run, live)
        return AdoptionView(domain, ["vm0"], "--- a\n+++ b\n", ["it changes"], ["its profile"], [])

    async def release(self, domain: str, dry_run: bool, live: bool) -> AdoptionView:
        self._note("release", domain, dry_run, live)
        return AdoptionView(domain, [], "", [], [], [])

    def domains(self) -> list[str]:
        return ["vm1", "vm2"]

    async def connect(self, name: str) -> None:
        self._note("connect", name)
        self.nic(name)

    async def disconnect(self, name: str) -> None:
        self._note("disconnect", name)
        self.nic(name)

    async def retarget(self, name: str, uplinks: Sequence[str], live: bool) -> None:
        self._note("retarget", name, uplinks, live)
        self.nic(name)
        if "bad" in uplinks:
            raise DefinitionError("web0.toml", "uplinks[0]", "found bad")

    async def attach(self, name: str, qmp: str) -> None:
        self._note("attach", name, qmp)
        self.nic(name)

    async def detach(self, name: str) -> None:
        self._note("detach", name)
        self.nic(name)

    def arguments(
        self,
        names: Sequence[str],
        descriptors: Mapping[str, Sequence[int]] | None = None,
        *,
        vhost: bool = True,
    ) -> list[str]:
        self._note("arguments", names, descriptors, vhost)
        opened = descriptors or {}
        pairs = [("-netdev", f"tap,id={self.nic(name).name},x={opened.get(name, 'a b')}") for name in names]
        return [part for pair in pairs for part in pair] + self.added

    def open_tap(self, name: str) -> list[int]:
        self._note("open_tap", name)
        self.nic(name)
        return [os.memfd_create(f"{name} {number}") for number in range(self.queues)]

    def owner_of(self, name: str) -> str:
        self._note("owner_of", name)
        self.nic(name)
        return self.owner

    async def wait(self, name: str, state: str, timeout: float | None) -> NicView:  # noqa: ASYNC109
        self._note("wait", name, state, timeout)
        self.nic(name)
        self.waiting += 1
        try:
            async with asyncio.timeout(timeout):
                while self.known[name].state != state:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
        finally:
            self.waiting -= 1
        return self.known[name]

    def history(self, name: str | None) -> list[EventView]:
        self._note("history", name)
        if name and name not in self.known:
            raise NoSuchNicError(name)
        return [event(1, latency_ms=0.31), event(2)]

    async def nic_history(self, name: str, before: int | None, limit: int) -> HistoryPage:
        self._note("nic_history", name, before, limit)
        if name not in self.known:
            raise NoSuchNicError(name)
        end = self.past if before is None else before
        start = max(end - limit, 0)
        return HistoryPage([event(number, name) for number in range(start, end)], start or None)

    async def follow(self, name: str | None) -> AsyncIterator[EventView]:
        self._note("follow", name)
        if name and name not in self.known:
            raise NoSuchNicError(name)
        self._loop = asyncio.get_running_loop()
        queue: asyncio.Queue[EventView] = asyncio.Queue()
        self.following.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self.following.remove(queue)

    def happens(self, *events: EventView) -> None:
        """Tell the followers; from any thread."""
        assert self._loop
        for queue in self.following:
            for each in events:
                self._loop.call_soon_threadsafe(queue.put_nowait, each)


@contextmanager
def served(service: FakeService, runtime_dir: Path) -> Iterator[None]:
    """Serve it from a thread of its own, for clients that block."""
    started = threading.Event()
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serving() -> None:
        async with serve(service, runtime_dir):
            stop = asyncio.Event()
            loops.append((asyncio.get_running_loop(), stop))
            started.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serving(),))
    thread.start()
    started.wait(10)
    loop, stop = loops[0]
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()
