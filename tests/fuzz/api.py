"""The local API's socket, with a client that sends whatever it likes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from evertap.api.server import serve
from tests.api.fake import FakeService, view

_ANSWERS = 1 << 20


class Api(logging.Handler):
    """Serves in a loop of its own; whatever goes to the log is a finding."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._service = FakeService(view("web0"))
        self._trouble: list[str] = []
        self._folder = Path()
        self._stack = contextlib.AsyncExitStack()
        self._pid = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of it."""
        self._trouble.append(f"{record.getMessage()} {record.exc_info}")

    def run(self, data: bytes) -> None:
        """Connect, send, hang up, and read all answers."""
        loop = self._start()
        self._service.calls.clear()
        loop.run_until_complete(asyncio.wait_for(self._client(data), 20))
        trouble, self._trouble = self._trouble, []
        assert not trouble, trouble

    def _start(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or self._pid != os.getpid():
            self._pid = os.getpid()
            self._folder = Path(tempfile.mkdtemp(prefix="evertap-fuzz-"))
            self._loop = asyncio.new_event_loop()
            self._loop.set_exception_handler(self._note)
            logging.getLogger("evertap").addHandler(self)
            self._loop.run_until_complete(self._serve())
        return self._loop

    def _note(self, _: object, context: dict[str, Any]) -> None:
        self._trouble.append(repr(context))

    async def _serve(self) -> None:
        await self._stack.enter_async_context(serve(self._service, self._folder))

    async def _client(self, data: bytes) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self._folder / "evertap.sock"))
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                writer.write_eof()
                answers = 0
                while some := await reader.read(65536):
                    answers += len(some)
                    assert b"a fault in evertap" not in some, some
                    if answers > _ANSWERS:
                        break
        finally:
            writer.transport.abort()

    def close(self) -> None:
        """End the server, and remove its folder."""
        if self._loop is not None and self._pid == os.getpid():
            self._loop.run_until_complete(self._stack.aclose())
            self._loop.close()
            self._loop = None
            logging.getLogger("evertap").removeHandler(self)
            shutil.rmtree(self._folder)
        super().close()
