"""Serves the metrics by HTTP on the loop: a slow or hostile scraper takes little time and memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from evertap.engine.ports import Figures
from evertap.metrics.text import Text
from evertap.model.errors import EvertapError

CLIENTS_MAX: Final = 8
REQUEST_MAX: Final = 8192
"""Bytes of a request's head."""

PATIENCE: Final = 10.0
"""Seconds that a client has, from connecting to having read the answer."""

_REST: Final = 10
"""A text is given again for so many times as long as it took to make: scrapers get a tenth of a core."""

_CHUNK: Final = 64 * 1024  # bytes


@asynccontextmanager
async def serve_metrics(address: str, port: int, figures: Callable[[], Figures]) -> AsyncIterator[None]:
    """Serve what `figures` tells at http://address:port/metrics (EvertapError: the address cannot be had)."""
    server = _Server(figures)
    try:
        listening = await asyncio.start_server(server.serve, address, port, limit=REQUEST_MAX)
    except OSError as error:
        where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        raise EvertapError(
            f"metrics cannot be served at {where}: {error.strerror}. Name another address with --metrics, or "
            "end what has it"
        ) from error
    try:
        yield
    finally:
        listening.close()
        await server.close()


class _Server:
    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._figures = figures
        self._text = Text()
        self._made = b""
        self._good_until = 0.0
        self._making = asyncio.Lock()
        self._clients: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a client, if there is room."""
        if len(self._clients) >= CLIENTS_MAX:
            writer.transport.abort()
            return
        client = asyncio.get_running_loop().create_task(self._answer(reader, writer))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                status, body = await self._asked(reader)
                await _send(writer, status, body)
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client's own affair
        finally:
            writer.transport.abort()

    async def _asked(self, reader: asyncio.StreamReader) -> tuple[str, bytes]:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return "431 Request Header Fields Too Large", b"too long\n"
        method, _, rest = head.split(b"\r\n", 1)[0].partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if not rest.endswith((b" HTTP/1.1", b" HTTP/1.0")):
            return "400 Bad Request", b"only HTTP/1.1 is spoken here\n"
        if method != b"GET":
            return "405 Method Not Allowed", b"only GET is known here\n"
        if path != b"/metrics":
            return "404 Not Found", b"the metrics are at /metrics\n"
        return "200 OK", await self._metrics()

    async def _metrics(self) -> bytes:
        """The text: a piece at a time on the loop, so that a NIC's events wait for one piece at most.

        In a thread, the interpreter's lock would hold the loop up for longer.
        """
        loop = asyncio.get_running_loop()
        async with self._making:
            if loop.time() >= self._good_until:
                began = loop.time()
                pieces = []
                for piece in self._text.pieces(self._figures()):
                    pieces.append(piece)
                    await asyncio.sleep(0)
                self._made = b"".join(pieces)
                self._good_until = loop.time() + _REST * (loop.time() - began)
            return self._made


async def _send(writer: asyncio.StreamWriter, status: str, body: bytes) -> None:
    kind = (
        "text/plain; version=0.0.4; charset=utf-8"
        if status.startswith("200")
        else "text/plain; charset=utf-8"
    )
    more = "Allow: GET\r\n" if status.startswith("405") else ""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}"
        "Connection: close\r\n\r\n"
    )
    writer.write(head.encode())
    # Not at once: what the client has not read yet would be copied for each of them.
    for start in range(0, len(body), _CHUNK):
        writer.write(body[start : start + _CHUNK])
        await writer.drain()
