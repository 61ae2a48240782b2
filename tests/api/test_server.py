"""The API's server and client together, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from evertap.api import connection, follower, server
from evertap.api.client import Client, connect
from evertap.api.errors import NotReachableError, PermissionDeniedError
from evertap.api.peer import Places
from evertap.api.server import serve
from evertap.model.errors import DefinitionError, EvertapError, NoSuchNicError
from evertap.model.views import ActionView
from tests.api.clients import NOBODY, as_user, call, needs_root, raw, served_for_all, until, with_client
from tests.api.fake import FakeService, event, view

# What goes through


def test_every_question_and_change_reaches_the_service_and_comes_back(tmp_path: Path) -> None:
    service = FakeService(view("web0"), view("web1", state="waiting", uplink=None, tap=None))

    async def story(client: Client) -> None:
        assert await client.nics() == list(service.known.values())
        assert await client.nic("web1") == service.known["web1"]
        assert await client.uplinks() == service.uplinks()
        assert await client.plan() == [ActionView("web0", "create_tap", "create tap web0")]
        assert await client.arguments(["web0"]) == ["-netdev", "tap,id=web0,x=a b"]
        assert await client.history() == service.history(None)
        assert await client.wait("web1", "waiting", 1) == service.known["web1"]
        service.calls.clear()
        await client.define({"web0": "mac = 1"})
        await client.undefine(["web0"])
        await client.connect("web0")
        await client.disconnect("web0")
        await client.retarget("web0", ["eth1", "name=eth2,mode=vepa"], live=True)
        await client.attach("web0", "/vm/ü.qmp")
        await client.detach("web0")
        await client.arguments(["web0"])
        await client.arguments(["web0"], {"web0": [7, 8]}, vhost=False)

    with_client(tmp_path, service, story)
    assert [told for told in service.calls if told[0] != "nic"] == [
        ("define", {"web0": "mac = 1"}),
        ("undefine", ["web0"]),
        ("connect", "web0"),
        ("disconnect", "web0"),
        ("retarget", "web0", ["eth1", "name=eth2,mode=vepa"], True),
        ("attach", "web0", "/vm/ü.qmp"),
        ("detach", "web0"),
        ("arguments", ["web0"], None, True),
        ("arguments", ["web0"], {"web0": [7, 8]}, False),
    ]


@pytest.mark.parametrize(
    "error",
    [
        NoSuchNicError("web7"),
        DefinitionError("web0.toml", "uplinks[1].mode", "found 7"),
        EvertapError("the disk is full"),
        TimeoutError("too late"),
    ],
)
def test_errors_come_back_as_what_they_were(tmp_path: Path, error: Exception) -> None:
    service = FakeService()

    async def story(client: Client) -> None:
        service.error = error
        await client.plan()

    with pytest.raises(type(error)) as caught:
        with_client(tmp_path, service, story)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    if isinstance(error, DefinitionError):
        assert isinstance(caught.value, DefinitionError)
        assert (caught.value.file, caught.value.field, caught.value.problem) == (
            error.file,
            error.field,
            error.problem,
        )


def test_a_fault_of_ours_is_an_error_for_its_caller_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = FakeService(view())

    async def story(client: Client) -> None:
        service.error = ZeroDivisionError("oops")
        with pytest.raises(EvertapError, match=r"a fault in evertap \(ZeroDivisionError: oops\)"):
            await client.nics()
        assert len(await client.nics()) == 1

    with_client(tmp_path, service, story)
    assert "ZeroDivisionError" in caplog.text


def test_the_interface_describes_itself(tmp_path: Path) -> None:
    async def story() -> str:
        async with serve(FakeService(), tmp_path):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "evertap.sock")
            writer.write(call("org.varlink.service.GetInterfaceDescription", interface="org.evertap"))
            answer = json.loads((await reader.readuntil(b"\0"))[:-1])
            writer.close()
            await writer.wait_closed()
            return str(answer["parameters"]["description"])

    description = asyncio.run(story())
    assert "interface org.evertap" in description
    assert "method Nics() -> (nics: []NicView)" in description
    assert "method OpenTap(name: string) -> (descriptors: []int)" in description
    assert "error BadDefinition (file: string, field: string, problem: string)" in description


def test_names_that_are_not_text_go_through(tmp_path: Path) -> None:
    service = FakeService(view(uplink="eth\udcff"))

    async def story(client: Client) -> str | None:
        return (await client.nic("web0")).uplink

    assert with_client(tmp_path, service, story) == "eth\udcff"


# The socket


def test_socket_is_for_everybody_and_goes_with_the_daemon(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    before = os.umask(0o077)
    try:

        async def story(client: Client) -> None:
            assert (folder / "evertap.sock").stat().st_mode & 0o777 == 0o666
            assert folder.stat().st_mode & 0o777 == 0o755

        with_client(folder, FakeService(), story)
    finally:
        os.umask(before)
    assert not (folder / "evertap.sock").exists()


def test_socket_of_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "evertap.sock"))

    async def story(client: Client) -> int:
        return len(await client.nics())

    assert with_client(tmp_path, FakeService(view()), story) == 1


def test_second_daemon_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async def story(client: Client) -> None:
        with pytest.raises(
            EvertapError, match=r"^another evertap daemon is running in /.*; stop it, or name"
        ):
            async with serve(FakeService(), tmp_path):
                pass
        assert await client.nics() == []

    with_client(tmp_path, FakeService(), story)


def test_too_long_a_path_is_a_clear_error(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)

    async def story() -> None:
        with pytest.raises(EvertapError, match=r"cannot listen on .*AF_UNIX path too long"):
            async with serve(FakeService(), folder):
                pass
        with pytest.raises(NotReachableError, match="AF_UNIX path too long"):
            async with connect(folder):
                pass

    asyncio.run(story())


def test_no_daemon_is_not_reachable(tmp_path: Path) -> None:
    async def story() -> None:
        async with connect(tmp_path):
            pass

    with pytest.raises(
        NotReachableError, match=r"no evertap daemon is reachable at .*: No such file.*Start it"
    ):
        asyncio.run(story())


def test_daemon_that_stops_ends_followers_and_waits(tmp_path: Path) -> None:
    service = FakeService(view())

    async def follow() -> None:
        async with connect(tmp_path) as client, aclosing(client.follow()) as events:
            async for _ in events:
                pass

    async def wait() -> None:
        async with connect(tmp_path) as client:
            await client.wait("web0", "failed")

    async def story() -> list[Any]:
        async with serve(service, tmp_path):
            clients = [asyncio.create_task(follow()), asyncio.create_task(wait())]
            await until(lambda: bool(service.following and service.waiting))
        return await asyncio.gather(*clients, return_exceptions=True)

    for outcome in asyncio.run(story(), debug=True):
        assert isinstance(outcome, EvertapError)
        assert str(outcome) == "the daemon is stopping, or the connection was closed"
    assert not service.following
    assert not service.waiting


# Rights


def try_both(folder: Path) -> int:
    """1: may read, 2: may change."""

    async def story() -> int:
        async with connect(folder) as client:
            allowed = len(await client.nics())
            try:
                await client.disconnect("web0")
            except PermissionDeniedError:
                return allowed
            return allowed + 2

    return asyncio.run(story())


@needs_root
def test_others_may_read_and_only_the_group_and_root_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "group_id", lambda: 4242)
    with served_for_all(FakeService(view()), tmp_path) as folder:
        assert as_user(NOBODY, [], lambda: try_both(folder)) == 1
        assert as_user(NOBODY, [100, 4242], lambda: try_both(folder)) == 3
        assert as_user(4242, [], lambda: try_both(folder)) == 3
        assert as_user(0, [], lambda: try_both(folder)) == 3


def test_refusal_names_the_user_and_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evertap.api.peer.Peer.may_change", lambda *_: False)

    async def story(client: Client) -> None:
        assert await client.nics() == []
        for change in (
            client.define({}),
            client.undefine([]),
            client.connect("web0"),
            client.disconnect("web0"),
            client.retarget("web0", ["eth0"]),
            client.attach("web0", "/vm/web0.qmp"),
            client.detach("web0"),
        ):
            with pytest.raises(PermissionDeniedError) as caught:
                await change
            assert str(caught.value) == (
                f"user {os.geteuid()} may only read: changes are for root and for members of the group "
                '"evertap"'
            )

    service = FakeService()
    with_client(tmp_path, service, story)
    assert service.calls == [("nics",)]


# Clients that mean no good


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"\xff\xfe\0",
        b"not json\0",
        b"[1, 2]\0",
        b"{}\0",
        b'{"method": 7}\0',
        b'{"method": "nodots"}\0',
        b'{"method": "org.evertap.Nics", "parameters": []}\0',
        b'{"method": "org.evertap.Nics", "more": 3}\0',
        b"[" * 100_000 + b"\0",
        b"9" * 10_000 + b"\0",
        b"x" * (connection.MESSAGE_MAX + 100_000),
    ],
    ids=lambda data: repr(data[:20]),
)
def test_a_client_that_speaks_no_varlink_is_dropped(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(client: Client) -> None:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "evertap.sock")
        try:
            writer.write(data)
            async with asyncio.timeout(10):
                assert await reader.read() == b""
        except ConnectionError:
            pass
        finally:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        assert await client.nics() == []

    with_client(tmp_path, FakeService(), story)
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (call("org.evertap.Nothing"), "org.varlink.service.MethodNotFound"),
        (call("org.evertap.render_interface_description"), "dropped"),
        (call("org.other.Nics"), "org.varlink.service.InterfaceNotFound"),
        (call("org.evertap.Follow", name=None), "org.varlink.service.ExpectedMore"),
        (call("org.evertap.Nic"), "org.varlink.service.InvalidParameter"),
        (call("org.evertap.Nic", name=7), "org.varlink.service.InvalidParameter"),
        (call("org.evertap.Nic", name="x", more_of="y"), "org.varlink.service.InvalidParameter"),
        (call("org.evertap.Wait", name="web0", state="happy"), "org.varlink.service.InvalidParameter"),
        (
            call("org.evertap.Wait", name="web0", state="failed", timeout=float("nan")),
            "org.varlink.service.InvalidParameter",
        ),
        (
            call("org.evertap.Wait", name="web0", state="failed", timeout=-1),
            "org.varlink.service.InvalidParameter",
        ),
        (call("org.evertap.Nic", name="\ud800"), "org.evertap.NoSuchNic"),
        (call("org.evertap.Attach", name="web0", qmp="a.qmp"), "org.varlink.service.InvalidParameter"),
        (call("org.evertap.Attach", name="web0", qmp="/a\0b"), "org.varlink.service.InvalidParameter"),
        (
            call("org.evertap.Arguments", names=["web0"], descriptors={"web0": ["7"]}),
            "org.varlink.service.InvalidParameter",
        ),
    ],
    ids=lambda value: value[:60] if isinstance(value, bytes) else "",
)
def test_a_wrong_call_gets_an_error_and_the_connection_stays(tmp_path: Path, data: bytes, error: str) -> None:
    async def story() -> None:
        async with serve(FakeService(view()), tmp_path):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "evertap.sock")
            writer.write(data + call("org.evertap.Plan"))
            async with asyncio.timeout(10):
                if error == "dropped":
                    assert await reader.read() == b""
                else:
                    assert json.loads((await reader.readuntil(b"\0"))[:-1])["error"] == error
                    assert "parameters" in json.loads((await reader.readuntil(b"\0"))[:-1])
            writer.close()
            await writer.wait_closed()

    asyncio.run(story())


def test_a_client_that_asks_and_never_reads_is_not_answered_further(tmp_path: Path) -> None:
    service = FakeService(*(view(f"nic{number}") for number in range(1000)))

    async def story(client: Client) -> None:
        with raw(tmp_path) as greedy:
            greedy.setblocking(False)
            sent = 0
            try:
                while sent < 50_000:
                    sent += greedy.send(call("org.evertap.Nics") * 20)
                    await asyncio.sleep(0)
            except BlockingIOError:
                pass
            for _ in range(20):
                await client.plan()
            assert service.calls.count(("nics",)) <= 3

    with_client(tmp_path, service, story)


def test_a_client_that_floods_does_not_hold_others_up(tmp_path: Path) -> None:
    async def flood() -> None:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "evertap.sock")
        try:
            while True:
                writer.write(call("org.evertap.Nothing") * 100)
                await writer.drain()
                await reader.read(10_000)
        finally:
            writer.close()

    async def story(client: Client) -> None:
        flooding = [asyncio.create_task(flood()) for _ in range(4)]
        async with asyncio.timeout(10):
            for _ in range(50):
                await client.plan()
        for task in flooding:
            task.cancel()
        await asyncio.gather(*flooding, return_exceptions=True)

    async def all_of_it() -> None:
        async with serve(FakeService(), tmp_path), connect(tmp_path) as client:
            await story(client)

    asyncio.run(all_of_it())


def test_places_are_bounded_and_some_are_kept_for_those_who_may_change(tmp_path: Path) -> None:
    places = Places(8)
    assert [places.take(user, trusted=False) for user in (1, 1, 1, 2, 2, 2, 3, 3, 4)] == [
        *(True, True, False),  # one user's quarter
        *(True, True, False),
        *(True, True),
        False,  # their three quarters
    ]
    assert [places.take(5, trusted=True) for _ in range(3)] == [True, True, False]
    for _ in range(2):
        places.leave(5, trusted=True)
    places.leave(1, trusted=False)
    assert [places.take(user, trusted=False) for user in (2, 1)] == [False, True]


def test_more_clients_than_there_is_room_for_are_turned_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CLIENTS_MAX", 2)

    async def story(client: Client) -> None:
        async with connect(tmp_path) as second:
            await second.plan()
            async with connect(tmp_path) as third:
                with pytest.raises(NotReachableError, match="has as many clients as it takes"):
                    await third.plan()
        await client.plan()
        for _ in range(20):  # places are given back
            async with connect(tmp_path) as other:
                try:
                    await other.plan()
                    return
                except NotReachableError:
                    await asyncio.sleep(0.01)
        pytest.fail("the place was not given back")

    with_client(tmp_path, FakeService(), story)


def test_out_of_descriptors_the_server_pauses_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_PAUSE", 0.1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def story(client: Client) -> None:
        await client.plan()  # accepted
        used = max(int(fd) for fd in os.listdir("/proc/self/fd"))  # noqa: PTH208
        extra = socket.socket(socket.AF_UNIX)
        fillers = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 10, limits[1]))
            with contextlib.suppress(OSError):
                while True:
                    fillers.append(os.dup(0))
            extra.connect(str(tmp_path / "evertap.sock"))
            await asyncio.sleep(0.05)
            assert await client.nics() == []
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for filler in fillers:
                os.close(filler)
            extra.close()
        async with connect(tmp_path) as other:
            assert await other.nics() == []

    with_client(tmp_path, FakeService(), story)


# Followers and waits


def test_a_follower_hears_of_events_at_once(tmp_path: Path) -> None:
    service = FakeService(view())

    async def story(client: Client) -> None:
        async with aclosing(client.follow("web0")) as events:
            first = asyncio.ensure_future(anext(events))
            await until(lambda: bool(service.following))
            service.happens(event(1, latency_ms=0.25), event(2))
            assert await first == event(1, latency_ms=0.25)
            assert await anext(events) == event(2)

    with_client(tmp_path, service, story)


def test_following_a_nic_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    async def story(client: Client) -> None:
        async with aclosing(client.follow("web7")) as events:
            await anext(events)

    with pytest.raises(NoSuchNicError, match="web7"):
        with_client(tmp_path, FakeService(), story)


@pytest.mark.parametrize("ending", ["close", "half-close"])
def test_followers_and_waits_end_with_their_client(tmp_path: Path, ending: str) -> None:
    service = FakeService(view())

    async def story() -> None:
        async with serve(service, tmp_path):
            clients = [raw(tmp_path), raw(tmp_path)]
            clients[0].sendall(call("org.evertap.Follow", more=True, name=None))
            clients[1].sendall(call("org.evertap.Wait", name="web0", state="failed", timeout=None))
            await until(lambda: bool(service.following and service.waiting))
            for client in clients:
                if ending == "close":
                    client.close()
                else:
                    client.shutdown(socket.SHUT_WR)
            await until(lambda: not service.following and not service.waiting)
            for client in clients:
                client.close()

    asyncio.run(story(), debug=True)


def test_a_slow_follower_misses_the_oldest_events_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = FakeService(view())
    total = 50 * follower.KEPT

    async def story(client: Client) -> None:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "evertap.sock", limit=1 << 24)
        writer.write(call("org.evertap.Follow", more=True, name=None))
        await until(lambda: bool(service.following))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        for start in range(0, total, 500):
            service.happens(*(event(number) for number in range(start, start + 500)))
            await client.plan()  # the daemon answers meanwhile
        assert service.following[0].qsize() < 1000  # taken from the service, whoever reads
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        got: list[dict[str, Any]] = []
        async with asyncio.timeout(20):
            while not got or got[-1]["reason"] != str(total - 1):
                got.append(json.loads((await reader.readuntil(b"\0"))[:-1])["parameters"]["event"])
        writer.close()
        await writer.wait_closed()
        lost = [each for each in got if each["event"] == "lost"]
        missed = sum(int(each["reason"].split()[0]) for each in lost)
        assert lost
        assert missed + len(got) - len(lost) == total
        numbers = [int(each["reason"]) for each in got if each["event"] != "lost"]
        assert numbers == sorted(numbers)

    with_client(tmp_path, service, story)


def test_followers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FOLLOWERS_MAX", 1)
    service = FakeService()

    async def story(client: Client) -> None:
        with raw(tmp_path) as first:
            first.sendall(call("org.evertap.Follow", more=True, name=None))
            await until(lambda: bool(service.following))
            async with aclosing(client.follow()) as events:
                with pytest.raises(EvertapError, match="too many clients follow the events already"):
                    await anext(events)
        await until(lambda: not service.following)
        async with aclosing(client.follow()) as events:
            again = asyncio.ensure_future(anext(events))
            await until(lambda: bool(service.following))
            service.happens(event(1))
            assert await again == event(1)

    with_client(tmp_path, service, story)


def test_wait_ends_when_the_state_comes_or_the_time_is_over(tmp_path: Path) -> None:
    service = FakeService(view(state="waiting"))

    async def story(client: Client) -> None:
        with pytest.raises(TimeoutError) as caught:
            await client.wait("web0", "connected", 0.05)
        assert str(caught.value) == (
            'NIC "web0" is waiting, not connected, after 0.05 s: eth0 is the first usable uplink'
        )
        waiting = asyncio.ensure_future(client.wait("web0", "connected"))
        await until(lambda: bool(service.waiting))
        service.known["web0"] = view()
        assert await waiting == view()

    with_client(tmp_path, service, story)
