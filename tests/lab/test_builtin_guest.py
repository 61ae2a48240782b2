"""The builtin guest answers on a tap as a VM would."""

import time

import pytest

from evertap.lab import frames as f
from evertap.lab.builtin_guest import BuiltinGuest
from evertap.lab.capture import Capture
from evertap.lab.errors import LabError
from evertap.lab.pinger import Pinger
from evertap.lab.wires import Lab

MAC = "52:54:00:12:34:56"


@pytest.fixture
def tapped(lab: Lab) -> Lab:
    lab.uplink("eth0")
    lab.host.ip_batch(["tuntap add tap0 mode tap vnet_hdr", "link set tap0 addrgenmode none up"])
    lab.bridge("br0", "eth0", "tap0")
    return lab


def test_it_is_reached_from_the_wire(tapped: Lab) -> None:
    with BuiltinGuest(tapped.host, "tap0", MAC) as guest:
        guest.boot()
        with Pinger(tapped.wire) as pinger:
            since = pinger.wait_reply(5)
            time.sleep(0.5)
        assert pinger.lost(since, until=since + 0.4) == 0
        tapped.wire.run("ping", "-c1", "-W2", "2001:db8::10")
        assert MAC in tapped.wire.ip("neigh", "show", "192.0.2.10")
        assert guest.carrier_changes() == 0
        assert guest.answered() > 20


def test_its_boot_id_tells_boots_apart(tapped: Lab) -> None:
    with BuiltinGuest(tapped.host, "tap0", MAC) as guest:
        guest.boot()
        first = guest.boot_id()
        assert guest.boot_id() == first
        assert 0 < guest.uptime() < 30
        guest.stop()
        guest.boot()
        assert guest.boot_id() != first


def test_it_sends_what_it_is_told(tapped: Lab) -> None:
    frame = f.ethernet(f.BROADCAST, f.mac_bytes("02:00:00:00:00:99"), 0x88B5, b"forged")
    with BuiltinGuest(tapped.host, "tap0", MAC) as guest, Capture(tapped.wire, "net0") as capture:
        guest.boot()
        tapped.wire.run("ping", "-c1", "-W5", "192.0.2.10")  # the bridge is ready
        guest.send(frame)
        capture.wait(lambda one: one.data == frame)


def test_a_tap_that_is_deleted_is_a_failure_that_it_survives(tapped: Lab) -> None:
    with BuiltinGuest(tapped.host, "tap0", MAC) as guest:
        guest.boot()
        before = guest.boot_id()
        tapped.remove("tap0")
        deadline = time.monotonic() + 5
        while not guest.carrier_changes() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert guest.carrier_changes() == 1
        assert guest.boot_id() == before


def test_multiqueue_taps_are_opened(lab: Lab) -> None:
    lab.host.ip("tuntap", "add", "tap0", "mode", "tap", "multi_queue")
    with BuiltinGuest(lab.host, "tap0", MAC) as guest:
        guest.boot()
        assert guest.boot_id()


def test_it_makes_no_tap_itself(lab: Lab) -> None:
    with (
        BuiltinGuest(lab.host, "tap0", MAC) as guest,
        pytest.raises(LabError, match=r"cannot open the tap 'tap0': no interface with this name"),
    ):
        guest.boot()
    assert "tap0" not in lab.host.ip("-br", "link")


def test_a_tap_in_use_is_refused(tapped: Lab) -> None:
    with BuiltinGuest(tapped.host, "tap0", MAC) as first, BuiltinGuest(tapped.host, "tap0", MAC) as second:
        first.boot()
        with pytest.raises(LabError, match=r"cannot open the tap 'tap0'.*busy"):
            second.boot()
