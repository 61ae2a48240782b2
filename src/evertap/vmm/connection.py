"""One QMP connection: qemu.qmp with limits on time, size and rate. No other module knows qemu.qmp."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from qemu.qmp import ConnectError, ExecuteError, Message, QMPClient, Runstate

from evertap.model.errors import ActionError
from evertap.vmm.limits import BURST, LINE, RATE, WORDS, Limits

ENDED = "QEMU has ended"

# qemu.qmp logs whatever it does not understand, byte for byte; what matters is in our reasons.
_SILENT = logging.getLogger(f"{__name__}.silent")
_SILENT.disabled = True


class RefusedError(ActionError):
    """QEMU answered a command with an error; `said` are its words, `missing` if it lacks what was named."""

    def __init__(self, text: str, said: str, missing: bool) -> None:
        super().__init__(f"{text}: {said}")
        self.said = said
        self.missing = missing


class LostError(ActionError):
    """There is no (usable) connection."""


class _FloodError(Exception):
    pass


class _Client(QMPClient):
    """qemu.qmp's client by its documented hooks: without logs, with a limit on what comes in."""

    def __init__(self) -> None:
        super().__init__(readbuflen=LINE)
        self.logger = _SILENT
        self._budget = BURST
        self._counted = time.monotonic()

    async def _readline(self) -> bytes:
        line = await super()._readline()
        if not line.endswith(b"\n"):
            raise EOFError  # in the middle of a message
        now = time.monotonic()
        self._budget = min(BURST, self._budget + (now - self._counted) * RATE) - 1 - len(line) / 1024
        self._counted = now
        if self._budget < 0:
            raise _FloodError
        return line

    def _cb_inbound(self, msg: Message) -> Message:
        return msg  # qemu.qmp's own formats every message for its log, written or not

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    async def _on_message(self, msg: Message) -> None:
        await super()._on_message(msg)
        # As long as there is something in the buffer, nothing else would have a turn.
        await asyncio.sleep(0)


class Connection:
    """A negotiated connection. Commands are carried out one after the other."""

    def __init__(self, client: _Client, sock: socket.socket, limits: Limits) -> None:
        self._client = client
        self._sock = sock
        self._limits = limits
        self._lock = asyncio.Lock()
        self._reason = ""
        self._over = asyncio.Event()  # `ended` knows why

    @property
    def usable(self) -> bool:
        """Whether commands can be given."""
        return not self._reason and self._client.runstate is Runstate.RUNNING

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, descriptor: int | None = None
    ) -> object:
        """Carry out a command and give what it returns; `descriptor` goes with it (SCM_RIGHTS).

        Raises RefusedError, and LostError if the connection is not usable (any more): also when the answer
        takes too long, since it could come at any time later.
        """
        step = _step(command, arguments)
        async with self._lock:  # QEMU gives a descriptor to whichever getfd comes next
            if not self.usable:
                raise LostError(f"{step}: {await self._why()}")
            try:
                async with asyncio.timeout(self._limits.answer):
                    if descriptor is not None:
                        self._client.send_fd_scm(descriptor)
                    return await self._client.execute(command, arguments)
            except ExecuteError as error:
                missing = error.error_class == "DeviceNotFound"
                raise RefusedError(step, clean(str(error)), missing) from None
            except TimeoutError:
                self.close(f"QEMU does not answer within {self._limits.answer:g} s ({command})")
                raise LostError(f"{step}: {self._reason}") from None
            except Exception as error:
                # Above all ExecInterruptedError: the connection ended.
                if self.usable:
                    words = error.strerror if isinstance(error, OSError) else str(error)
                    self.close(f"{step}: {clean(words or type(error).__name__)}")
                    raise LostError(self._reason) from None
                raise LostError(f"{step}: {await self._why()}") from None
            except asyncio.CancelledError:
                self.close("the connection was closed")  # the descriptor may be there without its command
                raise

    def close(self, reason: str) -> None:
        """Close the connection now, whatever is still on its way."""
        self._reason = self._reason or reason
        _shut(self._sock)

    async def ended(self) -> str:
        """Wait until the connection has ended, give everything back, and say why."""
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        cause = await _disconnect(self._client)
        self._sock.close()
        self._reason = self._reason or _explain(cause)
        self._over.set()
        return self._reason

    async def _why(self) -> str:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.answer):
                await self._over.wait()
        return self._reason or ENDED


class Opening:
    """A connection to be: waits for QEMU's greeting, as long as it takes, and negotiates."""

    def __init__(self, sock: socket.socket, limits: Limits, heard: Callable[[str, Mapping[str, Any]], None]):
        self._client = _Client()
        self._sock = sock
        self._limits = limits
        self._heard = heard
        # The built-in listener keeps all that it accepts, for ever: look at events where it decides on that.
        self._client.events.event_filter = self._hear

    @property
    def greeted(self) -> bool:
        """Whether the greeting has come."""
        return self._client.greeting is not None

    async def open(self) -> Connection:
        """LostError if that failed. The socket is this object's from now on."""
        try:
            await self._client.connect(self._sock)
        except ConnectError as error:
            self._sock.close()
            raise LostError(_explain(error.exc)) from None
        except BaseException:
            self._sock.close()
            raise
        return Connection(self._client, self._sock, self._limits)

    def abandon(self) -> None:
        """Let `open` fail, or its connection end."""
        _shut(self._sock)

    def _hear(self, message: Message) -> bool:
        name, data = message["event"], message.get("data")
        if isinstance(name, str) and isinstance(data, dict):
            self._heard(name, data)
        return False


def clean(text: str) -> str:
    """QEMU's words, fit to be shown: on one line, printable, not too long."""
    text = " ".join(text[: 4 * WORDS].split())
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= WORDS else text[: WORDS - 1] + "…"


def _step(command: str, arguments: Mapping[str, Any] | None) -> str:
    """The command and the part that it is about, for the error's text."""
    named = (arguments or {}).get("id") or (arguments or {}).get("name") or (arguments or {}).get("fdname")
    return f"{command} {named}" if named else command


def _shut(sock: socket.socket) -> None:
    # Otherwise qemu.qmp would wait until a QEMU that hangs has read everything.
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


async def _disconnect(client: _Client) -> BaseException | None:
    """Back to idle; what ended the connection is raised here by qemu.qmp, and returned."""
    try:
        async with asyncio.timeout(1):
            await client.disconnect()
    except Exception as error:
        return error
    return None


def _explain(cause: BaseException | None) -> str:
    match cause:
        case None | EOFError() | ConnectionError():
            return ENDED
        case _FloodError():
            return f"sends more than {RATE:g} messages a second: is it QEMU?"
        case ValueError() if "chunk" in str(cause):  # asyncio.StreamReader.readline
            return f"sends messages of more than {LINE} bytes: is it QEMU?"
    return f"does not speak QMP: {clean(str(cause)) or type(cause).__name__}"
