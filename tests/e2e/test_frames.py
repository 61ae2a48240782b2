"""Which frames pass, which must not, and which evertap itself sends: captured on the host and on the wire."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address

import pytest

from evertap.lab import frames as f
from evertap.lab.builtin_guest import BuiltinGuest
from evertap.lab.capture import Capture, Captured
from evertap.lab.netns import Namespace
from evertap.lab.qemu import GUEST_IPV4, GUEST_IPV6
from evertap.lab.trial import Trial
from evertap.lab.wires import WIRE_IPV4, WIRE_IPV6, WIRE_MAC, Lab

MAC = "52:54:00:12:34:56"
HOST_IPV4 = "192.0.2.77"
HOST_IPV6 = "2001:db8::77"
GUEST = (IPv4Address(GUEST_IPV4), IPv6Address(GUEST_IPV6))
HOST = (IPv4Address(HOST_IPV4), IPv6Address(HOST_IPV6))
QUIET = f'mac = "{MAC}"\nannounce = false\n'
RARP = 0x8035
QUIET_TIME = 0.2  # seconds in which a host that wanted to answer would have done so


@pytest.fixture
def guest(lab: Lab, trial: Trial) -> Iterator[BuiltinGuest]:
    """Runs on NIC web0, which the test has yet to give the uplinks that it wants."""
    trial.define("web0", QUIET + 'uplinks = ["eth0"]')
    with BuiltinGuest(lab.host, "web0", MAC) as made:
        made.boot()
        yield made


def give_host_addresses(host: Namespace) -> None:
    """The host has addresses in the guest's networks, on an interface apart that is no uplink."""
    host.ip_batch(
        [
            "link add own0 type veth peer name own1",
            "link set own0 addrgenmode none",
            "link set own1 addrgenmode none",
            f"addr add {HOST_IPV4}/24 dev own0",
            f"addr add {HOST_IPV6}/64 dev own0 nodad",
            "link set own1 up",
            "link set own0 up",
        ]
    )


def mac_of(namespace: Namespace, device: str) -> bytes:
    words = namespace.ip("-o", "link", "show", device).split()
    return f.mac_bytes(words[words.index("link/ether") + 1])


def probes(host_macs: list[bytes]) -> list[bytes]:
    """What a guest could try to get at the host: every frame asks for an answer or is counted."""
    mac = f.mac_bytes(MAC)
    echo = f.ipv4(GUEST[0], HOST[0], f.ICMP, f.icmp_echo(f.ECHO_REQUEST, 1, 1, b"probe"))
    echo6 = f.icmp6(GUEST[1], HOST[1], bytes((f.ECHO6_REQUEST, 0, 0, 0, 0, 1, 0, 1)))
    all_nodes = IPv6Address("ff02::1")
    echo_all = f.icmp6(GUEST[1], all_nodes, bytes((f.ECHO6_REQUEST, 0, 0, 0, 0, 1, 0, 2)))
    found = [
        f.arp_request(mac, GUEST[0], HOST[0]),
        f.arp_request(mac, IPv4Address(0), HOST[0]),
        f.neighbour_solicitation(mac, GUEST[1], HOST[1]),
        f.ethernet(b"\x33\x33" + all_nodes.packed[12:], mac, f.IPV6, echo_all),
    ]
    for target in (*host_macs, f.BROADCAST):
        found += [f.ethernet(target, mac, f.IPV4, echo), f.ethernet(target, mac, f.IPV6, echo6)]
    return found


def received(host: Namespace, tap: str) -> dict[str, str]:
    """What the host's stack has counted: of IPv4 altogether, of IPv6 on the tap."""
    lines = host.run("cat", "/proc/net/snmp").splitlines()
    counted: dict[str, str] = {}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        keys = [names.split()[0] + name for name in names.split()[1:]]
        counted.update(zip(keys, values.split()[1:], strict=True))
    for line in host.run("cat", f"/proc/net/dev_snmp6/{tap}").splitlines():
        name, value = line.split()
        counted[name] = value
    wanted = ("Ip:InReceives", "Icmp:InMsgs", "Icmp:OutMsgs", "Ip6InReceives", "Icmp6InMsgs", "Icmp6OutMsgs")
    return {name: counted[name] for name in wanted}


def follows(capture: Capture, tap: str = "web0") -> list[Captured]:
    """What came of the guest's frames; those themselves are seen, too, before the program on the tap."""

    def consequence(seen: Captured) -> bool:
        # Other interfaces, and the wire, report their own multicast groups.
        is_mld = seen.data[12:14] == b"\x86\xdd" and seen.data[20] == 0
        return seen.outgoing if seen.device == tap else not is_mld

    return capture.frames(consequence)


