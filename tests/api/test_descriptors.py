"""Taps as descriptors: who gets them, and that nobody keeps what he should not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
from pathlib import Path

import pytest

from evertap.api.client import Client, connect
from evertap.api.errors import PermissionDeniedError
from evertap.api.server import serve
from evertap.model.errors import EvertapError, NoSuchNicError
from tests.api.clients import NOBODY, as_user, call, needs_root, raw, served_for_all, until, with_client
from tests.api.fake import FakeService, view

OPEN = call("org.evertap.OpenTap", name="web0")


def queue(descriptor: int | str) -> str:
    """Which of the fake's queues it is; empty for anything else."""
    try:
        target = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
    except FileNotFoundError:  # of the listing itself
        return ""
    return target.removeprefix("/memfd:").removesuffix(" (deleted)") if "memfd:web" in target else ""


def held() -> list[str]:
    """The queues that this process, client and server in one, has open."""
    return sorted(name for fd in os.listdir("/proc/self/fd") if (name := queue(fd)))  # noqa: PTH208


def close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


async def flood(client: socket.socket) -> None:
    """Ask for the tap until the daemon takes no more questions."""
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            client.send(OPEN * 20)
            await asyncio.sleep(0)


def test_all_queues_arrive_in_order_and_are_the_callers_alone(tmp_path: Path) -> None:
    service = FakeService(view("web0"), view("web1"))
    service.queues = 3

    async def story(client: Client) -> None:
        first, second = await client.open_tap("web0"), await client.open_tap("web1")
        assert [queue(fd) for fd in first + second] == [
            f"{name} {number}" for name in ("web0", "web1") for number in range(3)
        ]
        assert len(held()) == 6
        assert not any(os.get_inheritable(fd) for fd in first + second)
        close(first + second)

    with_client(tmp_path, service, story)
    assert held() == []


def test_as_many_queues_as_one_message_takes_and_more_are_refused(tmp_path: Path) -> None:
    service = FakeService(view())

    async def story(client: Client) -> None:
        service.queues = 253
        close(await client.open_tap("web0"))
        service.queues = 254
        with pytest.raises(EvertapError, match=r"has 254 queues, and no more than 253 can .* lower `queues`"):
            await client.open_tap("web0")
        assert held() == []
        assert await client.plan()

    with_client(tmp_path, service, story)


@pytest.mark.parametrize("error", [EvertapError("a VMM holds it"), NoSuchNicError("web0")])
def test_errors_come_without_descriptors_and_the_connection_stays(tmp_path: Path, error: Exception) -> None:
    service = FakeService(view())

    async def story(client: Client) -> None:
        service.error = error
        with pytest.raises(type(error)):
            await client.open_tap("web0")
        close(await client.open_tap("web0"))

    with_client(tmp_path, service, story)
    assert held() == []


def test_an_answer_that_nobody_wants_is_closed(tmp_path: Path) -> None:
    service = FakeService(view())
    service.queues = 2
    oneway = {"method": "org.evertap.OpenTap", "parameters": {"name": "web0"}, "oneway": True}

    async def story(client: Client) -> None:
        with raw(tmp_path) as other:
            other.sendall(json.dumps(oneway).encode() + b"\0")
            await until(lambda: ("open_tap", "web0") in service.calls)
            await client.plan()
            assert held() == []

    with_client(tmp_path, service, story)


@pytest.mark.parametrize("trusted", [True, False], ids=["at once", "after a look-up"])
def test_a_client_that_goes_before_its_answer_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    monkeypatch.setattr("evertap.api.peer.Peer.may_change", lambda *_: trusted)
    monkeypatch.setattr("evertap.api.interface.is_user", lambda *_: True)
    service = FakeService(view())

    async def story() -> None:
        async with serve(service, tmp_path):
            for _ in range(50):
                service.calls.clear()
                with raw(tmp_path) as client:
                    client.sendall(OPEN)
                await until(lambda: ("open_tap", "web0") in service.calls)
            await until(lambda: held() == [])

    asyncio.run(story(), debug=True)


def test_a_client_that_never_reads_has_the_daemon_hold_one_answer_at_most(tmp_path: Path) -> None:
    service = FakeService(view())
    service.queues = 2

    async def story(client: Client) -> None:
        with raw(tmp_path) as greedy:
            await flood(greedy)
            for _ in range(20):
                await client.plan()
            assert len(held()) <= 2
        await until(lambda: held() == [])

    with_client(tmp_path, service, story)


def test_descriptors_still_waiting_when_the_daemon_stops_are_closed(tmp_path: Path) -> None:
    service = FakeService(view())

    async def story() -> None:
        async with serve(service, tmp_path):
            greedy = raw(tmp_path)
            await flood(greedy)
        greedy.close()
        assert held() == []

    asyncio.run(story(), debug=True)


# Other users


def opened(folder: Path, name: str = "web0") -> int:
    """The number of queues got; 50: refused."""

    async def story() -> int:
        async with connect(folder) as client:
            try:
                descriptors = await client.open_tap(name)
            except PermissionDeniedError:
                return 50
            os.write(descriptors[0], b"x")
            with pytest.raises(PermissionDeniedError):
                await client.disconnect(name)
            return len(descriptors)

    return asyncio.run(story())


@needs_root
@pytest.mark.parametrize(
    ("owner", "user", "outcome"),
    [("nobody", NOBODY, 2), ("nobody", 4243, 50), ("", NOBODY, 50), ("no such user", NOBODY, 50)],
)
def test_the_owner_may_open_the_tap_and_change_nothing(
    tmp_path: Path, owner: str, user: int, outcome: int
) -> None:
    service = FakeService(view())
    service.owner, service.queues = owner, 2
    with served_for_all(service, tmp_path) as folder:
        assert as_user(user, [], lambda: opened(folder)) == outcome


def test_refusal_names_who_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evertap.api.peer.Peer.may_change", lambda *_: False)
    service = FakeService(view())

    async def story(client: Client) -> None:
        for owner, told in (("daemon", '"daemon"'), ("", "which names none")):
            service.owner = owner
            with pytest.raises(PermissionDeniedError) as caught:
                await client.open_tap("web0")
            assert str(caught.value) == (
                f'user {os.geteuid()} may not open the tap of NIC "web0": that is for root, for members of '
                f'the group "evertap", and for the owner in its definition, {told}'
            )

    with_client(tmp_path, service, story)
    assert ("open_tap", "web0") not in service.calls


@needs_root
def test_a_client_without_room_for_all_of_them_keeps_none(tmp_path: Path) -> None:
    service = FakeService(view())
    service.queues = 3

    def crowded() -> int:
        async def story() -> int:
            async with connect(tmp_path / "run") as client:
                await client.plan()
                lowest = os.dup(0)
                os.close(lowest)
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, 4096))
                with pytest.raises(EvertapError, match="of 3 descriptors, 1 arrived: raise the limit"):
                    await client.open_tap("web0")
                await asyncio.sleep(0)
                resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
                assert held() == []
                assert await client.plan()
                return 7

        return asyncio.run(story())

    with served_for_all(service, tmp_path):
        assert as_user(0, [], crowded) == 7
