"""A daemon that is killed at every step of what it does, beside a NIC that must not notice."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from evertap.api.client import Client
from evertap.lab.builtin_guest import BuiltinGuest
from evertap.lab.errors import LabError
from evertap.lab.pinger import Pinger
from evertap.lab.trial import Trial
from evertap.lab.wires import Lab
from evertap.model.errors import EvertapError

from .kill_look import Host, descriptors, files

NIC = "web0"
CALM = "calm0"
# MACs that no other stage's NICs have: programs are looked for in the whole machine.
_macs = (f"52:54:{number:02x}:{os.getpid().to_bytes(4, 'big')[1:].hex(':')}" for number in itertools.count())
_REPOSITORY = Path(__file__).parents[2]
_QUIET = 0.5  # seconds without an operation: longer than the pauses between announcements
_PATIENCE = 30.0  # seconds: something hangs
_ANSWERED = 3.0  # seconds within which a ping has its answer, even if the machine has much else to do
_ABOUT = 25  # lines of a difference that are shown

_T = TypeVar("_T")


class Point(NamedTuple):
    """The operation, which of several like it, and when of it the daemon is killed: "before" or "after"."""

    operation: str
    time: int
    when: str

    def __str__(self) -> str:
        return f"{self.when} {self.operation}" + (f" (time {self.time})" if self.time > 1 else "")


class State(NamedTuple):
    """What there is, and the descriptors that the daemon has."""

    lines: list[str]
    held: Counter[str]


def points(operations: Sequence[str]) -> list[Point]:
    """Before and after each of these operations."""
    times = Counter[str]()
    found = []
    for operation in operations:
        times[operation] += 1
        found += [Point(operation, times[operation], when) for when in ("before", "after")]
    return found


class Stage:
    """A laboratory with uplinks eth0 and eth1, and the NIC calm0 on eth9 that is pinged all the time."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._stack = contextlib.ExitStack()
        self.trial = self._stack.enter_context(Trial(lab.host))
        self.mac, self.second_mac, self.calm_mac = itertools.islice(_macs, 3)
        macs = {self.mac, self.second_mac, self.calm_mac}
        self._host = self._stack.enter_context(contextlib.closing(Host(lab.host, macs)))
        self.extra: Callable[[], list[str]] = list
        """More to look at, such as QEMU's parts."""
        self._watched: dict[str, Pinger] = {}
        self._happened: list[tuple[str, float, float]] = []

    def __enter__(self) -> Stage:
        try:
            for number in (0, 1, 9):
                self.uplink(number)
            self.trial.start()
            self.define(CALM, f'mac = "{self.calm_mac}"\nuplinks = ["eth9"]\nannounce = false\n')
            calm = BuiltinGuest(self.lab.host, CALM, self.calm_mac, ipv4="192.0.2.20", ipv6="2001:db8::20")
            self._stack.enter_context(calm)
            calm.boot()
            self.watch("192.0.2.20")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def uplink(self, number: int) -> None:
        """Plug eth`number` in, with the MAC that it always has."""
        self.lab.uplink(f"eth{number}", mac=f"02:00:00:00:0a:0{number}")

    def ask(self, question: Callable[[Client], Awaitable[_T]]) -> _T:
        """Ask or tell the daemon something."""
        return self.trial.ask(question)

    def define(self, name: str, text: str) -> None:
        """Define a NIC."""
        self.ask(lambda client: client.define({name: text}))

    def wait(self, state: str, uplink: str | None = None) -> None:
        """Until the NIC under test is in the state."""
        deadline = time.monotonic() + _PATIENCE
        while (view := self.trial.nic(NIC)).state != state or uplink not in (None, view.uplink):
            assert time.monotonic() < deadline, view
            time.sleep(0.02)

    # Looking

    def look(self) -> list[str]:
        """All that there is, and what the daemon says of it."""
        nics = self.ask(lambda client: client.nics())
        plan = self.ask(lambda client: client.plan())
        found = [f"nic {nic.name} {nic.state} {nic.uplink} {nic.problem}" for nic in nics]
        found += [f"to do: {action.text}" for action in plan]
        return sorted([*found, *self._host.lines(self.trial.pid), *files(self.trial.path), *self.extra()])

    def rest(self) -> State:
        """What there is once nothing changes any more and nothing is left to do."""
        deadline = time.monotonic() + _PATIENCE
        before: list[str] = []
        while True:
            found = self.look()
            if found == before and not any(line.startswith(("to do", "stray")) for line in found):
                return State(found, descriptors(self.trial.pid))
            assert time.monotonic() < deadline, found
            before = found
            time.sleep(0.1)

    def reach(self, *allowed: State) -> State:
        """Wait until what there is is one of these, and say which; AssertionError with the difference.

        The daemon may have fewer descriptors: programs that it did not load itself.
        """
        deadline = time.monotonic() + _PATIENCE
        while True:
            found, held = self.look(), descriptors(self.trial.pid)
            like = [state for state in allowed if state.lines == found]
            if like and held <= like[0].held:
                return like[0]
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        if like:
            raise AssertionError(f"descriptors too many: {held - like[0].held}")
        raise AssertionError(min((_difference(found, state.lines) for state in allowed), key=len))

    # Recording and killing

    def record(self, trigger: Callable[[Stage], None], quiet: float = _QUIET) -> list[str]:
        """The operations from the trigger until all has been quiet for so many seconds."""
        with Tracer(self.trial.pid) as tracer:
            trigger(self)
            assert not tracer.ended(quiet), self.trial.log
        return tracer.seen

    def kill(self, trigger: Callable[[Stage], None], point: Point) -> tuple[bool, list[str]]:
        """Trigger, and have the daemon killed at the point; whether it came there, and its operations.

        Then there is no daemon.
        """
        with Tracer(self.trial.pid, point) as tracer:
            failure: EvertapError | None = None
            try:
                trigger(self)
            except EvertapError as error:
                failure = error
            ended = tracer.ended(_PATIENCE if failure else 2 * _QUIET)
        self.trial.kill()
        if not ended and failure:
            raise failure
        return ended, tracer.seen

    # The NICs that must not notice

    def watch(self, address: str) -> Pinger:
        """Ping an address all the time; `lost` tells."""
        pinger = self._stack.enter_context(Pinger(self.lab.wire, address, interval=0.01))
        pinger.wait_reply(_PATIENCE)
        self._watched[address] = pinger
        return pinger

    @contextlib.contextmanager
    def undisturbed(self, what: str) -> Iterator[None]:
        """Remember for `lost` what happened meanwhile."""
        since = time.monotonic()
        try:
            yield
        finally:
            self._happened.append((what, since, time.monotonic()))

    def lost(self, *, wait: bool = False) -> list[str]:
        """What pings were lost during, as far as it is known by now, or (`wait`) all of it."""
        deadline = time.monotonic() + _ANSWERED
        while wait and self._unanswered(self._happened) and time.monotonic() < deadline:
            time.sleep(0.05)
        known = deadline if wait else deadline - 2 * _ANSWERED
        past = [each for each in self._happened if each[2] < known]
        self._happened = [each for each in self._happened if each[2] >= known]
        return self._unanswered(past)

    def _unanswered(self, happened: list[tuple[str, float, float]]) -> list[str]:
        return [
            f"{what}: {count} pings of {address} were lost"
            for what, since, until in happened
            for address, pinger in self._watched.items()
            if (count := pinger.lost(since, until, within=_ANSWERED))
        ]


