"""Clients of the API for its tests: in the same loop, raw on the socket, and as other users."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from evertap.api.client import Client, connect
from evertap.api.server import serve
from tests.api.fake import FakeService

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")


def with_client(folder: Path, service: FakeService, story: Callable[[Client], Awaitable[Any]]) -> Any:
    """Serve, connect, and run the story in the same loop."""

    async def all_of_it() -> Any:
        async with serve(service, folder), connect(folder) as client:
            return await story(client)

    return asyncio.run(all_of_it(), debug=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def raw(folder: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(folder / "evertap.sock"))
    client.settimeout(10)
    return client


def call(method: str, more: bool = False, **parameters: Any) -> bytes:
    return json.dumps({"method": method, "parameters": parameters, "more": more}).encode() + b"\0"


def as_user(uid: int, groups: list[int], action: Callable[[], int]) -> int:
    """Run it in a child with these rights; its exit code."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setgroups(groups)
            os.setgid(uid)
            os.setuid(uid)
            code = action()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def served_for_all(service: FakeService, tmp_path: Path) -> Iterator[Path]:
    """Serve it from a process of its own, in a folder that every user reaches."""
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        folder.chmod(folder.stat().st_mode | 0o011)
    runtime = tmp_path / "run"
    daemon = os.fork()
    if daemon == 0:

        async def serving() -> None:
            async with serve(service, runtime):
                await asyncio.sleep(30)

        try:
            os.umask(0o022)
            asyncio.run(serving())
        finally:
            os._exit(0)
    try:
        deadline = time.monotonic() + 10
        while not (runtime / "evertap.sock").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        yield runtime
    finally:
        os.kill(daemon, 9)
        os.waitpid(daemon, 0)
