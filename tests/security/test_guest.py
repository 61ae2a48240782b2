"""The guest as an attacker: whatever it sends, and whenever, stays between it and its uplink.

The test holds the tap in place of the VMM, so that it chooses every byte, the virtio header's too.
"""

from __future__ import annotations

import errno
import os
import random
import struct
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest

from evertap.kernel.tun import open_tap
from evertap.lab import frames as f
from evertap.lab.builtin_guest import BuiltinGuest
from evertap.lab.capture import Capture, Captured
from evertap.lab.trial import Trial
from evertap.lab.wires import WIRE_IPV4, WIRE_MAC, Lab
from tests.e2e.test_frames import give_host_addresses, mac_of, received

from .asking import ask, define, retarget

MAC, OTHER_MAC = "52:54:00:12:34:56", "52:54:00:12:34:57"
OWN, OTHER = f.mac_bytes(MAC), f.mac_bytes(OTHER_MAC)
OTHER_IPV4 = "192.0.2.20"
HOST = (IPv4Address("192.0.2.77"), IPv6Address("2001:db8::77"))
MINE = (IPv4Address("192.0.2.10"), IPv6Address("2001:db8::10"))
PLAIN = bytes(10)  # struct virtio_net_hdr that asks for nothing
SETTLES = 0.2  # seconds in which whoever wanted to answer would have


@pytest.fixture
def trial(lab: Lab) -> Iterator[Trial]:
    give_host_addresses(lab.host)
    with Trial(lab.host) as made:
        made.nics_d.mkdir(parents=True)
        (made.nics_d / "web0.toml").write_text(
            f'mac = "{MAC}"\nuplinks = ["eth0", "eth1"]\nannounce = false\nfailback_delay = 0.0'
        )
        made.start()
        yield made
        assert "Traceback" not in made.log


@pytest.fixture
def tap(lab: Lab, trial: Trial) -> Iterator[int]:
    """The guest's end."""
    deadline = time.monotonic() + 10
    while True:
        try:
            with lab.host.enter():
                descriptor = open_tap("web0")
            break
        except OSError:  # it is being made
            assert time.monotonic() < deadline
            time.sleep(0.02)
    os.set_blocking(descriptor, False)
    yield descriptor
    os.close(descriptor)


def send(tap: int, frame: bytes, header: bytes = PLAIN) -> None:
    """What the kernel refuses at once has not been sent."""
    try:
        os.write(tap, header + frame)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.EAGAIN,
            errno.ENOBUFS,
            errno.EMSGSIZE,
            errno.ENOMEM,
            errno.EFAULT,
        ):
            raise


def udp(source_port: int, port: int, payload: bytes = b"") -> bytes:
    return struct.pack("!HHHH", source_port, port, 8 + len(payload), 0) + payload


def hostile_frames(targets: list[bytes], source: bytes) -> list[bytes]:
    """What could get at a stack that hears it: each to every target."""
    ip = f.ipv4(MINE[0], HOST[0], f.ICMP, f.icmp_echo(f.ECHO_REQUEST, 7, 7, b"attack"))
    ip6 = f.icmp6(MINE[1], HOST[1], bytes((f.ECHO6_REQUEST, 0, 0, 0, 0, 7, 0, 7)))
    router = IPv6Address("fe80::bad")
    advert = bytes((134, 0, 0, 0, 64, 0, 0x07, 0x08)) + bytes(8)
    advert += b"\x03\x04\x40\xc0" + b"\xff" * 8 + bytes(4) + IPv6Address("2001:db8:bad::").packed
    offer = f.ipv4(HOST[0], IPv4Address("255.255.255.255"), 17, udp(67, 68, b"\x02\x01\x06\x00" + bytes(236)))
    first, second = f.ipv4(MINE[0], HOST[0], 17, udp(1, 2, b"x" * 64)), bytearray(ip)
    second[6:8] = b"\x20\x05"  # a fragment from the middle, with more to come
    overlapping = bytearray(first)
    overlapping[6:8] = b"\x20\x00"
    found = []
    for target in targets:
        for kind, body in (
            (f.IPV4, ip),
            (f.IPV6, ip6),
            (f.IPV4, ip[:21]),  # cut off
            (f.IPV4, b"\x4f" + ip[1:]),  # with options that are not there
            (f.IPV4, bytes(second)),
            (f.IPV4, bytes(overlapping)),
            (f.IPV6, ip6[:41]),
            (f.IPV4, offer),
            (f.IPV6, f.icmp6(router, IPv6Address("ff02::1"), advert)),
            (0x8100, b"\x00\x05" + struct.pack("!H", f.IPV4) + ip),  # VLAN 5
            (0x8100, b"\x00\x00" + struct.pack("!H", f.IPV4) + ip),  # priority alone
            (0x88A8, b"\x00\x05\x81\x00\x00\x06" + struct.pack("!H", f.IPV4) + ip),  # QinQ
            (0x8100, b"\x00"),
            (len(ip) + 8, b"\xaa\xaa\x03\x00\x00\x00" + struct.pack("!H", f.IPV4) + ip),  # 802.3, LLC, SNAP
            (0x0026, b"\x42\x42\x03" + bytes(35)),  # a bridge's spanning tree
            (0x8808, b"\x00\x01\xff\xff" + bytes(42)),  # pause
            (0x88CC, b"\x02\x07\x04" + bytes(40)),  # LLDP
            (0x8864, b"\x11\x00\x00\x01\x00\x04\x00\x21" + ip),  # PPPoE
            (0x9000, bytes(46)),  # loopback
            (0x0806, bytes(3)),  # ARP, cut off
        ):
            found.append(f.ethernet(target, source, kind, body))
    for gateway in (HOST[0], IPv4Address(WIRE_IPV4)):
        found.append(f.arp_reply(source, gateway, f.BROADCAST, HOST[0]))
        found.append(f.arp_request(source, gateway, gateway))
    found.append(
        f.neighbour_advertisement(source, HOST[1], b"\x33\x33\x00\x00\x00\x01", IPv6Address("ff02::1"))
    )
    return found


