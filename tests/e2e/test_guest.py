"""A real guest, kernel and daemon: what the guest notices of the fate of its uplink. It should be nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from evertap.lab.image import GuestImage
from evertap.lab.pinger import Pinger
from evertap.lab.qemu import QemuGuest
from evertap.lab.trial import Trial
from evertap.lab.wires import Lab

pytestmark = pytest.mark.timeout(120)

CARD = "02:00:00:00:0a:01"
INTERVAL = 0.01
DEFINITION = f"""
mac = "52:54:00:12:34:56"
uplinks = [{{ mac = "{CARD}" }}, "spare0"]
failback_delay = 0.3
"""


@dataclass
class Scene:
    """A running guest that was started without an uplink, pinged from outside all the time."""

    lab: Lab
    trial: Trial
    guest: QemuGuest
    pinger: Pinger

    def state(self) -> tuple[str, str | None]:
        shown = self.trial.nic("web0")
        return shown.state, shown.uplink

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.trial.run("events", "--json").splitlines()]

    def wait(self, state: str, uplink: str | None = None) -> None:
        self.trial.wait("web0", state)
        deadline = time.monotonic() + 10
        while uplink and self.state()[1] != uplink:
            assert time.monotonic() < deadline, self.trial.json("show", "web0")
            time.sleep(0.02)

    def reachable(self) -> float:
        """Time of the next answer."""
        return self.pinger.wait_reply(5)

    def unreachable(self) -> None:
        with pytest.raises(TimeoutError):
            self.pinger.wait_reply(0.5)

    def connect(self) -> None:
        self.lab.uplink("eth0", mac=CARD)
        self.wait("connected", "eth0")
        self.reachable()

    def lost_during_three_seconds(self, since: float) -> int:
        """Of the 300 pings from `since` on."""
        time.sleep(max(0.0, since + 3 - time.monotonic()))
        until = time.monotonic()
        time.sleep(0.6)
        return self.pinger.lost(since, until)


@contextmanager
def staged(lab: Lab, trial: Trial, guest_image: GuestImage, definition: str) -> Iterator[Scene]:
    """Whatever happens in the test: the guest must not have noticed."""
    trial.define("web0", definition)
    with (
        QemuGuest(lab.host, guest_image, trial.arguments("web0")) as guest,
        Pinger(lab.wire, interval=INTERVAL) as pinger,
    ):
        guest.boot()
        before = guest.boot_id(), guest.carrier_changes(), guest.uptime()
        yield Scene(lab, trial, guest, pinger)
        after = guest.boot_id(), guest.carrier_changes(), guest.uptime()
        assert after[:2] == before[:2]
        assert after[2] > before[2]


@pytest.fixture
def scene(lab: Lab, trial: Trial, guest_image: GuestImage) -> Iterator[Scene]:
    with staged(lab, trial, guest_image, DEFINITION) as made:
        yield made


def test_a_vm_starts_without_its_uplink_and_is_connected_when_it_appears(scene: Scene) -> None:
    assert scene.state() == ("waiting", None)
    scene.unreachable()
    scene.lab.uplink("eth0", mac=CARD)
    scene.reachable()
    scene.wait("connected", "eth0")


def test_an_uplink_is_lost_and_returns_under_its_own_name_and_under_another(scene: Scene) -> None:
    scene.connect()
    for name in ("eth0", "eth0", "enx0"):
        scene.lab.remove("eth0")
        scene.wait("waiting")
        scene.unreachable()
        scene.lab.uplink(name, mac=CARD)
        scene.reachable()
        scene.wait("connected", name)
    assert scene.trial.nic("web0").outages == 3


def test_an_uplink_that_is_renamed_under_the_nic_is_followed_without_loss(scene: Scene) -> None:
    scene.connect()
    since = time.monotonic()
    scene.lab.rename("eth0", "lan0")
    scene.wait("connected", "lan0")
    assert scene.lost_during_three_seconds(since) == 0


def test_a_lost_carrier_fails_over_at_once_and_failback_loses_nothing(scene: Scene) -> None:
    scene.connect()
    scene.lab.uplink("spare0")
    time.sleep(0.3)
    since = time.monotonic()
    scene.lab.carrier("eth0", False)
    scene.wait("connected", "spare0")
    # The kernel tells of a lost carrier some ms after it is lost; frames until then are lost with it.
    assert scene.lost_during_three_seconds(since) <= 5
    since = time.monotonic()
    scene.lab.carrier("eth0", True)
    scene.wait("connected", "eth0")
    assert scene.lost_during_three_seconds(since) == 0
    assert [event["event"] for event in scene.events()][-2:] == ["failover", "failback"]


def test_a_planned_retarget_loses_none_of_300_pings_on_the_way_to_a_bridge_and_back(scene: Scene) -> None:
    scene.connect()
    scene.lab.uplink("spare0")
    scene.lab.uplink("eth9")
    scene.lab.bridge("br0", "eth9")
    ways = {"spare0": "spare0", "bridge=br0": "br0", f"mac={CARD}": "eth0", "br0": "br0"}
    for uplink, name in ways.items():
        since = time.monotonic()
        time.sleep(0.5)
        scene.trial.run("retarget", "web0", uplink)
        assert scene.state() == ("connected", name)
        assert scene.lost_during_three_seconds(since) == 0, name


def test_disconnect_and_connect_touch_the_backend_only(scene: Scene) -> None:
    scene.connect()
    scene.trial.run("disconnect", "web0")
    assert scene.state() == ("disconnected", None)
    scene.unreachable()
    scene.trial.run("connect", "web0")
    scene.reachable()
    scene.wait("connected", "eth0")


def test_a_killed_daemon_is_replaced_without_a_lost_frame_and_finds_nothing_to_do(scene: Scene) -> None:
    scene.connect()
    since = time.monotonic()
    scene.trial.kill()
    time.sleep(0.5)
    scene.trial.start()
    assert scene.trial.json("plan") == {"actions": []}
    assert scene.state() == ("connected", "eth0")
    assert scene.lost_during_three_seconds(since) == 0
    # And the new one is as good as the old.
    scene.lab.remove("eth0")
    scene.wait("waiting")
    scene.lab.uplink("enx0", mac=CARD)
    scene.reachable()


def test_what_happened_while_no_daemon_ran_is_caught_up_with(scene: Scene) -> None:
    scene.connect()
    scene.trial.kill()
    scene.lab.remove("eth0")
    scene.lab.uplink("enx0", mac=CARD)
    scene.unreachable()
    scene.trial.start()
    scene.reachable()
    scene.wait("connected", "enx0")


def test_a_definition_removed_while_the_vm_runs_leaves_the_tap_until_the_vm_has_gone(scene: Scene) -> None:
    scene.connect()
    scene.trial.run("undefine", "web0")
    scene.unreachable()
    assert "web0" in scene.lab.host.ip("link", "show", "web0")
    scene.trial.define("web0", DEFINITION)
    scene.reachable()
    scene.trial.run("undefine", "web0")
    shown = scene.trial.json("show", "web0")
    assert (shown["state"], shown["tap"]) == ("disconnected", "web0")
    assert "the tap stays until its VM has gone" in shown["reason"]