def assert_nothing_reaches_the_host(lab: Lab, guest: BuiltinGuest, tap: str = "web0") -> None:
    sent = probes([mac_of(lab.host, tap), mac_of(lab.host, "own0")])
    before = received(lab.host, tap)
    with Capture(lab.host) as capture:
        for frame in sent:
            guest.send(frame)
        capture.wait(lambda seen: seen.device == tap and seen.data == sent[-1])
        time.sleep(QUIET_TIME)
    assert follows(capture, tap) == []
    assert received(lab.host, tap) == before
    assert GUEST_IPV4 not in lab.host.ip("neigh") + lab.host.ip("-6", "neigh")


def test_the_probes_do_get_at_the_host_through_a_tap_that_is_not_evertaps(lab: Lab) -> None:
    give_host_addresses(lab.host)
    lab.host.ip_batch(["tuntap add plain0 mode tap", "link set plain0 up"])
    with BuiltinGuest(lab.host, "plain0", MAC) as guest:
        guest.boot()
        with Capture(lab.host, "plain0") as capture, pytest.raises(AssertionError):
            assert_nothing_reaches_the_host(lab, guest, "plain0")
        mac = mac_of(lab.host, "plain0")
        assert f.arp_reply(mac, HOST[0], f.mac_bytes(MAC), GUEST[0]) in [
            seen.data for seen in capture.frames() if seen.outgoing
        ]


def test_nothing_of_the_guest_reaches_the_host_while_it_has_no_uplink(
    lab: Lab, trial: Trial, guest: BuiltinGuest
) -> None:
    give_host_addresses(lab.host)
    assert_nothing_reaches_the_host(lab, guest)
    # Neither when the uplink went away while the guest was connected,
    lab.uplink("eth0")
    trial.wait("web0", "connected")
    lab.remove("eth0")
    trial.wait("web0", "waiting")
    assert_nothing_reaches_the_host(lab, guest)
    # nor after a disconnection by the administrator.
    lab.uplink("eth0")
    trial.wait("web0", "connected")
    trial.run("disconnect", "web0")
    assert_nothing_reaches_the_host(lab, guest)


def test_nothing_of_the_guest_reaches_the_host_after_its_bridge_was_deleted(
    lab: Lab, trial: Trial, guest: BuiltinGuest
) -> None:
    give_host_addresses(lab.host)
    lab.bridge("br0")
    trial.run("retarget", "web0", "bridge=br0")
    trial.wait("web0", "connected")
    lab.remove("br0")
    trial.wait("web0", "waiting")
    assert_nothing_reaches_the_host(lab, guest)


def test_the_host_does_not_answer_the_guest_of_a_deleted_bridge_although_no_daemon_runs(
    lab: Lab, trial: Trial, guest: BuiltinGuest
) -> None:
    give_host_addresses(lab.host)
    lab.bridge("br0")
    trial.run("retarget", "web0", "bridge=br0")
    trial.wait("web0", "connected")
    trial.kill()
    lab.remove("br0")
    before = received(lab.host, "web0")
    with Capture(lab.host) as capture:
        for frame in probes([mac_of(lab.host, "web0"), mac_of(lab.host, "own0")]):
            guest.send(frame)
        time.sleep(QUIET_TIME)
    assert follows(capture) == []
    after = received(lab.host, "web0")
    assert {name: after[name] for name in after if "Icmp" in name} == {
        name: before[name] for name in before if "Icmp" in name
    }
    assert GUEST_IPV4 not in lab.host.ip("neigh")


@pytest.mark.parametrize("uplink", ["eth0", "bridge=br0"])
def test_a_spoofed_source_mac_leaves_only_where_the_definition_allows_it(
    lab: Lab, trial: Trial, guest: BuiltinGuest, uplink: str
) -> None:
    lab.uplink("eth0")
    lab.uplink("eth9")
    lab.bridge("br0", "eth9")
    table = "{ bridge = 'br0' }" if "=" in uplink else "'eth0'"
    spoofed = f.arp_request(b"\x52\x54\x00\x12\x34\x57", GUEST[0], IPv4Address(WIRE_IPV4))
    own = f.arp_request(f.mac_bytes(MAC), GUEST[0], IPv4Address(WIRE_IPV4))
    for check in (True, False, True):
        text = f"{QUIET}uplinks = [{table}]\nspoof_check = {str(check).lower()}"
        trial.define("web0", text)
        trial.wait("web0", "connected")
        with Capture(lab.wire, "net0") as capture:
            guest.send(spoofed)
            guest.send(own)
            # Frames keep their order: with the second one seen, the first is not to come.
            capture.wait(lambda seen: seen.data[:42] == own)
            left = any(seen.data[:42] == spoofed for seen in capture.frames())
        assert left is not check


