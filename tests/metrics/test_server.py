"""The metrics' server: requests of all kinds, and clients that are slow, many or hostile."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from evertap.engine.ports import Figures, NicFigures
from evertap.lab.netns import Namespace
from evertap.metrics import server
from evertap.metrics.server import serve_metrics
from evertap.model.errors import EvertapError
from tests.metrics.test_text import figures

HERE = ("127.0.0.1", 9177)
GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(autouse=True)
def private(namespace: Namespace) -> Iterator[None]:
    """Addresses and ports of our own."""
    with namespace.enter():
        yield


class Source:
    """Counts how often it was asked."""

    def __init__(self, nics: int = 1, tail: str = "") -> None:
        self.asked = 0
        self._nics = [NicFigures(f"vm{n}" + tail, "connected", "eth0", 0, 0.0) for n in range(nics)]

    def __call__(self) -> Figures:
        self.asked += 1
        return figures(*self._nics)


def serving(body: Callable[[], Awaitable[None]], source: Source | None = None, *where: str) -> None:
    async def main() -> None:
        async with serve_metrics(where[0] if where else HERE[0], HERE[1], source or Source()):
            async with asyncio.timeout(20):
                await body()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


async def ask(request: bytes, host: str = HERE[0]) -> tuple[bytes, bytes]:
    """Head and body of the answer; both empty if there is none."""
    reader, writer = await asyncio.open_connection(host, HERE[1])
    try:
        writer.write(request)
        if b"\r\n\r\n" not in request:
            writer.write_eof()
        head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
        return head, body
    except ConnectionResetError:
        return b"", b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_metrics_are_had_by_both_protocols(host: str) -> None:
    async def body() -> None:
        head, text = await ask(GET, host)
        assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
        assert f"Content-Length: {len(text)}".encode() in head
        assert b'evertap_nic_state{nic="vm0",state="connected"} 1.0\n' in text
        assert (await ask(b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", host))[0].startswith(b"HTTP/1.1 200")

    serving(body, None, host)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics/../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", b"405"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /metrics HTTP/2.0\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"\xff\x00 \xfe\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n", b"431"),
        (b"x" * 100_000, b"431"),
        (b"GET /metrics HTTP/1.1\r\n", b""),
        (b"", b""),
    ],
)
def test_other_requests_are_refused_and_the_next_is_answered(request_: bytes, status: bytes) -> None:
    async def body() -> None:
        head, _ = await ask(request_)
        # What the server has not read can cost the sender the answer (RST); it is refused all the same.
        assert head[9:12] == status or (status == b"431" and head == b"")
        assert (await ask(GET))[0].startswith(b"HTTP/1.1 200")

    serving(body)


def test_clients_that_keep_their_places_are_thrown_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE", 1.0)

    async def body() -> None:
        silent = [await asyncio.open_connection(*HERE) for _ in range(server.CLIENTS_MAX)]
        assert await ask(GET) == (b"", b"")
        ends = await asyncio.gather(*(reader.read() for reader, _ in silent), return_exceptions=True)
        assert all(end == b"" or isinstance(end, ConnectionResetError) for end in ends)
        assert (await ask(GET))[0].startswith(b"HTTP/1.1 200")
        for _, writer in silent:
            writer.close()

    serving(body)


def test_a_client_that_does_not_read_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    drained: list[int] = []
    real = asyncio.StreamWriter.drain

    async def drain(writer: asyncio.StreamWriter) -> None:
        drained.append(writer.transport.get_write_buffer_size())
        await real(writer)

    monkeypatch.setattr(asyncio.StreamWriter, "drain", drain)

    async def body() -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(server.CLIENTS_MAX - 1):
                lazy = stack.enter_context(socket.socket())
                lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                lazy.connect(HERE)
                lazy.sendall(GET)
            head, text = await ask(GET)
            assert head.startswith(b"HTTP/1.1 200")
            assert len(text) > 10_000_000  # more than the kernel takes
            assert 65536 < max(drained) <= 3 * 65536  # not the whole text for each of them
            assert (await ask(GET))[0].startswith(b"HTTP/1.1 200")

    serving(body, Source(1000, "x" * 2000))


def test_many_scrapers_share_one_text_and_the_loop_stays_free() -> None:
    source = Source(2000)
    waits: list[float] = []

    async def body() -> None:
        asking = asyncio.gather(*(ask(GET) for _ in range(server.CLIENTS_MAX)))
        while not asking.done():
            before = time.thread_time()
            await asyncio.sleep(0)
            waits.append(time.thread_time() - before)
        answers = await asking
        assert len({text for _, text in answers}) == 1
        assert source.asked == 1
        assert len(waits) > 100  # one for every piece at least
        assert max(waits) < 0.1  # seconds of CPU, of which all together take more

    serving(body, source)


def test_an_address_that_cannot_be_had_is_told() -> None:
    async def body() -> None:
        with pytest.raises(EvertapError, match=r"at 127.0.0.1:9177: .*in use.*--metrics"):
            async with serve_metrics(*HERE, Source()):
                pass
        with pytest.raises(EvertapError, match=r"at \[2001:db8::9\]:9177: "):
            async with serve_metrics("2001:db8::9", 9177, Source()):
                pass

    serving(body)


def test_stopping_waits_for_no_client() -> None:
    async def main() -> None:
        async with asyncio.timeout(5):
            async with serve_metrics(*HERE, Source()):
                reader, writer = await asyncio.open_connection(*HERE)
                await asyncio.sleep(0.05)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()

    asyncio.run(main())
