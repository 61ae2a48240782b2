"""Follows libvirt and its domains: connects when it can, reads what events name, makes changes."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from evertap.libvirt import pump, sockets
from evertap.libvirt.connection import Connection
from evertap.libvirt.limits import Limits
from evertap.libvirt.session import CHANGES, Session
from evertap.libvirt.threads import RefusedError, Threads
from evertap.model.domain import Domain
from evertap.model.errors import ActionError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_CHUNK = 16  # domains that are read in one call


class LibvirtDomains:
    """The domains of the libvirt at `uri`; EvertapError if that is not QEMU on this host.

    To be used, and closed, within one event loop. A call that is cancelled is carried out nevertheless.
    """

    changed: Callable[[Domain], None]
    gone: Callable[[str], None]
    connected: Callable[[str], None]

    def __init__(self, uri: str = "qemu:///system", limits: Limits | None = None) -> None:
        self.changed = lambda _: None
        self.gone = self.connected = lambda _: None
        self._uri = uri
        self._paths = sockets.candidates(uri)
        self._limits = limits or Limits()
        self._known: dict[str, Domain] = {}
        self._reason: str | None = None  # what `connected` was called with last
        self._session: Session | None = None
        self._stuck: dict[str, asyncio.Future[Any]] = {}  # a domain's call that has not returned in time
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Begin. Call it from the event loop."""
        pump.start()
        self._threads = Threads()
        self._changes = asyncio.Semaphore(CHANGES)
        self._touched = asyncio.Event()
        self._tasks = [
            asyncio.create_task(
                sockets.watch(self._paths, self._touched.set), name="evertap-libvirt-sockets"
            ),
            asyncio.create_task(self._follow(), name="evertap-libvirt"),
        ]

    async def close(self) -> None:
        """End the connection. Calls that hang are left alone."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._closing is not None:
            await asyncio.wait({self._closing}, timeout=self._limits.probe)
        if self._tasks:
            self._threads.close()
        self._tasks = []

    # The connection

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        delay = self._limits.listening
        while True:
            self._touched.clear()
            pause: float | None = delay
            started = loop.time()
            if sockets.identify(self._paths):
                try:
                    self._say(await self._connect())
                except ActionError as error:
                    self._say(str(error))
                except Exception:
                    _log.exception("an error in evertap, in following libvirt")
                    self._say("an error in evertap; see its log")
            else:
                self._say(f"no libvirt socket yet: {' or '.join(map(str, self._paths))}")
                # Unless that cannot be watched.
                pause = self._limits.backoff_most if self._tasks[0].done() else None
            if loop.time() - started > max(1, 2 * delay):
                pause = delay = self._limits.listening  # it was good for some time
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._touched.wait()
            # A socket is there (bind) a moment before somebody listens.
            again = self._limits.listening if self._touched.is_set() else 2 * delay
            delay = min(again, self._limits.backoff_most)

    async def _connect(self) -> str:
        """Connect and stay connected; why that ended."""
        session = Session(asyncio.get_running_loop(), self._uri)
        there = sockets.identify(self._paths)
        opening = self._threads.start(
            partial(Connection.listening, self._uri, session.hear_from_thread, session.lose_from_thread)
        )
        try:
            await asyncio.wait({opening}, timeout=self._limits.answer)
            if not opening.done():
                # No use in another try: the answer will come as soon as libvirt runs again.
                self._say(self._silent())
                await self._opened_or_replaced(opening, there)
                if not opening.done():
                    return "another socket was made in place of libvirt's"
            connection = await opening
        finally:
            if not opening.done():
                opening.add_done_callback(self._abandon)
        session.connection = connection
        reading = asyncio.create_task(self._read(session))
        try:
            waited_for: set[asyncio.Future[Any]] = {reading, session.lost}
            await asyncio.wait(waited_for, return_when="FIRST_COMPLETED")
            if reading.done():
                session.lose(str(reading.exception()))
            return await session.lost
        finally:
            self._session = None
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            session.lose("evertap has closed the connection")
            # In two threads: whatever hangs, the other one is closed.
            self._threads.start(session.channels.close)
            self._closing = self._threads.start(connection.close)

    async def _opened_or_replaced(
        self, opening: asyncio.Future[Connection], there: frozenset[tuple[int, int]]
    ) -> None:
        while not opening.done():
            self._touched.clear()
            touched = asyncio.create_task(self._touched.wait())
            try:
                waited_for: set[asyncio.Future[Any]] = {opening, touched}
                await asyncio.wait(waited_for, return_when="FIRST_COMPLETED")
            finally:
                touched.cancel()
            now = sockets.identify(self._paths)
            if now and not now & there:
                return

    def _abandon(self, opening: asyncio.Future[Connection]) -> None:
        if opening.exception() is None:
            self._threads.start(opening.result().close)

    def _silent(self) -> str:
        return f"libvirt does not answer within {self._limits.answer:g} s"

    def _say(self, reason: str) -> None:
        if reason != self._reason:
            self._reason = reason
            self._tell(self.connected, reason)

    def _tell(self, whom: Callable[[_T], None], what: _T) -> None:
        try:
            whom(what)
        except Exception:  # not the connection's fault
            _log.exception("an error in evertap, after news from libvirt")

    # What is known

    async def _read(self, session: Session) -> None:
        """Read all domains, then those that events name, until libvirt hangs or fails."""
        session.outdated |= await self._ask(session, session.connection.uuids)
        session.outdated |= self._known.keys()
        self._session = session
        while True:
            while session.outdated:
                wanted = [session.outdated.pop() for _ in range(min(_CHUNK, len(session.outdated)))]
                self._note(await self._ask(session, partial(session.connection.read, wanted)))
            self._say("")
            await session.news.wait()
            session.news.clear()

    async def _ask(self, session: Session, work: Callable[[], _T]) -> _T:
        """A question that libvirt answers without any QEMU: otherwise libvirt itself hangs."""
        async with session.asking:
            future = self._threads.start(work)
            await asyncio.wait({future}, timeout=self._limits.answer)
            if not future.done():
                raise ActionError(self._silent())
            return await future

    def _note(self, found: dict[str, Domain | None]) -> None:
        for uuid, domain in found.items():
            if domain is None:
                if self._known.pop(uuid, None) is not None:
                    self._tell(self.gone, uuid)
            elif domain != self._known.get(uuid):
                self._known[uuid] = domain
                self._tell(self.changed, domain)

    # Changes

    async def set_link(self, uuid: str, mac: str, up: bool) -> None:
        """See Domains."""
        await self._change("setting the link", uuid, lambda there: there.set_link(uuid, mac, up))

    async def attach(self, uuid: str, xml: str, *, live: bool, config: bool) -> None:
        """See Domains."""
        await self._change("attach", uuid, lambda there: there.attach(uuid, xml, live, config))

    async def detach(self, uuid: str, xml: str, *, live: bool, config: bool) -> None:
        """See Domains."""
        if not live:
            await self._change("detach", uuid, lambda there: there.detach(uuid, xml, live, config))
            return
        device = await self._change("detach", uuid, lambda there: there.alias(uuid, xml))
        session = self._present("detach", uuid)
        with session.departure(uuid, device) as left:  # the event may come before the answer
            try:
                async with asyncio.timeout(self._limits.unplug):
                    try:
                        await self._change(
                            "detach", uuid, lambda there: there.detach(uuid, xml, live, config)
                        )
                    except RefusedError as error:
                        if "in the process of unplug" not in str(error):
                            raise
                    trouble = await left if device else ""
            except TimeoutError:
                trouble = f"the guest has not let go of it within {self._limits.unplug:g} s"
        if trouble:
            raise ActionError(f"{self._step('detach', uuid)}: {trouble}. Detach it again later")

    async def define(self, xml: str) -> None:
        """See Domains."""
        session = self._present("define", "")
        session.mark(await self._change("define", "", lambda there: there.define(xml)))

    async def set_metadata(self, uuid: str, xml: str, *, live: bool, config: bool) -> None:
        """See Domains."""
        await self._change(
            "setting the metadata", uuid, lambda there: there.set_metadata(uuid, xml, live, config)
        )

    async def monitor(
        self, uuid: str, command: str, arguments: dict[str, Any], descriptors: Sequence[int] = ()
    ) -> Any:
        """See Domains. libvirt passes one descriptor at most, and marks the domain as tainted."""
        step = self._step(command, uuid)
        if len(descriptors) > 1:
            raise ActionError(f"{step}: libvirt passes one descriptor with a command, not {len(descriptors)}")
        if descriptors and not self._present(command, uuid).connection.takes_descriptors:
            raise ActionError(f"{step}: to pass a descriptor to QEMU needs libvirt 8.2 or newer")
        # Our own, since the caller may close his while a call that hangs still needs it.
        descriptor = os.dup(descriptors[0]) if descriptors else None
        taken = False

        def work(there: Connection) -> Any:
            return there.monitor(uuid, {"execute": command, "arguments": arguments}, descriptor)

        def take() -> None:
            nonlocal taken
            taken = True

        try:
            return await self._change(command, uuid, work, take)
        finally:
            if descriptor is not None and not taken:
                os.close(descriptor)

    def _step(self, what: str, uuid: str) -> str:
        known = self._known.get(uuid)
        return f"{what}, domain {known.name if known else uuid}" if uuid else what

    def _present(self, what: str, uuid: str) -> Session:
        if self._session is None:
            raise ActionError(f"{self._step(what, uuid)}: {self._reason or 'not connected to libvirt yet'}")
        return self._session

    async def _change(
        self, what: str, uuid: str, work: Callable[[Connection], _T], begun: Callable[[], None] | None = None
    ) -> _T:
        """Carry out `work` in a thread; `begun` is called once that is sure."""
        step = self._step(what, uuid)
        session = self._present(what, uuid)
        if uuid in self._stuck:
            # The domain's QEMU hangs, perhaps: one thread is enough for it.
            raise ActionError(f"{step}: libvirt has not finished an earlier call for this domain")
        future: asyncio.Future[_T] | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.answer), self._changes:
                session = self._present(what, uuid)
                future = self._threads.start(partial(session.channels.carry_out, work))
                if begun is not None:
                    begun()
                await asyncio.wait({future})
        if future is None:
            raise ActionError(f"{step}: {self._silent()}")
        if not future.done():
            self._stuck[uuid] = future
            future.add_done_callback(lambda done: self._unstick(uuid, done))
            session.doubt(self._probe(session))
            raise ActionError(f"{step}: {self._silent()}")
        try:
            return await future
        except RefusedError as error:
            raise RefusedError(f"{step}: {error}", error.code) from None
        finally:
            if uuid:
                session.mark(uuid)  # libvirt has no event for most changes of a configuration

    def _unstick(self, uuid: str, future: asyncio.Future[Any]) -> None:
        if self._stuck.get(uuid) is future:
            del self._stuck[uuid]
            if self._session is not None and uuid:
                self._session.mark(uuid)

    async def _probe(self, session: Session) -> None:
        """Tell a libvirt that hangs from one whose call waits for a QEMU that does."""
        async with session.asking:
            future = self._threads.start(session.connection.probe)
            await asyncio.wait({future}, timeout=self._limits.probe)
            if not future.done():
                session.lose(self._silent())
