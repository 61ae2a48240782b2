"""A daemon in a laboratory whose kernel calls fail as the test wants, beside a NIC that must not notice."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from evertap.api.client import Client, connect
from evertap.lab.netns import Namespace
from evertap.lab.trial import Trial
from evertap.lab.wires import Lab
from evertap.model.errors import NoSuchNicError
from evertap.model.views import EventView, NicView
from evertap.model.vmm import card_port, qemu_id, sink_port
from tests.vmm.fake_qmp import FakeQmp

NIC = "web0"
MAC = "52:54:00:12:34:56"
CALM = "calm0"
_CALM_MAC = "52:54:00:00:00:99"
_ROOT = Path(__file__).parents[2]
_T = TypeVar("_T")


def definition(*uplinks: str, more: str = "", mac: str = MAC) -> str:
    """Of a NIC that returns to its first uplink at once."""
    return f'mac = "{mac}"\nuplinks = {json.dumps(uplinks)}\nfailback_delay = 0\n{more}\n'


def eventually(condition: Callable[[], _T], what: str, timeout: float = 15) -> _T:
    """What the condition gives, once it gives something."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not come to pass: {what}"
        time.sleep(0.02)
    return found


class AskedTrial(Trial):
    """Its daemon is started by a module of the tests, and asked by its API."""

    @property
    def _environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": f"{_ROOT / 'src'}:{_ROOT}", "PYTHONUNBUFFERED": "1"}

    def ask(self, question: Callable[[Client], Awaitable[_T]]) -> _T:
        """Ask the daemon by its API."""

        async def asking() -> _T:
            async with connect(self.path / "runtime") as client:
                return await question(client)

        return asyncio.run(asking())


class RefusingTrial(AskedTrial):
    """Its daemon runs through `refusing_doors`."""

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(namespace)
        self._control = self.path / "faults.json"
        self._calls = self.path / "calls.jsonl"

    @property
    def daemon_command(self) -> list[str]:
        python, _, _, *arguments = super().daemon_command
        return [python, "-m", "tests.faults.refusing_doors", str(self._control), str(self._calls), *arguments]

    def fail(self, *faults: dict[str, Any]) -> None:
        """Have these calls fail from now on (refusing_doors.Faults), and no others."""
        new = self._control.with_suffix(".new")
        new.write_text(json.dumps(faults))
        new.replace(self._control)

    def calls(self, since: float = 0) -> list[dict[str, Any]]:
        """The daemon's calls after that time (of time.monotonic)."""
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        return [call for call in map(json.loads, lines) if call["at"] >= since]

    def descriptors(self) -> int:
        """How many the daemon has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


class Stage:
    """The laboratory with eth0, eth1, the bridge br0, and CALM on eth9; NIC is the tests' own."""

    def __init__(self, lab: Lab, trial: RefusingTrial, qemu: FakeQmp) -> None:
        self.lab = lab
        self.trial = trial
        self.qemu = qemu
        qemu.devices = {qemu_id(NIC): {}}
        qemu.netdevs = {port: {"type": "hubport"} for port in (card_port(NIC), sink_port(NIC))}
        lab.uplink("eth9")
        lab.bridge("br0")
        trial.start()
        trial.ask(lambda client: client.define({CALM: definition("eth9", mac=_CALM_MAC)}))
        trial.wait(CALM, "connected")
        self._calm_since = self.nic(CALM).since
        # What is made once only: threads, sockets, watches, imports.
        self.define("eth9", more=f'[vm]\nqmp = "{qemu.path}"\n')
        self.reset()
        self._links = self._mine()
        self._descriptors = trial.descriptors()

    def define(self, *uplinks: str, more: str = "") -> None:
        """Define NIC."""
        text = definition(*uplinks, more=more)
        self.trial.ask(lambda client: client.define({NIC: text}))

    def undefine(self) -> None:
        """Undefine NIC, if it is defined."""
        with suppress(NoSuchNicError):
            self.trial.ask(lambda client: client.undefine([NIC]))

    def retarget(self, *uplinks: str) -> None:
        """Retarget NIC."""
        self.trial.ask(lambda client: client.retarget(NIC, uplinks))

    def nic(self, name: str = NIC) -> NicView:
        """What the daemon says of it."""
        return self.trial.nic(name)

    def macvlan(self) -> str:
        """The name of NIC's macvlan, of which there is one."""
        links = json.loads(self.lab.host.ip("-j", "link", "show", "type", "macvlan"))
        (name,) = (link["ifname"] for link in links if link.get("ifalias") == f"evertap:{NIC}")
        return str(name)

    def known(self) -> NicView | None:
        """What the daemon says of NIC; None if there is none."""
        with suppress(NoSuchNicError):
            return self.nic()
        return None

    def on(self, uplink: str) -> bool:
        """Whether NIC is connected there, with nothing left to do or to complain of."""
        nic = self.nic()
        return (nic.state, nic.uplink) == ("connected", uplink) and not self.trial.ask(Client.plan)

    def events(self) -> list[EventView]:
        """What happened to NIC."""
        return self.trial.ask(lambda client: client.history(NIC))

    def reset(self) -> None:
        """No faults, no NIC, eth0 and eth1 in order."""
        self.trial.fail()
        self.undefine()
        eventually(lambda: self.known() is None, "NIC is forgotten")
        for name in ("eth0", "eth1"):
            self.lab.remove(name)
            self.lab.uplink(name)

    def check_calm(self) -> None:
        """CALM has not noticed anything."""
        calm = self.nic(CALM)
        assert (calm.state, calm.uplink, calm.outages, calm.since) == (
            "connected",
            "eth9",
            0,
            self._calm_since,
        )

    def check_nothing_left(self) -> None:
        """After `reset`: no device and no descriptor too many."""
        eventually(lambda: self._mine() == self._links, f"{self._mine()} becomes {self._links}")
        eventually(
            lambda: self.trial.descriptors() <= self._descriptors,
            f"{self.trial.descriptors()} descriptors become {self._descriptors}",
        )

    def restarted(self) -> None:
        """Another daemon runs: its journal and its descriptors are new."""
        self.trial.wait(CALM, "connected")
        self._calm_since = self.nic(CALM).since

    def _mine(self) -> list[str]:
        links = json.loads(self.lab.host.ip("-j", "link", "show"))
        return sorted(
            link["ifname"] for link in links if "ifalias" in link or link["ifname"].startswith("ev")
        )


def attempts(calls: list[dict[str, Any]]) -> list[float]:
    """When the daemon tried again: refusals that follow each other at once belong to one attempt."""
    found: list[float] = []
    last = 0.0
    for call in calls:
        if call["errno"]:
            if call["at"] - last > 0.04:
                found.append(call["at"])
            last = call["at"]
    return found
