"""The macvtap backend with a real guest: a new macvtap is handed to QEMU each time the uplink returns."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterator

import pytest
from qemu.qmp import QMPClient

from evertap.lab.capture import Capture
from evertap.lab.frames import mac_text
from evertap.lab.image import GuestImage
from evertap.lab.pinger import Pinger
from evertap.lab.qemu import QemuGuest
from evertap.lab.trial import Trial
from evertap.lab.wires import Lab

from .test_guest import CARD, INTERVAL, Scene, staged

pytestmark = pytest.mark.timeout(180)

DEFINITION = f"""
mac = "52:54:00:12:34:56"
backend = "macvtap"
uplinks = [{{ mac = "{CARD}" }}, "spare0"]
failback_delay = 0.3
"""


@pytest.fixture
def scene(lab: Lab, trial: Trial, guest_image: GuestImage) -> Iterator[Scene]:
    with staged(lab, trial, guest_image, DEFINITION) as made:
        yield made


def test_deferred_start_loss_and_return_under_the_same_and_another_name(scene: Scene) -> None:
    assert scene.state() == ("waiting", None)
    scene.lab.uplink("eth0", mac=CARD)
    scene.reachable()
    scene.wait("connected", "eth0")
    for name in ("eth0", "enx0"):
        scene.lab.remove("eth0")
        scene.wait("waiting")
        scene.unreachable()
        scene.lab.uplink(name, mac=CARD)
        scene.reachable()
        scene.wait("connected", name)


def test_retarget_and_failover_between_two_uplinks(scene: Scene) -> None:
    scene.connect()
    scene.lab.uplink("spare0")
    scene.trial.run("retarget", "web0", "spare0")
    assert scene.state() == ("connected", "spare0")
    scene.reachable()
    scene.trial.run("retarget", "web0", "eth0", "spare0")
    assert scene.state() == ("connected", "eth0")
    scene.lab.carrier("eth0", False)
    scene.wait("connected", "spare0")
    scene.reachable()


def test_disconnect_and_connect(scene: Scene) -> None:
    scene.connect()
    scene.trial.run("disconnect", "web0")
    scene.unreachable()
    assert "macvtap" not in scene.lab.host.ip("-d", "link")
    scene.trial.run("connect", "web0")
    scene.reachable()


def test_a_guest_that_transmits_while_no_uplink_exists_still_works_afterwards(scene: Scene) -> None:
    """The hub's stall: without a second port the first frame would stop the guest's queue for good."""
    scene.guest.sh("for i in 1 2 3 4 5; do ping -c 1 -W 1 192.0.2.1; done", timeout=20, check=False)
    scene.lab.uplink("eth0", mac=CARD)
    scene.reachable()


def test_a_killed_daemon_is_replaced_in_the_middle_of_each_change(scene: Scene) -> None:
    scene.connect()
    since = time.monotonic()
    scene.trial.kill()
    time.sleep(0.3)
    scene.trial.start()
    scene.wait("connected", "eth0")
    assert scene.trial.json("plan") == {"actions": []}
    assert scene.lost_during_three_seconds(since) == 0
    scene.lab.remove("eth0")  # the daemon dies while it reacts
    scene.trial.kill()
    scene.trial.start()
    scene.wait("waiting")
    scene.lab.uplink("enx0", mac=CARD)
    scene.trial.kill()
    scene.trial.start()
    scene.reachable()
    scene.lab.uplink("spare0")
    scene.trial.try_run("retarget", "web0", "spare0", timeout=5)
    scene.trial.kill()
    scene.trial.start()
    scene.wait("connected", "spare0")
    scene.reachable()


def _links(scene: Scene) -> list[str]:
    return re.findall(r"^(ev\d+)", scene.lab.host.ip("-br", "link"), re.MULTILINE)


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208


def test_a_hundred_losses_and_returns_leave_nothing_behind(scene: Scene) -> None:
    scene.connect()
    before = _descriptors(scene.guest.pid), _descriptors(scene.trial.pid), len(_links(scene))
    for _ in range(100):
        scene.lab.remove("eth0")
        scene.wait("waiting")
        scene.lab.uplink("eth0", mac=CARD)
        scene.wait("connected", "eth0")
    scene.reachable()
    after = _descriptors(scene.guest.pid), _descriptors(scene.trial.pid), len(_links(scene))
    assert after == before
    scene.trial.kill()  # QEMU's monitor serves one client
    network = _monitor(scene, "info network")
    assert len(re.findall(r"evertap-web0-up\d+", network)) == 1
    assert len(re.findall(r"evertap-web0-hub\d+", network)) == 1
    scene.trial.start()


def _monitor(scene: Scene, command: str) -> str:
    """Ask QEMU's human monitor, through the QMP socket of ours."""

    async def ask() -> str:
        client = QMPClient("test")
        await client.connect(str(scene.trial.path / "runtime" / "qmp" / "web0"))
        try:
            return str(await client.execute("human-monitor-command", {"command-line": command}))
        finally:
            await client.disconnect()

    return asyncio.run(ask())


def test_a_spoofed_source_does_not_leave(lab: Lab, trial: Trial, guest_image: GuestImage) -> None:
    trial.define("web0", DEFINITION)
    lab.uplink("eth0", mac=CARD)
    change = "ip link set eth0 down; ip link set eth0 address {}; ip link set eth0 up"
    with (
        QemuGuest(lab.host, guest_image, trial.arguments("web0")) as guest,
        Capture(lab.wire, "net0") as capture,
    ):
        guest.boot()
        for mac in ("52:54:00:66:66:66", "52:54:00:12:34:56"):
            guest.sh(change.format(mac))
            guest.sh("ping -c 2 -W 1 192.0.2.1", check=False)
        sources = {mac_text(frame.data[6:12]) for frame in capture.frames()}
        assert "52:54:00:12:34:56" in sources
        assert "52:54:00:66:66:66" not in sources


def test_qemu_killed_and_started_again_finds_its_nic(lab: Lab, trial: Trial, guest_image: GuestImage) -> None:
    trial.define("web0", DEFINITION)
    lab.uplink("eth0", mac=CARD)
    arguments = trial.arguments("web0")
    with Pinger(lab.wire, interval=INTERVAL) as pinger:
        for _ in range(2):
            with QemuGuest(lab.host, guest_image, arguments) as guest:
                guest.boot()
                pinger.wait_reply(10)
                assert trial.nic("web0").state == "connected"
            deadline = time.monotonic() + 10
            while "macvtap" in lab.host.ip("-d", "link"):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            trial.wait("web0", "waiting")
            assert "QEMU" in trial.nic("web0").reason
