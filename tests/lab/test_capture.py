"""A capture sees what passes, and which way."""

import time

import pytest

from evertap.lab import frames as f
from evertap.lab.capture import Capture, Captured
from evertap.lab.wires import WIRE_MAC, Lab


def is_arp(frame: Captured) -> bool:
    return frame.data[12:14] == f.ARP.to_bytes(2, "big")


def test_both_directions_are_seen_on_one_device(lab: Lab) -> None:
    lab.uplink("eth0")
    lab.host.ip("addr", "add", "192.0.2.20/24", "dev", "eth0")
    with Capture(lab.host, "eth0") as capture:
        lab.host.run("ping", "-c1", "-W2", "192.0.2.1")
        asked = capture.wait(lambda frame: is_arp(frame) and frame.outgoing)
        answered = capture.wait(lambda frame: is_arp(frame) and not frame.outgoing)
    assert asked.data[:6] == f.BROADCAST
    assert f.mac_text(answered.data[6:12]) == WIRE_MAC
    assert asked.device == "eth0"
    assert asked.time <= answered.time
    assert len(capture.frames(is_arp)) >= 2


def test_a_capture_of_all_devices_outlives_each(lab: Lab) -> None:
    with Capture(lab.host) as capture:
        for number in range(2):
            lab.uplink("eth0")
            lab.host.ip("addr", "add", "192.0.2.20/24", "dev", "eth0")
            lab.host.run("ping", "-c1", "-W2", "192.0.2.1")
            lab.remove("eth0")
            assert len([frame for frame in capture.frames(is_arp) if frame.outgoing]) == number + 1


def test_a_capture_whose_device_goes_away_is_silent(lab: Lab) -> None:
    lab.uplink("eth0")
    with Capture(lab.host, "eth0") as capture:
        lab.remove("eth0")
        gone = time.monotonic()
        with pytest.raises(TimeoutError, match=r"no such frame within 0\.1 s"):
            # net0's own multicast reports may have been heard before.
            capture.wait(lambda frame: frame.time > gone, timeout=0.1)


def test_a_device_that_is_not_there_is_refused(lab: Lab) -> None:
    with pytest.raises(OSError, match="No such device"):
        Capture(lab.host, "eth0")