def test_neighbour_discovery_from_outside_reaches_the_guest_by_macvlan_and_by_bridge(
    lab: Lab, trial: Trial, guest: BuiltinGuest
) -> None:
    lab.uplink("eth0")
    lab.uplink("eth9")
    lab.bridge("br0", "eth9")
    for uplink in ("eth0", "bridge=br0"):
        trial.run("retarget", "web0", uplink)
        trial.wait("web0", "connected")
        lab.wire.ip("-6", "neigh", "flush", "all")
        assert "lladdr" not in lab.wire.ip("-6", "neigh", "show", GUEST_IPV6)
        lab.wire.run("ping", "-6", "-c", "1", "-W", "2", GUEST_IPV6)
        assert f"lladdr {MAC}" in lab.wire.ip("-6", "neigh", "show", GUEST_IPV6)


def test_a_stand_by_uplink_on_the_same_network_neither_echoes_nor_doubles_frames(
    lab: Lab, trial: Trial, guest: BuiltinGuest
) -> None:
    lab.uplink("eth0")
    lab.uplink("eth1")
    trial.define("web0", QUIET + 'uplinks = ["eth0", "eth1"]')
    trial.wait("web0", "connected")
    (standby,) = [uplink for uplink in trial.json("uplinks") if uplink["name"] == "eth1"]
    assert standby["standby"] == ["web0"]
    mac = f.mac_bytes(MAC)
    broadcast = f.arp_request(mac, GUEST[0], IPv4Address("192.0.2.200"))
    # As in duplicate address detection, which an echo would make fail.
    multicast = f.neighbour_solicitation(mac, IPv6Address(0), GUEST[1])
    outside = f.arp_request(f.mac_bytes(WIRE_MAC), IPv4Address(WIRE_IPV4), IPv4Address("192.0.2.201"))
    with Capture(lab.host) as capture, sender(lab.wire, "net0") as send:
        guest.send(broadcast)
        guest.send(multicast)
        send(outside)
        capture.wait(lambda seen: seen.device == "web0" and seen.data[:42] == outside)
        time.sleep(QUIET_TIME)
    # The network does send them back, by the other interface.
    assert [seen for seen in capture.frames() if seen.device == "eth1" and seen.data[:42] == broadcast]
    to_guest = [seen.data for seen in capture.frames() if seen.device == "web0" and seen.outgoing]
    assert [data for data in to_guest if data[6:12] == mac] == []
    assert [data[:42] for data in to_guest if data[12:14] == f.ARP.to_bytes(2, "big")] == [outside]


@contextmanager
def sender(namespace: Namespace, device: str) -> Iterator[Callable[[bytes], object]]:
    """Sends frames out of a device, whatever is in them."""
    with namespace.enter():
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with packets:
        packets.bind((device, 0))
        yield packets.send


def announcements(capture: Capture, uplink: str) -> list[Captured]:
    """The RARP frames that entered the network by the uplink."""

    def entered(seen: Captured) -> bool:
        kind = int.from_bytes(seen.data[12:14], "big")
        return kind == RARP and seen.device.endswith(f"-{uplink}") and not seen.outgoing

    return capture.frames(entered)


def connection_time(trial: Trial) -> float:
    """When the journal's last event was, by the monotonic clock."""
    moment = trial.run("events", "--json").splitlines()[-1].split('"')[3]
    return datetime.fromisoformat(moment).timestamp() - time.time() + time.monotonic()


def test_a_connection_is_announced_at_once_and_again_on_connect_failover_and_retarget(
    lab: Lab, trial: Trial
) -> None:
    trial.define("web0", f'mac = "{MAC}"\nuplinks = ["eth0", "eth1"]\nfailback_delay = -1')
    lab.uplink("eth1")
    trial.wait("web0", "connected")
    lab.uplink("eth0")
    lab.uplink("eth9")
    lab.bridge("br0", "eth9")
    steps: list[tuple[str, Callable[[], object]]] = [
        ("eth0", lambda: lab.carrier("eth1", False)),
        ("eth1", lambda: trial.run("retarget", "web0", "eth1")),
        ("eth9", lambda: trial.run("retarget", "web0", "bridge=br0")),
    ]
    for uplink, step in steps:
        lab.carrier("eth1", True)
        with Capture(lab.wire) as capture:
            step()
            time.sleep(1.1)
        found = announcements(capture, uplink)
        assert all(seen.data[:12] == f.BROADCAST + f.mac_bytes(MAC) for seen in found)
        assert all(seen.data[22:28] == f.mac_bytes(MAC) == seen.data[32:38] for seen in found)
        assert found[0].time == pytest.approx(connection_time(trial), abs=0.1), uplink
        pauses = [later.time - earlier.time for earlier, later in itertools.pairwise(found)]
        assert pauses == pytest.approx([0.05, 0.15, 0.25, 0.35], abs=0.1), uplink


