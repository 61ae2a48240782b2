"""A daemon on a host that random operations happen to, judged at every pause."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from unittest.mock import patch

from evertap.api.client import Client, connect
from evertap.kernel.rtnetlink import Rtnetlink
from evertap.lab.errors import LabError
from evertap.lab.trial import Trial
from evertap.model.errors import EvertapError
from tests.faults.random_checker import OWN_INDEXES, Kernel, Wish, bpf_objects, judge, owner
from tests.faults.random_operations import PAUSE, Operation
from tests.faults.random_world import World

SOON: Final = 1.0
PATIENCE: Final = 10.0
"""Seconds until all has to be as it should be; on a machine with nothing else to do, SOON."""
STARTING: Final = 60.0
"""Seconds that a daemon may take to start; other tests may hold the kernel's rtnl lock for long."""

_T = TypeVar("_T")
_runs = itertools.count()


class WrongError(AssertionError):
    """The host is not what it should be; `place`: after how many operations."""

    def __init__(self, place: int, wrong: Sequence[str]) -> None:
        super().__init__(f"after operation {place}:\n  " + "\n  ".join(wrong))
        self.place = place


@dataclass
class Figures:
    """What a run was."""

    operations: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # by kind; most for what is not there, or is
    pauses: int = 0
    kills: int = 0
    late: list[float] = field(default_factory=list)  # pauses that took longer than SOON
    resting: float = 0.0  # seconds until all was as it should be, all pauses together
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.operations} operations ({self.refused.total()} refused), {self.kills} daemons ended, "
            f"{self.pauses} pauses of {1000 * self.resting / max(self.pauses, 1):.0f} ms on average, "
            f"{len(self.late)} above {SOON:g} s (longest {max(self.late, default=0):.1f} s), "
            f"{self.seconds:.0f} s in all"
        )


