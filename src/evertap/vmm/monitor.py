"""Follows one QMP socket: connects when it appears, says what is known, and tries again."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from evertap.model.errors import ActionError
from evertap.model.vmm import Vmm
from evertap.vmm import sockets
from evertap.vmm.connection import ENDED, Connection, LostError, Opening
from evertap.vmm.limits import Limits
from evertap.vmm.session import Filtered, Session

_log = logging.getLogger(__name__)


class Monitor:
    """One path. `vmm` is what is known of the QEMU there; `session` is there while it is connected."""

    def __init__(
        self,
        path: str,
        limits: Limits,
        trouble: Callable[[], str],
        changed: Callable[[Vmm], None],
        filtered: Filtered,
    ) -> None:
        self.vmm: Vmm | None = None
        self.session: Session | None = None
        self._path = path
        self._limits = limits
        self._trouble = trouble
        self._changed = changed
        self._filtered = filtered
        self._touched = asyncio.Event()
        self._ended = False  # whether the last QEMU here has ended, as far as we know

    def touch(self) -> None:
        """Something has happened to the socket's file."""
        self._touched.set()

    async def run(self) -> None:
        """Follow the socket until cancelled."""
        delay = self._limits.backoff
        loop = asyncio.get_running_loop()
        while True:
            self._touched.clear()
            started = loop.time()
            try:
                again = await self._once()
            except asyncio.CancelledError:
                raise
            except Exception:
                _log.exception("an error in evertap, at %s", self._path)
                self._lost("an error in evertap; see its log")
                again = True
            if loop.time() - started > 2 * delay:
                delay = self._limits.backoff
            # Whoever touches the file all the time gets no more than this.
            await asyncio.sleep(started + self._limits.calm - loop.time())
            pause = delay if again or self._trouble() else None
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._touched.wait()
            touched = self._touched.is_set()
            delay = self._limits.backoff if touched else min(2 * delay, self._limits.backoff_most)

    async def _once(self) -> bool:
        """Connect and stay connected; whether to try again although nothing happens to the file."""
        try:
            connected, identity = await self._connect()
        except FileNotFoundError:
            self._lost(ENDED if self._ended else "no QMP socket yet", gone=True)
        except NotADirectoryError as error:
            self._lost(f"no QMP socket yet: {error.strerror}: {self._path}", gone=True)
        except sockets.NoSocketError as error:
            self._lost(str(error), gone=True)
        except ConnectionRefusedError:
            reason = ENDED if self._ended else f"nobody listens on {self._path}: its QEMU has ended"
            self._lost(reason, gone=True)
        except BlockingIOError:
            self._lost(self._held())
            return True
        except OSError as error:
            self._lost(f"cannot connect to {self._path}: {error.strerror}")
            return not isinstance(error, PermissionError)  # other rights would be an event
        else:
            self._ended = False
            return await self._use(connected, identity)
        return False

    async def _connect(self) -> tuple[socket.socket, sockets.Identity]:
        """Connect; a socket is there (bind) a moment before somebody listens."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.listening
        pause = 0.005
        while True:
            try:
                return sockets.connect(self._path)
            except ConnectionRefusedError:
                if loop.time() + pause > deadline:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.05)

    async def _use(self, connected: socket.socket, identity: sockets.Identity) -> bool:
        session = Session(self._limits, self._set, self._filtered)
        opening = Opening(connected, self._limits, session.hear)
        replaced = asyncio.create_task(self._replaced(identity))
        connecting = asyncio.create_task(opening.open())
        try:
            waited_for = {connecting, replaced}
            await asyncio.wait(waited_for, timeout=self._limits.answer, return_when="FIRST_COMPLETED")
            if not connecting.done() and not replaced.done():
                # The connection waits in QEMU's queue. No use in another one: its greeting will come as soon
                # as QEMU runs again, or the other client leaves.
                self._lost(self._silent() if opening.greeted else self._held())
                await asyncio.wait(waited_for, return_when="FIRST_COMPLETED")
            if not connecting.done():
                self._touched.set()
                return False
            try:
                connection = await connecting
            except ActionError as error:
                self._ended = str(error) == ENDED
                self._lost(str(error), gone=self._ended)
                return True
            return await self._serve(session, connection, replaced)
        finally:
            opening.abandon()
            await _cancel(connecting, replaced)

    async def _serve(self, session: Session, connection: Connection, replaced: asyncio.Task[None]) -> bool:
        work = asyncio.create_task(self._attend(session, connection))
        ended = asyncio.create_task(connection.ended())
        try:
            await asyncio.wait({ended, replaced, work}, return_when="FIRST_COMPLETED")
            if work.done() and (error := work.exception()) is not None:
                if not isinstance(error, ActionError):
                    raise error
                if not isinstance(error, LostError):  # what was lost ends by itself
                    connection.close(str(error))
            if replaced.done():
                connection.close("another socket was made in its place")
                self._touched.set()
            reason = await ended
            self.session = None
            self._ended = reason == ENDED
            self._lost(reason, gone=self._ended)
            return True
        finally:
            self.session = None
            connection.close("the connection was closed")
            session.end(await ended)
            await _cancel(work)

    async def _attend(self, session: Session, connection: Connection) -> None:
        await session.begin(connection)
        self.session = session
        session.publish()
        await session.attend()

    async def _replaced(self, identity: sockets.Identity) -> None:
        """Wait until another socket is at the path; that it is gone does not matter while QEMU runs."""
        while True:
            await self._touched.wait()
            self._touched.clear()
            if sockets.identify(self._path) not in (None, identity):
                return

    def _held(self) -> str:
        return (
            f"no greeting from {self._path} within {self._limits.answer:g} s: another program holds this QMP "
            "socket, which serves one client, or QEMU hangs"
        )

    def _silent(self) -> str:
        return f"QEMU does not answer within {self._limits.answer:g} s (qmp_capabilities)"

    def _lost(self, reason: str, *, gone: bool = False) -> None:
        if trouble := self._trouble():
            reason = f"{reason}; {trouble}"
        self._set(Vmm(running=False, gone=gone, reason=reason))

    def _set(self, vmm: Vmm) -> None:
        if vmm != self.vmm:
            self.vmm = vmm
            try:
                self._changed(vmm)
            except Exception:  # not this connection's fault
                _log.exception("an error in evertap, at %s", self._path)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
