"""A real daemon's socket and real other users: who may read, who may change, and what nobody can take."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import resource
import select
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import pytest

from evertap.api.client import Client, connect
from evertap.api.errors import PermissionDeniedError
from evertap.api.interface import EvertapInterface
from evertap.cli.main import main
from evertap.lab.wires import Lab
from evertap.model.errors import EvertapError
from tests.api.clients import NOBODY, as_user, call, raw

from .asking import define
from .confinement import GROUP, ConfinedTrial

REFUSED, DONE, STRANGE = 10, 11, 12
TEXT = 'mac = "52:54:00:12:34:56"\nuplinks = ["eth0"]\n'

READING: dict[str, Callable[[Client], Awaitable[object]]] = {
    "Nics": lambda client: client.nics(),
    "Nic": lambda client: client.nic("web0"),
    "Uplinks": lambda client: client.uplinks(),
    "Plan": lambda client: client.plan(),
    "Arguments": lambda client: client.arguments(["web0"]),
    "Wait": lambda client: client.wait("web0", "waiting", 5),
    "History": lambda client: client.history(),
    "NicHistory": lambda client: client.nic_history("web0"),
}
CHANGING: dict[str, Callable[[Client], Awaitable[object]]] = {
    "Define": lambda client: client.define({"web1": TEXT.replace("56", "57")}),
    "Connect": lambda client: client.connect("web0"),
    "Disconnect": lambda client: client.disconnect("web0"),
    "Retarget": lambda client: client.retarget("web0", ["eth1"]),
    "Attach": lambda client: client.attach("web0", "/nowhere.qmp"),
    "Detach": lambda client: client.detach("web0"),
    "OpenTap": lambda client: client.open_tap("web0"),
    "AttachDomain": lambda client: client.attach_domain("web0", "vm"),
    "Adopt": lambda client: client.adopt("vm"),
    "Release": lambda client: client.release("vm"),
    "PrepareDomain": lambda client: client.prepare_domain("<domain/>"),
    "Undefine": lambda client: client.undefine(["web0"]),
}
ELSEWHERE = {"Follow", "Domains"}  # for everybody; the one streams, the other needs libvirt


@pytest.fixture(scope="module")
def daemon(namespaces: None) -> Iterator[ConfinedTrial]:
    """A daemon as a user of its own, with a group `evertap`; its log has no fault in it at the end."""
    with Lab() as lab, ConfinedTrial(lab.host, filtered=False) as trial:
        trial.start()
        define(trial, web0=TEXT)
        trial.wait("web0", "waiting")
        yield trial
        assert "Traceback" not in trial.log
        assert trial.stop() == 0


def outcome(trial: ConfinedTrial, question: Callable[[Client], Awaitable[object]]) -> int:
    """What comes of it, for a child's exit code."""

    async def story() -> int:
        async with connect(trial.path / "runtime") as client:
            try:
                await question(client)
            except PermissionDeniedError as error:
                return (
                    REFUSED if 'group "evertap"' in str(error) and str(os.getuid()) in str(error) else STRANGE
                )
            except EvertapError:
                return DONE  # it may, but it cannot be done here
            return DONE

    return asyncio.run(story())


def test_every_method_is_either_for_reading_or_for_changing() -> None:
    methods = {
        name for name, _ in inspect.getmembers(EvertapInterface, inspect.isfunction) if name[0].isupper()
    }
    assert methods == {*READING, *CHANGING} | ELSEWHERE


@pytest.mark.parametrize(
    ("user", "groups", "changes"),
    [(NOBODY, [], REFUSED), (NOBODY, [GROUP], DONE)],
    ids=["nobody", "in group evertap"],
)
def test_everybody_may_read_and_the_group_may_change(
    daemon: ConfinedTrial, user: int, groups: list[int], changes: int
) -> None:
    for name, question in READING.items():
        assert as_user(user, groups, partial(outcome, daemon, question)) == DONE, name
    for name, question in CHANGING.items():
        assert as_user(user, groups, partial(outcome, daemon, question)) == changes, name
        if changes == DONE:
            define(daemon, web0=TEXT)