def malformed() -> list[tuple[bytes, bytes]]:
    """Frames and virtio headers that do not fit each other, or nothing."""
    whole = f.ethernet(f.BROADCAST, OWN, f.IPV4, f.ipv4(MINE[0], HOST[0], 17, udp(1, 2, b"x" * 1000)))
    sizes = [
        (PLAIN, (whole + bytes(70_000))[:size]) for size in (0, 1, 13, 14, 15, 33, 1515, 9000, 65_536, 70_000)
    ]
    headers = [
        struct.pack("<BBHHHH", flags, kind, length, size, start, offset)
        for flags, kind, length, size, start, offset in (
            (1, 0, 0, 0, 65_535, 65_535),  # a checksum far behind the end
            (1, 0, 0, 0, 14, 2000),
            (0, 1, 65_535, 1, 0, 0),  # TCP segments of one byte each
            (0, 1, 54, 0, 0, 0),
            (0, 4, 14, 1, 0, 0),
            (0, 3, 14, 9, 0, 0),
            (1, 0x81, 54, 1448, 34, 16),
            (0xFF, 0xFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF),
        )
    ]
    noise = random.Random(5)
    return (
        sizes
        + [(header, whole) for header in headers]
        + [
            (noise.randbytes(10), f.BROADCAST + OWN + noise.randbytes(noise.randrange(200)))
            for _ in range(200)
        ]
    )


def consequences(capture: Capture, taps: tuple[str, ...]) -> list[Captured]:
    """What came of it: the frames themselves are seen on the guest's own tap, before its program."""

    def is_one(seen: Captured) -> bool:
        is_mld = seen.data[12:14] == b"\x86\xdd" and seen.data[20] == 0
        return not is_mld and (seen.device not in taps or seen.outgoing)

    return capture.frames(is_one)


@pytest.fixture
def targets(lab: Lab, tap: int) -> list[bytes]:
    multicast = [b"\x33\x33\x00\x00\x00\x01", b"\x01\x80\xc2\x00\x00\x00", b"\x01\x00\x5e\x00\x00\x01"]
    return [mac_of(lab.host, "web0"), mac_of(lab.host, "own0"), f.BROADCAST, *multicast]


def test_without_an_uplink_nothing_of_it_gets_anywhere(
    lab: Lab, trial: Trial, tap: int, targets: list[bytes]
) -> None:
    def nothing_gets_anywhere() -> None:
        before = received(lab.host, "web0")
        with Capture(lab.host) as capture:
            for frame in hostile_frames(targets, OWN) + hostile_frames(targets, OTHER):
                send(tap, frame)
            for header, frame in malformed():
                send(tap, frame, header)
            last = f.ethernet(f.BROADCAST, OWN, 0x88B5, b"last")
            send(tap, last)
            capture.wait(lambda seen: seen.data == last)
            time.sleep(SETTLES)
        assert consequences(capture, ("web0",)) == []
        assert received(lab.host, "web0") == before
        assert str(MINE[0]) not in lab.host.ip("neigh")

    nothing_gets_anywhere()  # never connected
    lab.uplink("eth0")
    trial.wait("web0", "connected")
    ask(trial, lambda client: client.disconnect("web0"))
    nothing_gets_anywhere()
    ask(trial, lambda client: client.connect("web0"))
    trial.wait("web0", "connected")
    lab.remove("eth0")
    trial.wait("web0", "waiting")
    nothing_gets_anywhere()
    lab.bridge("br0")
    retarget(trial, "bridge=br0")
    trial.wait("web0", "connected")
    lab.remove("br0")
    trial.wait("web0", "waiting")
    nothing_gets_anywhere()


