"""The demo's story: a guest starts without an uplink, and keeps its network through all that follows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evertap.lab.builtin_guest import BuiltinGuest
from evertap.lab.errors import LabError
from evertap.lab.image import build
from evertap.lab.pinger import Pinger
from evertap.lab.qemu import QemuGuest
from evertap.lab.trial import Trial
from evertap.lab.wires import Lab

NIC_MAC = "52:54:00:12:34:56"
CARD_MAC = "02:00:00:00:0a:01"
Backend = Literal["tap", "macvtap"]
Guest = Literal["qemu", "builtin"]
INTERVAL = 0.01
_PATIENCE = 15.0


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of the story came to. Times in seconds."""

    title: str
    reachable_after: float | None  # from the change to the guest's first answer; None: not to be reached
    lost: int  # pings without answer from the change until the guest was reachable again
    latency_ms: float | None  # evertap's own part, from the kernel's notification
    boot_id: str
    carrier_changes: int  # that the guest has seen since its start


class Story:
    """Runs the demo in private namespaces. Used as a context: leaving it removes everything."""

    def __init__(self, guest: Guest, backend: Backend, say: Callable[[str], None]) -> None:
        if guest == "builtin" and backend == "macvtap":
            raise LabError(
                "the builtin guest has no QEMU that a macvtap could be handed to: use --guest qemu"
            )
        self._kind = guest
        self._backend = backend
        self._say = say
        self._stack = ExitStack()
        self._carrier_changes = 0
        self.pinger: Pinger | None = None

    def __enter__(self) -> Story:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def steps(self) -> Iterator[Step]:
        """Tell the story, step by step."""
        image = None
        if self._kind == "qemu":
            cache = Path(
                os.environ.get("EVERTAP_GUEST_CACHE") or Path.home() / ".cache" / "evertap" / "guest"
            )
            image = build(cache, self._say)
        lab = self._stack.enter_context(Lab())
        trial = self._stack.enter_context(Trial(lab.host))
        self._say("network namespaces are ready; starting the daemon in them")
        trial.start()
        self._say('defining NIC "web0": its uplink is the card with MAC ' + CARD_MAC + ', or else "spare0"')
        trial.define("web0", self._definition())
        guest: QemuGuest | BuiltinGuest
        if image:
            self._say("starting a QEMU guest (software emulation) although no uplink exists")
            self._say("$ qemu-system-x86_64 … " + trial.run("args", "web0").strip())
            guest = QemuGuest(lab.host, image, trial.arguments("web0"))
        else:
            self._say("starting the builtin guest on the tap although no uplink exists")
            guest = BuiltinGuest(lab.host, "web0", NIC_MAC)
        self._stack.enter_context(guest)
        guest.boot()
        self._carrier_changes = guest.carrier_changes()
        self.pinger = self._stack.enter_context(Pinger(lab.wire, interval=INTERVAL))
        time.sleep(1)
        yield self._result("started without an uplink", guest, trial, None)

        self._say(f"plugging the card in as eth0 (MAC {CARD_MAC})")
        yield self._change("the uplink appears", guest, trial, lambda: lab.uplink("eth0", mac=CARD_MAC))
        self._say("pulling it out: the kernel deletes eth0 and all that stands on it")
        lab.remove("eth0")
        time.sleep(1)
        yield self._result("the uplink is gone", guest, trial, None)
        self._say("plugging it in again; the kernel calls it enx0 this time")
        yield self._change("back under another name", guest, trial, lambda: lab.uplink("enx0", mac=CARD_MAC))
        self._say("adding a second uplink, spare0, and then cutting enx0's cable")
        lab.uplink("spare0")
        time.sleep(0.5)
        yield self._change("failover to spare0", guest, trial, lambda: lab.carrier("enx0", False))
        self._say("mending the cable: after one good second the NIC returns to enx0")
        lab.carrier("enx0", True)
        yield self._change(
            "failback to enx0",
            guest,
            trial,
            lambda: self._until(lambda: trial.json("show", "web0")["uplink"] == "enx0"),
        )
        yield self._retarget(lab, guest, trial)

    def _retarget(self, lab: Lab, guest: QemuGuest | BuiltinGuest, trial: Trial) -> Step:
        if self._backend == "macvtap":  # which cannot join a bridge
            uplink, title = "spare0", "retarget to spare0"
        else:
            lab.uplink("eth9")
            lab.bridge("br0", "eth9")
            uplink, title = "bridge=br0", "retarget to bridge br0"
        self._say(f"$ evertap retarget web0 {uplink}")
        return self._change(title, guest, trial, lambda: trial.run("retarget", "web0", uplink))

    def _definition(self) -> str:
        return (
            f'mac = "{NIC_MAC}"\n'
            f'uplinks = [{{ mac = "{CARD_MAC}" }}, "spare0"]\n'
            "failback_delay = 1.0\n"
            f'backend = "{self._backend}"\n'
        )

    def _until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not reached():
            if time.monotonic() > deadline:
                raise TimeoutError("the demo's next state did not come")
            time.sleep(0.05)

    def _change(
        self, title: str, guest: QemuGuest | BuiltinGuest, trial: Trial, change: Callable[[], object]
    ) -> Step:
        assert self.pinger is not None
        before = time.monotonic()
        change()
        self.pinger.wait_reply(_PATIENCE)
        time.sleep(0.7)  # for the last answers on their way
        return self._result(title, guest, trial, before)

    def _result(self, title: str, guest: QemuGuest | BuiltinGuest, trial: Trial, since: float | None) -> Step:
        assert self.pinger is not None
        latency = reachable = None
        lost = 0
        if since is not None:
            reply = self.pinger.first_reply_after(since)
            reachable = reply - since if reply else None
            lost = self.pinger.lost(since)
            latency = [event["latency_ms"] for event in trial.events("web0") if "latency_ms" in event][-1]
        return Step(
            title,
            reachable,
            lost,
            latency,
            guest.boot_id(),
            guest.carrier_changes() - self._carrier_changes,
        )