def test_the_command_line_of_another_user_shows_and_refuses(daemon: ConfinedTrial) -> None:
    def command(*arguments: str) -> int:
        def action() -> int:
            null = os.open("/dev/null", os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            os.environ["EVERTAP_RUNTIME_DIR"] = str(daemon.path / "runtime")
            try:
                sys.argv = ["evertap", *arguments]
                main()
            except SystemExit as end:
                return int(end.code or 0)
            return 0

        # Loaded here: another user may not come where the sources lie.
        importlib.import_module(f"evertap.cli.{arguments[0]}")
        return as_user(NOBODY, [], action)

    assert command("list") == 0
    assert command("show", "web0") == 0
    assert command("disconnect", "web0") == 1
    assert daemon.nic("web0").state == "waiting"


def test_what_others_can_do_with_the_files(daemon: ConfinedTrial) -> None:
    modes = {path.name: path.stat().st_mode & 0o7777 for path in (daemon.path / "runtime").iterdir()}
    assert modes.pop("evertap.sock") == 0o666
    assert all(not mode & 0o022 for mode in modes.values()), modes
    for folder in ("state", "config"):
        for path in (daemon.path / folder).rglob("*"):
            assert not path.stat().st_mode & 0o022, path


# Hostile clients


class Hostile:
    """What one unprivileged user does to the daemon, all at once and for as long as it lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: list[socket.socket] = []

    def connections(self, number: int) -> None:
        for _ in range(number):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(self.folder / "evertap.sock"))
            client.setblocking(False)
            self.kept.append(client)

    def send(self, data: bytes, rounds: int = 1) -> None:
        for _ in range(rounds):
            for client in self.kept:
                try:
                    client.send(data)
                except OSError:
                    continue  # turned away, or its buffer is full

    def opens_a_thousand_connections(self) -> None:
        self.connections(1000)

    def asks_and_never_reads(self) -> None:
        self.connections(100)
        self.send(call("org.evertap.History", name=None) * 50, rounds=20)

    def sends_half_a_message(self) -> None:
        self.connections(100)
        self.send(call("org.evertap.Nics")[:-5])

    def sends_ten_megabytes_without_an_end(self) -> None:
        self.connections(100)
        self.send(b"{" + b"x" * 100_000, rounds=100)

    def subscribes_a_thousand_times(self) -> None:
        for _ in range(10):
            self.connections(100)
            self.send(call("org.evertap.Follow", more=True, name=None))

    def sends_descriptors(self) -> None:
        self.connections(100)
        null = os.open("/dev/null", os.O_RDONLY)
        question = call("org.evertap.History", name=None)
        for _ in range(20):
            for client in self.kept:
                try:
                    socket.send_fds(client, [question * 10], [null] * 250)
                except OSError:
                    continue

    def asks_without_a_pause(self) -> None:
        self.connections(100)
        poll = select.poll()
        for client in self.kept:
            poll.register(client, select.POLLIN)
        by_number = {client.fileno(): client for client in self.kept}
        self.send(call("org.evertap.Nics"))
        while True:
            for number, _ in poll.poll():
                try:
                    if not by_number[number].recv(1 << 20):
                        poll.unregister(number)
                    by_number[number].send(call("org.evertap.Nics"))
                except OSError:
                    poll.unregister(number)


ATTACKS = [name for name in vars(Hostile) if "_" in name.strip("_") and not name.startswith("_")]


def attack(folder: Path, name: str) -> tuple[int, int]:
    """Begin it as `nobody`: the child, and a pipe that tells when it has done what it does at first."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(told)
            resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            hostile = Hostile(folder)
            if name == "asks_without_a_pause":
                os.write(tell, b"x")
            getattr(hostile, name)()
            os.write(tell, b"x")
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(tell)
    return child, told


def resident(pid: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.fixture(scope="module")
def busy(namespaces: None) -> Iterator[ConfinedTrial]:
    """A daemon with NICs and a past, so that its answers are long."""
    with Lab() as lab, ConfinedTrial(lab.host, filtered=False) as trial:
        for number in range(100):
            text = f'mac = "52:54:00:00:00:{number:02x}"\nuplinks = ["eth0"]\nbackend = "macvtap"\n'
            (trial.nics_d / f"nic{number}.toml").write_text(text)
        trial.start()
        asyncio.run(with_a_past(trial.path / "runtime"))
        yield trial
        assert "Traceback" not in trial.log


async def with_a_past(folder: Path) -> None:
    async with connect(folder) as client:
        for _ in range(50):
            await client.disconnect("nic0")
            await client.connect("nic0")


@pytest.mark.parametrize("name", ATTACKS)
def test_one_user_neither_blocks_the_daemon_nor_fills_it(busy: ConfinedTrial, name: str) -> None:
    folder = busy.path / "runtime"
    with raw(folder) as client:
        client.sendall(call("org.evertap.Nics"))
        answer(client)
    memory, opened = resident(busy.pid), descriptors(busy.pid)
    child, told = attack(folder, name)
    try:
        assert select.select([told], [], [], 20)[0], "the attack did not begin"
        assert os.read(told, 1) == b"x"
        took: list[float] = []
        for user in (0, 4444, 0, 4444, 0, 4444, 0, 4444):
            started = time.monotonic()
            assert as_user(user, [], lambda: one_question(folder)) == DONE
            took.append(time.monotonic() - started)
        assert median(took) < 1
        assert resident(busy.pid) - memory < 64 << 20
        assert descriptors(busy.pid) - opened < 300
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(told)
    deadline = time.monotonic() + 10
    while descriptors(busy.pid) > opened:
        assert time.monotonic() < deadline, "descriptors were not given back"
        time.sleep(0.02)


def one_question(folder: Path) -> int:
    with raw(folder) as client:
        client.sendall(call("org.evertap.Nics"))
        return DONE if len(answer(client)["parameters"]["nics"]) == 100 else STRANGE


def answer(client: socket.socket) -> dict[str, dict[str, list[object]]]:
    data = b""
    while not data.endswith(b"\0"):
        received = client.recv(1 << 20)
        assert received, "turned away"
        data += received
    found: dict[str, dict[str, list[object]]] = json.loads(data[:-1])
    return found