class Run:
    """A host, a daemon, and what is wanted of it. `patience`: seconds until all has to be right."""

    def __init__(self, patience: float = PATIENCE, trial: type[Trial] = Trial) -> None:
        self._patience = patience
        self.figures = Figures()
        self._closing = ExitStack()
        self._wishes: dict[str, Wish] = {}
        self._by_file: set[str] = set()
        self._alive = False
        prefix = f"q{os.getpid() % 100_000}{'abcdefghij'[next(_runs) % 10]}"
        try:
            self._world = World(prefix)
            self._closing.callback(self._world.close)
            self._closing.enter_context(self._world.host.enter())
            self._rtnetlink = self._closing.enter_context(Rtnetlink())
            self._loop = self._closing.enter_context(asyncio.Runner())
            self._trial = self._closing.enter_context(trial(self._world.host))
            self._start()
            self._before = self._possessions()
        except BaseException:
            self._closing.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    @property
    def pid(self) -> int:
        """The daemon's process."""
        return self._trial.pid

    @property
    def log(self) -> str:
        """What the daemons have said."""
        return self._trial.log

    def perform(self, operations: Sequence[Operation]) -> None:
        """Carry the operations out; WrongError at the first pause at which something is wrong."""
        began = time.monotonic()
        try:
            for place, operation in enumerate(operations, 1):
                if operation == PAUSE:
                    self.rest(place)
                    continue
                try:
                    self.do(*operation)
                except EvertapError as error:
                    raise WrongError(place, [f"{operation}: {error}"]) from error
            self.rest(len(operations))
            self._clear(len(operations))
        finally:
            self.figures.seconds = time.monotonic() - began

    def do(self, kind: str, *arguments: Any) -> None:
        """Carry one operation out."""
        self.figures.operations += 1
        done = getattr(self, f"_{kind}", None) or getattr(self._world, kind)
        self.figures.refused[kind] += not done(*arguments)

    # The daemon

    def _start(self) -> None:
        with patch("evertap.lab.trial._START", STARTING):
            self._trial.start()
        self._alive = True

    def _start_again(self) -> None:
        """What an earlier daemon did not set up is known by its carrier only."""
        for link in self._rtnetlink.dump_links():
            if entry := self._world.made.get(link.index):
                entry.set_down |= link.ups > 0
                entry.keep_down &= link.ups > 0
        self._start()

    def _kill(self) -> bool:
        return self._end(self._trial.kill)

    def _stop(self) -> bool:
        return self._end(self._trial.stop)

    def _end(self, end: Callable[[], object]) -> bool:
        if not self._alive:
            return False
        end()
        self._alive = False
        self.figures.kills += 1
        return True

    def _ask(self, question: Callable[[Client], Awaitable[_T]]) -> _T:
        async def asking() -> _T:
            async with connect(self._trial.path / "runtime") as client:
                return await question(client)

        return self._loop.run(asking())

    # NICs

    def _may_tell(self, nic: str) -> bool:
        """Whether a command can be given: a file that was written just now may not have been read yet."""
        return self._alive and nic not in self._by_file

    def _define(self, number: int, fields: dict[str, Any]) -> bool:
        nic = self._world.nic(number)
        if not self._may_tell(nic):
            return self._file(number, fields)
        self._ask(lambda client: client.define({nic: _toml(fields)}))
        self._take(nic, fields)
        return True

    def _undefine(self, number: int) -> bool:
        nic = self._world.nic(number)
        if nic not in self._wishes:
            return False
        if not self._may_tell(nic):
            return self._file(number, None)
        self._ask(lambda client: client.undefine([nic]))
        self._take(nic, None)
        return True

    def _file(self, number: int, fields: dict[str, Any] | None) -> bool:
        """Somebody writes or removes the definition's file."""
        nic = self._world.nic(number)
        path = self._trial.nics_d / f"{nic}.toml"
        if fields is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_toml(fields))
        self._by_file.add(nic)
        self._take(nic, fields)
        return True

    def _take(self, nic: str, fields: dict[str, Any] | None) -> None:
        before = self._wishes.pop(nic, None)
        if fields is not None:
            kept = before.uplinks if before and before.fields["uplinks"] == fields["uplinks"] else None
            self._wishes[nic] = Wish(fields, kept, before.disconnected if before else False)

    def _retarget(self, number: int, uplinks: list[str], live: bool) -> bool:
        nic = self._world.nic(number)
        wish = self._wishes.get(nic)
        if wish is None or not self._may_tell(nic) or wish.get("mode", "") == "passthru":
            return False
        self._ask(lambda client: client.retarget(nic, uplinks, live=live))
        tables = [dict(word.split("=") for word in uplink.split(",")) for uplink in uplinks]
        if live:
            self._wishes[nic] = wish._replace(uplinks=tables)
        else:
            self._wishes[nic] = wish._replace(fields={**wish.fields, "uplinks": tables}, uplinks=None)
        return True

    def _disconnect(self, number: int) -> bool:
        return self._set_disconnected(self._world.nic(number), True)

    def _connect(self, number: int) -> bool:
        return self._set_disconnected(self._world.nic(number), False)

    def _set_disconnected(self, nic: str, disconnected: bool) -> bool:
        wish = self._wishes.get(nic)
        if wish is None or not self._may_tell(nic):
            return False
        if disconnected:
            self._ask(lambda client: client.disconnect(nic))
        else:
            self._ask(lambda client: client.connect(nic))
        self._wishes[nic] = wish._replace(disconnected=disconnected)
        return True

    # Judging

    def rest(self, place: int = 0) -> None:
        """Wait until everything is as it should be; WrongError if that does not come."""
        if not self._alive:
            try:
                self._start_again()
            except LabError as error:
                raise WrongError(place, [str(error)]) from error
        began = time.monotonic()
        while True:
            wrong = self.wrong()
            took = time.monotonic() - began
            if not wrong:
                break
            if took > self._patience:
                raise WrongError(place, wrong)
            time.sleep(0.02)
        self.figures.pauses += 1
        self.figures.resting += took
        if took > SOON:
            self.figures.late.append(took)
        self._by_file.clear()

    def wrong_if(self, number: int, fields: dict[str, Any]) -> list[str]:
        """What would not be as it should be, had the NIC these fields."""
        nic = self._world.nic(number)
        before = self._wishes[nic]
        self._wishes[nic] = before._replace(fields={**before.fields, **fields})
        try:
            return self.wrong()
        finally:
            self._wishes[nic] = before

    def wrong(self) -> list[str]:
        """What is not as it should be, from the daemon's words to the kernel's state."""
        due = self._ask(lambda client: client.plan())
        if due:
            return [f"still planned: {action.nic}: {action.text}" for action in due]
        shown = self._ask(lambda client: client.nics())
        kernel = Kernel(self._rtnetlink)
        made, held = self._world.made, set(self._world.held)
        wrong = judge(kernel, self._wishes, shown, held, made)
        for index, entry in made.items():
            entry.seen_up = "UP" in kernel.by_index.get(index, {}).get("flags", ())
        if "Traceback" in self.log:
            wrong.append(f"the daemon's log:\n{self.log}")
        return wrong

    def _clear(self, place: int) -> None:
        """Take everything away again: nothing of evertap's may be left."""
        self._world.let_all_go()
        if self._wishes:
            self._ask(lambda client: client.undefine(list(self._wishes)))
        self._wishes.clear()
        self.rest(place)
        deadline = time.monotonic() + self._patience
        while (after := self._possessions()) != self._before:  # the kernel frees some of it a moment later
            if time.monotonic() > deadline:
                raise WrongError(place, [f"left over: {after}, at the beginning: {self._before}"])
            time.sleep(0.05)

    def _possessions(self) -> dict[str, Any]:
        """All that evertap may leave behind. What the first NIC with a QEMU needs, the daemon keeps."""
        nic = f"{self._world.prefix}w"
        fields = {"mac": "52:54:00:00:02:00", "backend": "macvtap", "uplinks": ["none0"]}
        self._ask(lambda client: client.define({nic: _toml(fields)}))
        self._ask(lambda client: client.undefine([nic]))
        descriptors = sorted(_kinds(Path(f"/proc/{self._trial.pid}/fd")))
        files = (path for path in self._trial.path.rglob("*") if path.is_file() or path.is_socket())
        qdiscs = subprocess.run(["tc", "-j", "qdisc"], check=True, capture_output=True, text=True).stdout
        links = Kernel(self._rtnetlink).links
        return {
            "devices": [link["ifname"] for link in links if owner(link) or link["ifindex"] >= OWN_INDEXES],
            "qdiscs": [entry for entry in json.loads(qdiscs) if entry["kind"] == "clsact"],
            "bpf": bpf_objects(self._world.prefix),
            "files": sorted(str(path.relative_to(self._trial.path)) for path in files),
            "descriptors": descriptors,
        }


def _kinds(folder: Path) -> list[str]:
    found = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            found.append(re.sub(r":\[\d+\]", "", str(path.readlink())))
    return found


def _toml(fields: dict[str, Any]) -> str:
    def value(of: Any) -> str:
        if isinstance(of, dict):
            return "{ " + ", ".join(f"{key} = {value(entry)}" for key, entry in of.items()) + " }"
        if isinstance(of, list):
            return "[" + ", ".join(map(value, of)) + "]"
        return json.dumps(of)

    return "".join(f"{key} = {value(entry)}\n" for key, entry in fields.items())
