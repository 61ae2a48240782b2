"""A daemon with many NICs, and the floor with as many: each in a lab of its own, with its uplinks' plug."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import evertap
from bench.nics import definition, nic_name
from bench.observer import Ear, Eye, others
from bench.plug import Plug
from evertap.api.client import connect
from evertap.kernel import bpf
from evertap.kernel.rtnetlink import DumpInterruptedError, Rtnetlink
from evertap.lab.errors import LabError
from evertap.lab.trial import Trial
from evertap.lab.wires import Lab
from evertap.model.views import NicView

_ROOT = Path(__file__).parents[1]
_SOURCES = Path(evertap.__file__).parents[1]
_SETTLED = 300.0  # seconds
_CLEARED = 30.0


class Scene:
    """A lab with an ear in its host, a plug for its uplinks, and an eye once there are maps."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.lab = self.stack.enter_context(Lab())
        self.plug = self.stack.enter_context(Plug(self.lab))
        self.ear = Ear(self.lab.host)
        self.stack.callback(self.ear.close)
        self.eye = Eye([])

    def wait_clear(self) -> None:
        """Wait until no map names anything: the loss of the uplink has been seen."""
        deadline = time.monotonic() + _CLEARED
        while any(self.eye.targets()):
            if time.monotonic() > deadline:
                raise LabError("maps still name an uplink that has gone")
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.eye.close()
        self.stack.close()


class Fleet(Scene):
    """evertap's daemon with NICs that are all alike."""

    def __init__(self, uplinks: list[str], extra: str = "") -> None:
        with others():
            super().__init__()
            self._uplinks, self._extra = uplinks, extra
            self.count = 0
            self.trial = self.stack.enter_context(Trial(self.lab.host))
            self.trial.start()

    def grow(self, count: int) -> float:
        """Have so many NICs, and all their taps; the seconds that this took."""
        started = time.monotonic()
        folder = self.trial.nics_d
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(self.count, count):
            fresh = folder / f".{nic_name(number)}"
            fresh.write_text(definition(number, self._uplinks, self._extra))
            fresh.rename(folder / f"{nic_name(number)}.toml")
        self.count = count
        while len(taps := self._taps()) < count or not self.settled():
            if time.monotonic() > started + _SETTLED:
                raise LabError(f"of {count} taps there are {len(taps)} after {_SETTLED} s:\n{self.trial.log}")
            time.sleep(0.1 + 0.01 * (count - len(taps)))
        took = time.monotonic() - started
        self.eye.close()
        with self.lab.host.enter(), Rtnetlink() as rtnetlink:
            found = [bpf.find_splice(index, rtnetlink) for index in taps.values()]
        self.eye = Eye([splice[0] for splice in found if splice])
        return took

    def _taps(self) -> dict[str, int]:
        try:
            with self.lab.host.enter(), Rtnetlink() as rtnetlink:
                links = rtnetlink.dump_links()
        except DumpInterruptedError:  # the daemon is making them at this moment
            return {}
        return {link.owner: link.index for link in links if link.kind == "tun" and link.up and link.owner}

    def nics(self) -> list[NicView]:
        """All NICs as the daemon's API tells of them."""

        async def asking() -> list[NicView]:
            async with connect(self.trial.path / "runtime") as client:
                return await client.nics()

        return asyncio.run(asking())

    def settled(self) -> bool:
        """Whether all NICs are in one and the same state."""
        states = [nic.state for nic in self.nics()]
        return len(states) == self.count and len(set(states)) <= 1

    def wait_settled(self, state: str) -> None:
        """Wait until all are in that state."""
        deadline = time.monotonic() + _SETTLED
        while {nic.state for nic in self.nics()} != {state}:
            if time.monotonic() > deadline:
                raise LabError(f"not all NICs are {state}:\n{self.trial.log[-2000:]}")
            time.sleep(0.1)


UPLINK: Final = "up0"


@cache
def connected_fleet(count: int) -> Fleet:
    """So many NICs, all connected to `UPLINK`: made once, for all parts of this run."""
    fleet = Fleet([UPLINK])
    atexit.register(fleet.__exit__, None, None, None)
    fleet.plug.prepare(UPLINK)
    fleet.plug.appear(UPLINK)
    fleet.grow(count)
    fleet.wait_settled("connected")
    time.sleep(2)  # the announcements
    return fleet


class FloorScene(Scene):
    """The floor's tight loop with as many NICs."""

    def __init__(self, kind: str, uplinks: list[str], count: int) -> None:
        with others():
            super().__init__()
            self._kind, self._uplinks, self._count = kind, uplinks, count
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Make the NICs and have the loop wait. The uplinks of a failover have to be there."""
        with others():
            self._process = self.lab.host.popen(
                [sys.executable, "-m", "bench.floor", self._kind, ",".join(self._uplinks), str(self._count)],
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join([str(_SOURCES), str(_ROOT)])},
                cwd=_ROOT,
            )
        self.stack.callback(self._end)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LabError("the floor did not start; see above")
        self.eye = Eye.on_ids(json.loads(line))

    def _end(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()