def test_a_first_connection_is_announced_on_the_uplink_that_appeared(lab: Lab, trial: Trial) -> None:
    trial.define("web0", f'mac = "{MAC}"\nuplinks = ["eth0"]')
    with Capture(lab.wire) as capture:
        lab.uplink("eth0")
        capture.wait(lambda seen: bool(announcements(capture, "eth0")))
        time.sleep(1)
    found = announcements(capture, "eth0")
    assert len(found) == 5
    assert found[0].time == pytest.approx(connection_time(trial), abs=0.1)


def test_the_announcements_of_an_uplink_end_when_the_nic_leaves_it(lab: Lab, trial: Trial) -> None:
    lab.uplink("eth0")
    lab.uplink("eth1")
    trial.define("web0", f'mac = "{MAC}"\nuplinks = ["eth1"]')
    with Capture(lab.wire) as capture:
        trial.run("retarget", "web0", "eth0")
        trial.run("retarget", "web0", "eth1")
        returned = connection_time(trial)
        time.sleep(1)
    assert len([seen for seen in announcements(capture, "eth1") if seen.time > returned - 0.1]) == 5
    assert [seen for seen in announcements(capture, "eth0") if seen.time > returned + 0.02] == []


@pytest.mark.parametrize("uplink", ["eth0", "br0"])
def test_our_devices_say_nothing_by_themselves(lab: Lab, trial: Trial, uplink: str) -> None:
    lab.uplink("eth9")
    lab.bridge("br0", "eth9")
    with Capture(lab.wire) as wire, Capture(lab.host) as host:
        trial.define("web0", f'{QUIET}uplinks = ["{uplink}", "eth1"]')
        lab.uplink("eth0")
        lab.uplink("eth1")
        trial.wait("web0", "connected")
        # A guest gives the tap its carrier, and with it the occasion to speak.
        with BuiltinGuest(lab.host, "web0", MAC) as guest:
            guest.boot()
            # MLD reports and ARP come at once, IPv6's address detection within 1 s (RFC 4862).
            time.sleep(1.3)
            assert trial.nic("web0").uplink == uplink
    # The network itself speaks IPv6.
    assert [seen for seen in wire.frames() + host.frames() if seen.data[6:12] != f.mac_bytes(WIRE_MAC)] == []


def test_a_host_address_on_another_interface_is_not_answered_for_by_our_devices(
    lab: Lab, trial: Trial, guest: BuiltinGuest
) -> None:
    give_host_addresses(lab.host)
    lab.uplink("eth0")
    lab.uplink("eth1")
    trial.define("web0", QUIET + 'uplinks = ["eth0", "eth1"]')
    trial.wait("web0", "connected")
    # The host itself would answer by its uplinks; only our devices are in question here.
    lab.host.run("sysctl", "-qw", "net.ipv4.conf.eth0.arp_ignore=8", "net.ipv4.conf.eth1.arp_ignore=8")
    wire = f.mac_bytes(WIRE_MAC)
    outside = (IPv4Address(WIRE_IPV4), IPv6Address(WIRE_IPV6))
    echo = f.ipv4(outside[0], HOST[0], f.ICMP, f.icmp_echo(f.ECHO_REQUEST, 1, 1, b"probe"))
    before = received(lab.host, "web0")
    with Capture(lab.wire, "net0") as capture, sender(lab.wire, "net0") as send:
        for target in (f.mac_bytes(MAC), f.BROADCAST):
            send(f.arp(f.ARP_REQUEST, wire, outside[0], bytes(6), HOST[0], destination=target))
        send(f.neighbour_solicitation(wire, outside[1], HOST[1]))
        send(f.ethernet(f.mac_bytes(MAC), wire, f.IPV4, echo))
        # The guest's own answer comes last.
        send(f.arp_request(wire, outside[0], GUEST[0]))
        capture.wait(lambda seen: seen.data[:42] == f.arp_reply(f.mac_bytes(MAC), GUEST[0], wire, outside[0]))
        time.sleep(QUIET_TIME)
    assert len([seen for seen in capture.frames() if not seen.outgoing]) == 1
    assert received(lab.host, "web0")["Icmp:OutMsgs"] == before["Icmp:OutMsgs"]
