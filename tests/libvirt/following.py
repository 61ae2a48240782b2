"""Following libvirt in a test: what the engine would see, and waiting for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from evertap.libvirt.domains import LibvirtDomains
from evertap.libvirt.limits import Limits
from evertap.model.domain import Domain


class Following:
    """LibvirtDomains with an ear on it."""

    def __init__(self, uri: str, limits: Limits | None = None) -> None:
        self.domains = LibvirtDomains(uri, limits)
        self.known: dict[str, Domain] = {}
        self.reasons: list[str] = []
        self.wrong: list[str] = []
        self.domains.changed = self._changed
        self.domains.gone = self._gone
        self.domains.connected = self._connected

    def _changed(self, domain: Domain) -> None:
        if self.known.get(domain.uuid) == domain:
            self.wrong.append(f"{domain.name}: told again although nothing had changed")
        self.known[domain.uuid] = domain

    def _gone(self, uuid: str) -> None:
        if self.known.pop(uuid, None) is None:
            self.wrong.append(f"{uuid}: gone, but never seen")

    def _connected(self, reason: str) -> None:
        if self.reasons and self.reasons[-1] == reason:
            self.wrong.append(f"{reason!r}: told again although nothing had changed")
        self.reasons.append(reason)

    async def connected(self, within: float = 10) -> None:
        await until(lambda: self.reasons[-1:] == [""], within)

    async def lost(self, words: str, within: float = 10) -> None:
        await until(lambda: words in (self.reasons or [""])[-1], within)

    async def see(self, uuid: str, condition: Callable[[Domain], bool], within: float = 5) -> Domain:
        """Wait until the domain is so."""
        await until(lambda: uuid in self.known and condition(self.known[uuid]), within)
        return self.known[uuid]


async def until(condition: Callable[[], bool], within: float = 10) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)
    assert condition()


def follow(
    uri: str, body: Callable[[Following], Awaitable[Any]], limits: Limits | None = None, *, debug: bool = True
) -> Any:
    """Run the body, connected, in a loop of its own; nothing may be left or have been lost at the end."""

    async def main() -> Any:
        failures: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        following = Following(uri, limits)
        following.domains.start()
        try:
            await following.connected()
            result = await body(following)
        finally:
            async with asyncio.timeout(5):
                await following.domains.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left
        assert not failures, failures
        assert not following.wrong
        return result

    return asyncio.run(main(), debug=debug)


def qemu(name: str) -> int:
    """The pid of a domain's QEMU."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if any(word.startswith(b"guest=%s," % name.encode()) for word in words):
                    return int(entry.name)
    raise AssertionError(f"no QEMU of {name}")


def until_now(condition: Callable[[], bool], within: float = 5) -> None:
    """The same without an event loop."""
    deadline = time.monotonic() + within
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()
