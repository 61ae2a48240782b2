"""The API's server: accepts clients, knows who they are, and bounds what they can take."""

from __future__ import annotations

import asyncio
import errno
import logging
import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from asyncvarlink import VarlinkInterfaceRegistry, VarlinkTransport
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from evertap import __version__
from evertap.api.claim import claim
from evertap.api.connection import ANYBODYS_MESSAGE_MAX, OURS, Bounds, Connection
from evertap.api.interface import EvertapInterface
from evertap.api.peer import Places, group_id, peer_of
from evertap.api.service import Service

CLIENTS_MAX: Final = 128
FOLLOWERS_MAX: Final = 32

_FAREWELL: Final = 1.0  # seconds for the last answers when the server ends
_PAUSE: Final = 1.0  # seconds without accepting when the process is out of descriptors or memory


@asynccontextmanager
async def serve(service: Service, runtime_dir: Path) -> AsyncIterator[Callable[[], int]]:
    """Serve the API on the runtime folder's socket (EvertapError: another daemon has the folder).

    Gives what tells the number of connections.
    """
    with claim(runtime_dir) as listener, closing(_Server(service, listener)) as server:
        try:
            yield server.count
        finally:
            await server.farewell()


class _Server:
    def __init__(self, service: Service, listener: socket.socket) -> None:
        # Whatever a client does wrong, it must not fill the daemon's log.
        logging.getLogger("asyncvarlink").setLevel(logging.CRITICAL)
        self._service = service
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._group = group_id()
        self._clients = Places(CLIENTS_MAX)
        self._followers = Places(FOLLOWERS_MAX)
        # Of those who may not change things, each user has one turn at a time, and all of them one.
        self._anybodys_turn = asyncio.Lock()
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._connections: dict[Connection, VarlinkTransport] = {}
        # A connection is not read while a call is answered, so that its end would go unnoticed; this tells.
        self._hangups = select.epoll()
        self._by_descriptor: dict[int, Connection] = {}
        self._loop.add_reader(self._hangups, self._hung_up)
        self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        self._loop.remove_reader(self._hangups)
        self._hangups.close()

    def count(self) -> int:
        """The number of connections."""
        return len(self._connections)

    async def farewell(self) -> None:
        """Stop accepting, let answers under way be finished, and close all connections."""
        self._loop.remove_reader(self._listener)
        for connection in self._connections:
            connection.end()
        answers = [c.answer for c in self._connections if c.answer and not c.answer.done()]
        if answers:
            await asyncio.wait(answers, timeout=_FAREWELL)
        closing = [transport.closed_future for transport in self._connections.values()]
        for connection in self._connections:
            connection.abort()
        await asyncio.gather(*closing)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._loop.remove_reader(self._listener)
                self._loop.call_later(_PAUSE, self._resume)
            return
        try:
            client.setblocking(False)
            self._serve(client)
        except OSError:
            client.close()  # gone already

    def _resume(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)

    def _serve(self, client: socket.socket) -> None:
        peer = peer_of(client)
        trusted = peer.may_change(self._group)
        if not self._clients.take(peer.uid, trusted):
            client.close()
            return
        over = self._loop.create_future()
        registry = VarlinkInterfaceRegistry()
        registry.register_interface(EvertapInterface(self._service, peer, trusted, over, self._followers))
        registry.register_interface(VarlinkServiceInterface("evertap", "evertap", __version__, "", registry))
        connection = Connection(registry, over, self._bounds(peer.uid, trusted))
        # No boundary predictor: it makes the transport read for as long as a client keeps sending.
        transport = VarlinkTransport(self._loop, client, client, connection, boundary_predictor=None)
        self._connections[connection] = transport
        descriptor = client.fileno()
        self._by_descriptor[descriptor] = connection
        self._hangups.register(descriptor, select.EPOLLRDHUP | select.EPOLLONESHOT)

        def closed(_: asyncio.Future[None]) -> None:
            self._clients.leave(peer.uid, trusted)
            del self._connections[connection]
            if self._by_descriptor.get(descriptor) is connection:
                del self._by_descriptor[descriptor]

        transport.closed_future.add_done_callback(closed)

    def _bounds(self, uid: int, trusted: bool) -> Bounds:
        if trusted:
            return OURS
        turn = self._turns.setdefault(uid, asyncio.Lock())
        return Bounds(ANYBODYS_MESSAGE_MAX, (turn, self._anybodys_turn))

    def _hung_up(self) -> None:
        for descriptor, _ in self._hangups.poll(0):
            if connection := self._by_descriptor.get(descriptor):
                connection.end()