@pytest.mark.parametrize("uplink", ["eth0", "bridge=br0"])
def test_connected_it_reaches_its_uplink_under_its_own_mac_and_never_the_hosts_stack(
    lab: Lab, trial: Trial, tap: int, targets: list[bytes], uplink: str
) -> None:
    if uplink == "eth0":  # one way only: by the other the network would reach the host
        lab.uplink("eth0")
    else:
        lab.uplink("eth9")
        lab.bridge("br0", "eth9")
    retarget(trial, uplink)
    trial.wait("web0", "connected")
    before = received(lab.host, "web0")
    with Capture(lab.wire) as wire:
        for frame in hostile_frames(targets, OTHER) + hostile_frames(targets, bytes(6)):
            send(tap, frame)
        for header, frame in malformed():
            send(tap, frame, header)
        for frame in hostile_frames(targets, OWN):
            send(tap, frame)
        last = f.ethernet(f.BROADCAST, OWN, 0x88B5, bytes(50))
        send(tap, last)
        wire.wait(lambda seen: seen.data == last)
        time.sleep(SETTLES)
    sources = {
        seen.data[6:12] for seen in wire.frames() if not seen.outgoing and seen.device.startswith("far")
    }
    assert OWN in sources
    assert sources <= {OWN, *([mac_of(lab.host, "br0")] if uplink != "eth0" else [])}
    if uplink == "eth0":  # a bridge hands the host what is for the host, whoever sends it
        assert received(lab.host, "web0") == before
    # It is still there, and so is the daemon.
    assert trial.nic("web0").state == "connected"


def test_another_nic_on_the_same_uplink_is_not_reached_by_what_is_not_for_it(
    lab: Lab, trial: Trial, tap: int
) -> None:
    lab.uplink("eth0")
    define(trial, vm0=f'mac = "{OTHER_MAC}"\nuplinks = ["eth0"]\nmode = "private"\nannounce = false')
    define(trial, web0=f'mac = "{MAC}"\nuplinks = ["eth0"]\nmode = "private"\nannounce = false')
    trial.wait("web0", "connected")
    with BuiltinGuest(lab.host, "vm0", OTHER_MAC, OTHER_IPV4, "2001:db8::20") as other:
        other.boot()
        trial.wait("vm0", "connected")
        targets = [OTHER, mac_of(lab.host, "vm0"), f.BROADCAST, b"\x33\x33\x00\x00\x00\x01"]
        with Capture(lab.host, "vm0") as capture, Capture(lab.wire) as wire:
            for frame in hostile_frames(targets, OWN) + hostile_frames(targets, OTHER):
                send(tap, frame)
            last = f.ethernet(f.BROADCAST, OWN, 0x88B5, bytes(50))
            send(tap, last)
            wire.wait(lambda seen: seen.data == last)
            time.sleep(SETTLES)
        assert [seen for seen in capture.frames() if seen.data[6:12] == OWN] == []
        assert other.answered() == 0


def test_at_no_moment_of_failovers_and_retargets_does_the_hosts_stack_hear_it(
    lab: Lab, trial: Trial, tap: int, targets: list[bytes]
) -> None:
    lab.uplink("eth0")
    lab.uplink("eth1")
    trial.wait("web0", "connected")
    frames = hostile_frames(targets, OWN)[:40] + hostile_frames(targets, OTHER)[:40]
    sender = os.fork()
    if sender == 0:
        try:
            os.nice(10)
            while True:  # ended by the test
                for frame in frames:
                    send(tap, frame)
                time.sleep(0.001)
        finally:
            os._exit(1)
    try:
        before = received(lab.host, "web0")
        with Capture(lab.wire) as wire:
            for _ in range(3):
                lab.carrier("eth0", False)
                lab.carrier("eth0", True)
                trial.wait("web0", "connected")
            lab.remove("eth0")
            trial.wait("web0", "connected")
            lab.uplink("eth0")
            ask(trial, lambda client: client.disconnect("web0"))
            ask(trial, lambda client: client.connect("web0"))
            trial.wait("web0", "connected")
            retarget(trial, "eth1")
            retarget(trial, "eth0", "eth1")
            assert received(lab.host, "web0") == before
    finally:
        os.kill(sender, 9)
        os.waitpid(sender, 0)
    here = [seen for seen in wire.frames() if not seen.outgoing and seen.device.startswith("far")]
    assert here
    assert {seen.data[6:12] for seen in here} == {OWN}
    assert str(MINE[0]) not in lab.host.ip("neigh")


def test_a_flood_takes_nothing_from_the_daemon_and_from_other_nics(lab: Lab, trial: Trial, tap: int) -> None:
    lab.uplink("eth0")
    trial.wait("web0", "connected")
    frame = f.ethernet(f.mac_bytes(WIRE_MAC), OTHER, f.IPV4, bytes(46))
    sender = os.fork()
    if sender == 0:
        try:
            os.nice(10)
            while True:
                send(tap, frame)
        finally:
            os._exit(1)
    try:
        define(trial, vm0=f'mac = "{OTHER_MAC}"\nuplinks = ["eth0"]\nannounce = false')
        trial.wait("vm0", "connected")
        with BuiltinGuest(lab.host, "vm0", OTHER_MAC, OTHER_IPV4, "2001:db8::20") as other:
            other.boot()
            lab.wire.run("ping", "-c", "3", "-i", "0.1", "-W", "2", OTHER_IPV4)
    finally:
        os.kill(sender, 9)
        os.waitpid(sender, 0)