class Tracer:
    """The process that follows the daemon."""

    def __init__(self, pid: int, point: Point | None = None) -> None:
        more = map(str, point) if point else ()
        self.seen: list[str] = []
        self._rest = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.kill_tracer", str(pid), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=_REPOSITORY,
            bufsize=0,
        )

    def __enter__(self) -> Tracer:
        assert self._process.stdout
        if self._process.stdout.readline() != b'"ready"\n':
            _, said = self._process.communicate()
            raise LabError(f"the tracer did not start: {said.decode()}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        said = self._process.communicate()[1]
        if said:
            raise LabError(f"the tracer failed: {said.decode()}")

    def ended(self, quiet: float = _QUIET) -> bool:
        """Read what it tells until the process has ended, or has been quiet for so many seconds."""
        assert self._process.stdout
        descriptor = self._process.stdout.fileno()
        while select.select([descriptor], [], [], quiet)[0]:
            data = os.read(descriptor, 65536)
            if not data:
                return True
            lines = (self._rest + data).split(b"\n")
            self._rest = lines.pop()
            self.seen += map(json.loads, lines)
        return False


def _difference(found: list[str], wanted: list[str]) -> str:
    more, less = Counter(found) - Counter(wanted), Counter(wanted) - Counter(found)
    lines = ["what there is differs from what is allowed:"]
    lines += [f"  too many: {line}" for line in more.elements()]
    lines += [f"  missing: {line}" for line in less.elements()]
    return "\n".join(lines[:_ABOUT])
