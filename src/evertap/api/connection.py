"""One client's connection: its calls are answered one after the other, whatever bytes it sends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec
from asyncvarlink import (
    AnnotatedResult,
    FileDescriptorArray,
    VarlinkErrorReply,
    VarlinkInterfaceRegistry,
    VarlinkMethodCall,
    VarlinkMethodReply,
    VarlinkServerProtocol,
    VarlinkTransport,
)
from asyncvarlink.conversion import ConversionError, FileDescriptorVarlinkType, ObjectVarlinkType
from asyncvarlink.serviceerrors import InvalidParameter

from evertap.api.interface import as_reply

MESSAGE_MAX: Final = 1024 * 1024
"""Bytes of one message from a client; the largest is a `Define` of a few thousand NICs."""
ANYBODYS_MESSAGE_MAX: Final = 64 * 1024
"""Bytes of one message from a client who may not change things."""
TAKEN_WITHIN: Final = 30.0
"""Seconds in which a client takes an answer that it has asked for; a follower may take its time."""


class Bounds(NamedTuple):
    """What a client may take of the daemon."""

    message_max: int  # bytes
    turns: tuple[asyncio.Lock, ...]
    """Those who share one are answered one at a time, with a turn of the event loop for each."""


OURS: Final = Bounds(MESSAGE_MAX, ())
"""Of those who may change things."""


class Connection(VarlinkServerProtocol):
    """Answers calls to the interfaces of a registry.

    Unlike asyncvarlink's own server protocol it reads the next call only when the answer to the one before is
    on its way, so that a client that asks and never reads cannot fill the memory; and it ends the connection
    of a client that does not speak varlink.
    """

    def __init__(
        self, registry: VarlinkInterfaceRegistry, over: asyncio.Future[None], bounds: Bounds = OURS
    ) -> None:
        """`over` is done when the client has gone, or the server ends."""
        super().__init__()
        self._registry = registry
        self._over = over
        self._bounds = bounds
        self._unfinished = 0  # bytes of the message that is arriving
        self._link: VarlinkTransport | None = None
        self._aborted = False
        self.answer: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, VarlinkTransport)
        self._link = transport

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.end()

    def end(self) -> None:
        """End what waits for something to happen."""
        if not self._over.done():
            self._over.set_result(None)

    def abort(self) -> None:
        """End the connection at once."""
        self._aborted = True
        self.end()
        if self._link is not None and not self._link.is_closing():
            self._link.abort()

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:
        if self._aborted:
            return
        last = data.rfind(b"\0")
        self._unfinished = len(data) - last - 1 if last >= 0 else self._unfinished + len(data)
        if self._unfinished > self._bounds.message_max:
            self.abort()
            return
        try:
            super().message_received(data, fds)
        except (ValueError, RecursionError):  # not UTF-8, nested too deeply, numbers of thousands of digits
            self.abort()

    def error_received(self, *_: object) -> None:
        self.abort()

    def request_received(
        self, obj: dict[str, Any], fds: FileDescriptorArray | None
    ) -> asyncio.Future[None] | None:
        if self._aborted:
            return None
        try:
            VarlinkMethodCall.fromjson(obj)
        except (TypeError, ValueError):
            self.abort()
            return None
        answering: asyncio.Future[None] | None = super().request_received(obj, fds)
        return answering

    def call_received(
        self, call: VarlinkMethodCall, _fds: FileDescriptorArray | None
    ) -> asyncio.Future[None]:
        self.answer = asyncio.ensure_future(self._answer(call))
        return self.answer

    async def _answer(self, call: VarlinkMethodCall) -> None:
        try:
            await self._call(call)
        except VarlinkErrorReply as error:
            refusal = error
        except Exception as error:
            refusal = as_reply(error)
        else:
            return
        if not call.oneway:
            await self._sent(self.send_error(refusal))

    async def _call(self, call: VarlinkMethodCall) -> None:
        method, signature = self._registry.lookup_method(call)
        try:
            parameters = signature.parameter_type.fromjson(call.parameters)
        except ConversionError as error:
            raise InvalidParameter(parameter=str(error.location[0])) from None
        if signature.more:
            async with aclosing(method(**parameters)) as results:
                async for result in results:
                    await self._sent(self._reply(result), patient=True)
            return
        if not signature.asynchronous:
            await self._answer_in_turn(partial(method, **parameters), call.oneway)
            return
        result = await method(**parameters)
        if signature.return_type.contains_fds:
            await self._hand_over(signature.return_type, result, call.oneway)
        elif not call.oneway:
            await self._sent(self._reply(result))

    async def _answer_in_turn(self, method: Callable[[], AnnotatedResult], oneway: bool) -> None:
        """Ask the service, which keeps the loop busy, as does putting its answer into words."""
        async with AsyncExitStack() as stack:
            for turn in self._bounds.turns:
                await stack.enter_async_context(turn)
                await asyncio.sleep(0)  # what else is due comes first
            result = method()
            sending = None if oneway else self._reply(result)
        if sending:
            await self._sent(sending)

    async def _hand_over(self, kind: ObjectVarlinkType, result: AnnotatedResult, oneway: bool) -> None:
        # The array closes our descriptors, whatever becomes of the answer.
        with FileDescriptorArray.new_managed() as fds:
            parameters = kind.tojson(result.parameters, {FileDescriptorVarlinkType: fds})
            if not oneway:
                numbers = [fd.fileno() for fd in fds]
                await self._sent(self.send_reply(VarlinkMethodReply(parameters), numbers, autoclose=False))

    def _reply(self, result: AnnotatedResult) -> asyncio.Future[None]:
        # msgspec instead of the signature's own conversion, which takes 0.1 s for a thousand NICs.
        parameters = msgspec.to_builtins(dict(result.parameters))
        return self.send_reply(VarlinkMethodReply(parameters, continues=result.continues))

    async def _sent(self, sending: asyncio.Future[None], *, patient: bool = False) -> None:
        if not sending.done():
            await asyncio.wait([sending], timeout=None if patient else TAKEN_WITHIN)
        if not sending.done():
            self.abort()  # or its answer stays in the memory for as long as it likes
        try:
            await sending
        except OSError:
            self.abort()  # the client has gone; what else it asked is of no use
