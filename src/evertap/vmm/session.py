"""One connected QEMU: what is known of it, and changes to it that happen whole or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final

from evertap.model.errors import ActionError
from evertap.model.vmm import RxFilter, Vmm
from evertap.vmm import reading
from evertap.vmm.connection import Connection, LostError, RefusedError, clean
from evertap.vmm.limits import Limits

Changed = Callable[[Vmm], None]
Filtered = Callable[[str, RxFilter], None]

_NETWORK: Final = {"command-line": "info network"}


class Session:
    """The commands to one QEMU. All of them raise ActionError."""

    def __init__(self, limits: Limits, changed: Changed, filtered: Filtered) -> None:
        self.limits = limits
        self.lock = asyncio.Lock()  # for what consists of several commands
        self.version = ""
        self.devices = set[str]()
        self.netdevs = set[str]()
        self._connection: Connection | None = None
        self._changed = changed
        self._filtered = filtered
        self._commands = frozenset[str]()
        self._made: list[str] = []  # netdevs of the change under way, and
        self._passed: list[str] = []  # descriptors
        self._departures: dict[str, asyncio.Future[str]] = {}
        self._news = asyncio.Event()
        self._refiltered = set[str]()  # devices whose filter is to be read
        self._outdated = False  # whether the parts are to be read

    # What is known

    async def begin(self, connection: Connection) -> None:
        """Ask the QEMU what it can do and which of our parts it has; `publish` is then for the caller."""
        self._connection = connection
        with suppress(RefusedError):
            self.version = reading.version(await connection.execute("query-version"))
        with suppress(RefusedError):
            self._commands = reading.commands(await connection.execute("query-commands"))
        await self._read_parts()

    def hear(self, event: str, data: Mapping[str, Any]) -> None:
        """Take note of an event."""
        name = data.get("device") if event.startswith("DEVICE_") else data.get("name")
        if not isinstance(name, str):
            return
        if event == "NIC_RX_FILTER_CHANGED" and name.startswith("evertap-"):
            if name in self.devices:
                self._refiltered.add(name)
            else:
                self._outdated = True  # somebody else has attached it
            self._news.set()
        if not (name in self.devices or name in self._departures):
            return
        if event == "DEVICE_DELETED":
            self._outdated = True
            self._news.set()
            self._depart(name, "")
        elif event == "DEVICE_UNPLUG_GUEST_ERROR":
            self._depart(name, "the guest refuses to let go of it")

    async def attend(self) -> None:
        """Read what events have said to have changed, until that fails."""
        while True:
            await self._news.wait()
            self._news.clear()
            if self._outdated:
                async with self.lock:
                    await self._read_parts()
                    self.publish()
            # QEMU sends no second event for a device before its filter is read: that limits their rate.
            for device in sorted(self._refiltered):
                self._refiltered.discard(device)
                await self._read_filter(device)
            await asyncio.sleep(self.limits.calm)

    def end(self, reason: str) -> None:
        """The connection has ended: nobody need wait for events any more."""
        for device in list(self._departures):
            self._depart(device, reason)

    async def _read_parts(self) -> None:
        self._outdated = False
        answer = await self.execute("human-monitor-command", _NETWORK)
        found = reading.parts(answer)
        if found is None:
            raise ActionError(f"info network: cannot be understood: {clean(repr(answer)[:400])}")
        if fresh := found.devices - self.devices:
            self._refiltered |= fresh
            self._news.set()
        self.devices, self.netdevs = set(found.devices), set(found.netdevs)

    async def _read_filter(self, device: str) -> None:
        with suppress(RefusedError):  # not every model of card has one; or it is gone
            found = reading.rx_filter(await self.execute("query-rx-filter", {"name": device}))
            if found is not None:
                self._filtered(device, found)

    def publish(self) -> None:
        """Tell what is known, unless it is no longer true."""
        if self._connection is not None and self._connection.usable:
            self._changed(Vmm(running=True, parts=frozenset(self.devices | self.netdevs), reason=""))

    # Changes

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, descriptor: int | None = None
    ) -> object:
        """Carry out one command."""
        if self._connection is None:
            raise LostError(f"{command}: not connected yet")
        if self._commands and command not in self._commands:
            raise ActionError(f"{command}: this QEMU ({self.version or 'unknown version'}) does not have it")
        return await self._connection.execute(command, arguments, descriptor)

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """Change netdevs with nobody in between; if that fails, what was added is removed."""
        async with self.lock:
            self._made, self._passed = [], []
            try:
                yield
            except ActionError as error:
                if not isinstance(error, LostError):
                    with suppress(ActionError):
                        await self._undo()
                raise
            finally:
                self.publish()

    async def pass_descriptor(self, name: str, descriptor: int) -> str:
        """Give QEMU a descriptor under that name, in place of an earlier one of that name; gives the name."""
        await self.execute("getfd", {"fdname": name}, descriptor)
        self._passed.append(name)
        return name

    async def add_netdev(self, ident: str, **arguments: Any) -> None:
        """netdev_add."""
        await self.execute("netdev_add", {"id": ident, **arguments})
        self._made.append(ident)
        self.netdevs.add(ident)

    async def remove_netdev(self, ident: str) -> None:
        """netdev_del; no error if there is none."""
        try:
            await self.execute("netdev_del", {"id": ident})
        except RefusedError as error:
            if not error.missing:
                raise
        self.netdevs.discard(ident)

    async def _undo(self) -> None:
        for ident in reversed(self._made):
            with suppress(RefusedError):
                await self.remove_netdev(ident)
        for name in self._passed:
            with suppress(RefusedError):  # a netdev has taken it over, and closed it
                await self.execute("closefd", {"fdname": name})
        await self._read_parts()

    # Departures of devices

    @contextmanager
    def departure(self, device: str) -> Iterator[asyncio.Future[str]]:
        """A future of what hinders the device's departure: nothing (an empty text) once it is gone."""
        left: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._departures[device] = left
        try:
            yield left
        finally:
            if self._departures.get(device) is left:
                del self._departures[device]

    def _depart(self, device: str, trouble: str) -> None:
        left = self._departures.get(device)
        if left is not None and not left.done():
            left.set_result(trouble)
