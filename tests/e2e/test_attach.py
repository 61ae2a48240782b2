"""Guest-visible hotplug by the command line: a card appears in a running guest, and goes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from evertap.lab.image import GuestImage
from evertap.lab.pinger import Pinger
from evertap.lab.qemu import QemuGuest
from evertap.lab.trial import Trial
from evertap.lab.wires import Lab
from evertap.model.arguments import qmp_arguments

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def guest(lab: Lab, trial: Trial, guest_image: GuestImage) -> Iterator[QemuGuest]:
    """A guest without any card, with a free hot-plug port and a QMP socket for us."""
    socket = str(trial.path / "vm.qmp")
    port = ["-device", "pcie-root-port,id=rp0"]
    with QemuGuest(lab.host, guest_image, [*qmp_arguments(socket), *port]) as booted:
        booted.boot()
        yield booted


def _define(trial: Trial, backend: str) -> None:
    trial.define("web0", f'mac = "52:54:00:12:34:56"\nuplinks = ["eth0"]\nbackend = "{backend}"\n')


def _cards(guest: QemuGuest) -> list[str]:
    return guest.sh("ls /sys/class/net").split()


def _until_cards(guest: QemuGuest, expected: list[str]) -> None:
    deadline = time.monotonic() + 10
    while sorted(_cards(guest)) != expected:
        assert time.monotonic() < deadline, _cards(guest)
        time.sleep(0.1)


@pytest.mark.parametrize("backend", ["tap", "macvtap"])
@pytest.mark.parametrize("uplink_first", [True, False])
def test_a_card_is_attached_works_through_loss_and_return_and_is_detached(
    lab: Lab, trial: Trial, guest: QemuGuest, backend: str, uplink_first: bool
) -> None:
    _define(trial, backend)
    if uplink_first:
        lab.uplink("eth0")
    trial.run("attach", "web0", "--qmp", str(trial.path / "vm.qmp"))
    _until_cards(guest, ["eth0", "lo"])
    if not uplink_first:
        assert trial.nic("web0").state == "waiting"
        lab.uplink("eth0")
    with Pinger(lab.wire) as pinger:
        pinger.wait_reply(10)
        lab.remove("eth0")
        trial.wait("web0", "waiting")
        lab.uplink("eth0")
        pinger.wait_reply(5)
        trial.kill()  # the next daemon knows where the card is
        trial.start()
        trial.wait("web0", "connected")
        pinger.wait_reply(5)
        trial.run("detach", "web0")
        _until_cards(guest, ["lo"])
    assert trial.json("plan") == {"actions": []}
    trial.run("attach", "web0", "--qmp", str(trial.path / "vm.qmp"))
    _until_cards(guest, ["eth0", "lo"])


def test_what_cannot_be_attached_is_told_and_leaves_nothing(lab: Lab, trial: Trial, guest: QemuGuest) -> None:
    _define(trial, "tap")
    socket = str(trial.path / "vm.qmp")
    absent = trial.try_run("attach", "web0", "--qmp", str(trial.path / "absent.qmp"))
    assert (absent.returncode, "no QMP socket" in absent.stderr) == (1, True), absent.stderr
    trial.run("attach", "web0", "--qmp", socket)
    again = trial.try_run("attach", "web0", "--qmp", socket)
    assert again.returncode == 1
    _until_cards(guest, ["eth0", "lo"])
    trial.define("web1", 'mac = "52:54:00:12:34:57"\nuplinks = ["eth0"]\n')
    full = trial.try_run("attach", "web1", "--qmp", socket)
    assert (full.returncode, "pcie-root-port" in full.stderr) == (1, True), full.stderr
    _until_cards(guest, ["eth0", "lo"])
    trial.run("detach", "web0")
    gone = trial.try_run("detach", "web0")
    assert gone.returncode == 1
    trial.run("attach", "web1", "--qmp", socket)
