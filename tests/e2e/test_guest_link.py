"""What the guest sees of its card's carrier under each policy, for both backends; and its receive filter."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from evertap.lab.image import GuestImage
from evertap.lab.qemu import QemuGuest
from evertap.lab.trial import Trial
from evertap.lab.wires import Lab

pytestmark = pytest.mark.timeout(120)

BACKENDS = ("tap", "macvtap")


def _guest(
    lab: Lab, trial: Trial, image: GuestImage, backend: str, fields: str
) -> AbstractContextManager[QemuGuest]:
    trial.define(
        "web0",
        f'mac = "52:54:00:12:34:56"\nuplinks = ["eth0", "spare0"]\nbackend = "{backend}"\n{fields}\n',
    )
    return QemuGuest(lab.host, image, trial.arguments("web0"))


def _until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _carrier(guest: QemuGuest) -> bool:
    return guest.sh("cat /sys/class/net/eth0/carrier").strip() == "1"


@pytest.mark.parametrize("backend", BACKENDS)
def test_follow_shows_the_guest_what_its_nic_has(
    lab: Lab, trial: Trial, guest_image: GuestImage, backend: str
) -> None:
    with _guest(lab, trial, guest_image, backend, 'guest_link = "follow"') as guest:
        guest.boot()
        _until(lambda: not _carrier(guest))
        before = guest.carrier_changes()
        lab.uplink("eth0")
        _until(lambda: _carrier(guest))
        lab.remove("eth0")
        _until(lambda: not _carrier(guest))
        assert guest.carrier_changes() == before + 2
        lab.uplink("eth0")
        _until(lambda: _carrier(guest))
        trial.run("disconnect", "web0")
        _until(lambda: not _carrier(guest))
        trial.run("connect", "web0")
        _until(lambda: _carrier(guest))
        assert guest.carrier_changes() == before + 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_bounce_shows_the_guest_every_change_of_uplink_as_down_and_up(
    lab: Lab, trial: Trial, guest_image: GuestImage, backend: str
) -> None:
    lab.uplink("eth0")
    lab.uplink("spare0")
    with _guest(lab, trial, guest_image, backend, 'guest_link = "bounce"') as guest:
        guest.boot()
        trial.wait("web0", "connected")
        # The macvtap backend connects only once QEMU runs, so there is a first bounce while the guest boots.
        time.sleep(1)
        before = guest.carrier_changes()
        trial.run("retarget", "web0", "spare0")
        _until(lambda: guest.carrier_changes() == before + 2)
        trial.run("retarget", "web0", "eth0")
        _until(lambda: guest.carrier_changes() == before + 4)
        time.sleep(1)
        assert guest.carrier_changes() == before + 4
        assert _carrier(guest)


def test_a_restarted_daemon_goes_on_following(lab: Lab, trial: Trial, guest_image: GuestImage) -> None:
    lab.uplink("eth0")
    with _guest(lab, trial, guest_image, "tap", 'guest_link = "follow"') as guest:
        guest.boot()
        trial.wait("web0", "connected")
        changes = guest.carrier_changes()
        trial.kill()
        trial.start()
        time.sleep(0.5)
        assert guest.carrier_changes() == changes
        trial.kill()
        lab.remove("eth0")
        trial.start()
        _until(lambda: not _carrier(guest))


def _multicast(lab: Lab) -> set[str]:
    """Multicast addresses that our macvlan or macvtap receives on the guest's behalf."""
    return set(re.findall(r"^(\S+) dev ev\d+ self permanent", lab.host.run("bridge", "fdb"), re.MULTILINE))


def _allmulti(lab: Lab) -> bool:
    (line,) = [line for line in lab.host.ip("-o", "link").splitlines() if ": ev" in line]
    return "ALLMULTI" in line


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_guests_receive_filter_is_followed(
    lab: Lab, trial: Trial, guest_image: GuestImage, backend: str
) -> None:
    lab.uplink("eth0")
    fields = 'multicast = "guest"\nspoof_check = false'
    with _guest(lab, trial, guest_image, backend, fields) as guest:
        guest.boot()
        trial.wait("web0", "connected")
        _until(lambda: not _allmulti(lab))
        # The guest's solicited-node address: neighbour discovery from outside needs it.
        _until(lambda: "33:33:ff:00:00:10" in _multicast(lab))
        lab.wire.run("ping", "-6", "-c", "1", "-W", "3", "2001:db8::10")
        guest.sh("ip link set eth0 promisc on")
        _until(lambda: _allmulti(lab))
        guest.sh("ip link set eth0 promisc off")
        _until(lambda: not _allmulti(lab))
        own = "52:54:00:77:77:77"
        guest.sh(f"ip link set eth0 down; ip link set eth0 address {own}; ip link set eth0 up")
        _until(lambda: own in lab.host.ip("link"))
        guest.sh("ip -4 addr show dev eth0 | grep -q 192.0.2.10 || ip addr add 192.0.2.10/24 dev eth0")
        lab.wire.run("ip", "neigh", "flush", "all")
        lab.wire.run("ping", "-c", "1", "-W", "3", "192.0.2.10")
