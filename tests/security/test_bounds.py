"""What the server allows a client that may not change things, seen from inside."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from evertap.api import connection
from evertap.api.client import connect
from evertap.api.server import serve
from evertap.model.views import NicView
from tests.api.clients import call, raw, until
from tests.api.fake import FakeService, event, view


@pytest.fixture
def nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """No client may change things."""
    monkeypatch.setattr("evertap.api.peer.Peer.may_change", lambda *_: False)


def test_who_does_not_take_his_answer_loses_his_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "TAKEN_WITHIN", 0.1)
    service = FakeService(*(view(f"nic{number}") for number in range(1000)))

    async def story() -> None:
        async with serve(service, tmp_path) as count:
            with raw(tmp_path) as lazy:
                lazy.sendall(call("org.evertap.Nics"))
                await until(lambda: count() == 1)
                await until(lambda: count() == 0)
            async with connect(tmp_path) as client:
                assert len(await client.nics()) == 1000

    asyncio.run(story(), debug=True)


def test_a_follower_may_take_his_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TAKEN_WITHIN", 0.05)
    service = FakeService(view())

    async def story() -> None:
        async with serve(service, tmp_path) as count:
            with raw(tmp_path) as slow:
                slow.sendall(call("org.evertap.Follow", more=True, name=None))
                await until(lambda: bool(service.following))
                for _ in range(20):
                    service.happens(*(event(number) for number in range(500)))
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)
                assert count() == 1

    asyncio.run(story(), debug=True)


@pytest.mark.usefixtures("nobodys")
def test_between_the_answers_to_many_clients_the_loop_does_what_else_is_due(tmp_path: Path) -> None:
    turn = 0
    asked_in: list[int] = []

    class Noting(FakeService):
        def nics(self) -> list[NicView]:
            asked_in.append(turn)
            return []

    async def story() -> None:
        loop = asyncio.get_running_loop()

        def count() -> None:
            nonlocal turn
            turn += 1
            loop.call_soon(count)

        async with serve(Noting(), tmp_path) as accepted:
            clients = [raw(tmp_path) for _ in range(20)]
            try:
                await until(lambda: accepted() == len(clients))
                for client in clients:
                    client.sendall(call("org.evertap.Nics"))
                loop.call_soon(count)
                await until(lambda: len(asked_in) == len(clients))
            finally:
                for client in clients:
                    client.close()

    asyncio.run(story())
    assert len(set(asked_in)) == len(asked_in)


@pytest.mark.usefixtures("nobodys")
def test_a_message_of_somebody_who_may_only_ask_is_short(tmp_path: Path) -> None:
    async def story() -> None:
        async with serve(FakeService(), tmp_path) as count:
            for size, left in ((60_000, 1), (connection.ANYBODYS_MESSAGE_MAX + 1, 0)):
                with raw(tmp_path) as client:
                    client.setblocking(False)
                    await asyncio.get_running_loop().sock_sendall(client, b"x" * size)
                    await asyncio.sleep(0.1)
                    assert count() == left
                await until(lambda: count() == 0)

    asyncio.run(story())
