"""The four modes, as ip-link(8) and drivers/net/macvlan.c document them: who hears whom on one uplink."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest

from evertap.lab import frames as f
from evertap.lab.builtin_guest import BuiltinGuest
from evertap.lab.capture import Capture, Captured
from evertap.lab.errors import LabError
from evertap.lab.trial import Trial
from evertap.lab.wires import WIRE_IPV4, WIRE_MAC, Lab

CARD = "02:00:00:00:0a:01"
SILENCE = 0.3  # seconds in which an answer would have come


@dataclass
class Machine:
    """A guest on a NIC of its own."""

    tap: str
    mac: bytes
    ipv4: IPv4Address
    guest: BuiltinGuest
    lab: Lab

    def hears_of(self, address: IPv4Address) -> list[bytes]:
        """Ask by ARP who has the address; the MACs that answered."""
        reply = f.ARP.to_bytes(2, "big") + bytes.fromhex("0001080006040002")

        def answers(seen: Captured) -> bool:
            return seen.outgoing and seen.data[12:22] == reply

        with Capture(self.lab.host, self.tap) as capture:
            self.guest.send(f.arp_request(self.mac, self.ipv4, address))
            with suppress(TimeoutError):
                capture.wait(answers, SILENCE)
        return [seen.data[6:12] for seen in capture.frames(answers)]

    def pings(self, other: Machine) -> bool:
        """Whether an echo request to the other guest, whose MAC is known here, is answered."""
        message = f.icmp_echo(f.ECHO_REQUEST, 7, 1, b"x")
        request = f.ethernet(other.mac, self.mac, f.IPV4, f.ipv4(self.ipv4, other.ipv4, f.ICMP, message))
        with Capture(self.lab.host, self.tap) as capture:
            self.guest.send(request)
            try:
                capture.wait(lambda seen: seen.outgoing and seen.data[6:12] == other.mac, SILENCE)
            except TimeoutError:
                return False
        return True


@dataclass
class Pair:
    """Two guests whose NICs share the uplink eth0."""

    lab: Lab
    trial: Trial
    first: Machine
    second: Machine

    def set_mode(self, mode: str) -> None:
        for machine in (self.first, self.second):
            self.trial.define(machine.tap, definition(machine.mac, f'"eth0"]\nmode = "{mode}"\n#'))
            self.trial.wait(machine.tap, "connected")

    def reflect(self, on: bool) -> None:
        """Let the network's side send frames back where they came from, as a VEPA switch does."""
        self.lab.wire.run("bridge", "link", "set", "dev", "far-1-eth0", "hairpin", "on" if on else "off")

    def both_reach_the_network(self) -> bool:
        macs = [machine.hears_of(IPv4Address(WIRE_IPV4)) for machine in (self.first, self.second)]
        return macs == [[f.mac_bytes(WIRE_MAC)]] * 2


def definition(mac: bytes, uplinks: str) -> str:
    return f'mac = "{f.mac_text(mac)}"\nannounce = false\nuplinks = [{uplinks}]\n'


@pytest.fixture
def pair(lab: Lab, trial: Trial) -> Iterator[Pair]:
    lab.uplink("eth0")
    machines: list[Machine] = []
    with ExitStack() as stack:
        for number, tap in ((10, "web0"), (11, "db0")):
            mac = f.mac_bytes(f"52:54:00:00:00:{number}")
            trial.define(tap, definition(mac, '"eth0"'))
            guest = stack.enter_context(
                BuiltinGuest(lab.host, tap, f.mac_text(mac), f"192.0.2.{number}", f"2001:db8::{number}")
            )
            guest.boot()
            machines.append(Machine(tap, mac, IPv4Address(f"192.0.2.{number}"), guest, lab))
        yield Pair(lab, trial, *machines)


def macvlan_modes(lab: Lab) -> dict[str, str]:
    """The mode of the macvlan on each uplink."""
    links = json.loads(lab.host.ip("-d", "-j", "link", "show", "type", "macvlan"))
    return {link["link"]: link["linkinfo"]["info_data"]["mode"] for link in links}


def test_in_bridge_mode_two_guests_reach_each_other_without_the_network(pair: Pair) -> None:
    pair.set_mode("bridge")
    assert pair.both_reach_the_network()
    with Capture(pair.lab.wire, "net0") as wire:
        assert pair.first.hears_of(pair.second.ipv4) == [pair.second.mac]
        assert pair.second.hears_of(pair.first.ipv4) == [pair.first.mac]
        assert pair.first.pings(pair.second)
    assert [seen for seen in wire.frames() if seen.data[:6] in (pair.first.mac, pair.second.mac)] == []


def test_in_private_mode_two_guests_do_not_find_each_other_even_if_the_network_reflects(pair: Pair) -> None:
    pair.set_mode("private")
    for reflecting in (False, True):
        pair.reflect(reflecting)
        assert pair.both_reach_the_network()
        assert pair.first.hears_of(pair.second.ipv4) == []
        assert pair.second.hears_of(pair.first.ipv4) == []


def test_in_vepa_mode_two_guests_reach_each_other_only_by_a_network_that_reflects(pair: Pair) -> None:
    pair.set_mode("vepa")
    assert pair.both_reach_the_network()
    assert pair.first.hears_of(pair.second.ipv4) == []
    assert not pair.first.pings(pair.second)
    pair.reflect(True)
    assert pair.both_reach_the_network()
    assert pair.first.hears_of(pair.second.ipv4) == [pair.second.mac]
    assert pair.first.pings(pair.second)


def test_in_passthru_mode_a_guest_gets_every_frame_of_the_interface(lab: Lab, trial: Trial) -> None:
    lab.uplink("eth0", mac=CARD)
    mac = f.mac_bytes("52:54:00:00:00:10")
    trial.define("web0", definition(mac, '"eth0"') + 'mode = "passthru"')
    with BuiltinGuest(lab.host, "web0", f.mac_text(mac)) as guest, Capture(lab.host, "web0") as capture:
        guest.boot()
        trial.wait("web0", "connected")
        with lab.wire.enter():
            packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        with packets:
            packets.bind(("net0", 0))
            targets = [f.mac_bytes(CARD), mac, f.mac_bytes("52:54:00:99:99:99"), f.BROADCAST]
            for target in targets:
                packets.send(f.ethernet(target, f.mac_bytes(WIRE_MAC), 0x88B5, bytes(46)))
        capture.wait(lambda seen: seen.data[:6] == f.BROADCAST)
        assert [seen.data[:6] for seen in capture.frames() if seen.data[12:14] == b"\x88\xb5"] == targets
        # And the guest is reached under its own MAC, not under the interface's.
        lab.wire.run("ping", "-c", "1", "-W", "2", "192.0.2.10")
        assert f.mac_text(mac) in lab.wire.ip("neigh", "show", "192.0.2.10")


def test_an_uplink_that_a_passthru_nic_has_is_refused_to_others_with_the_reason(
    lab: Lab, trial: Trial
) -> None:
    lab.uplink("eth0", mac=CARD)
    mac, other = f.mac_bytes("52:54:00:00:00:10"), f.mac_bytes("52:54:00:00:00:11")
    trial.define("web0", definition(mac, '"eth0"') + 'mode = "passthru"')
    trial.wait("web0", "connected")
    # By the definitions alone it cannot be told that these are the same interface.
    trial.define("db0", definition(other, f'{{ mac = "{CARD}" }}'))
    shown = trial.json("show", "db0")
    taken = 'is taken by NIC "web0" in mode passthru'
    assert (shown["state"], shown["uplink"]) == ("waiting", None)
    assert [candidate["reason"] for candidate in shown["candidates"]] == [taken]
    assert shown["reason"] == f"eth0: {taken}"
    assert trial.nic("web0").state == "connected"
    # Once it is free, the other one has it.
    trial.run("undefine", "web0")
    trial.wait("db0", "connected")
    trial.define("web0", definition(mac, '"eth*"') + 'mode = "passthru"')
    shown = trial.json("show", "web0")
    assert shown["reason"] == 'eth0: is used by NIC "db0", and mode passthru needs it alone'


def test_a_passthru_clash_that_the_definitions_show_is_refused_when_defined(lab: Lab, trial: Trial) -> None:
    trial.define("web0", definition(f.mac_bytes("52:54:00:00:00:10"), '"eth0"') + 'mode = "passthru"')
    file = trial.path / "db0.toml"
    file.write_text(definition(f.mac_bytes("52:54:00:00:00:11"), '"eth1", "eth0"'))
    done = trial.try_run("define", str(file), "--json")
    assert done.returncode == 2
    told = json.loads(done.stderr)
    assert (told["error"], told["file"], told["field"]) == ("bad_definition", str(file), "uplinks[1]")
    assert 'NIC "web0" uses too' in told["problem"]
    assert [nic["name"] for nic in trial.json("list")] == ["web0"]


def test_an_uplink_may_have_a_mode_of_its_own_and_change_it_while_the_vm_runs(lab: Lab, trial: Trial) -> None:
    lab.uplink("eth0")
    lab.uplink("eth1")
    mac = f.mac_bytes("52:54:00:00:00:10")
    uplinks = '{{ name = "eth0", mode = "{}" }}, "eth1"'
    trial.define("web0", definition(mac, uplinks.format("vepa")) + 'mode = "private"')
    trial.wait("web0", "connected")
    assert macvlan_modes(lab) == {"eth0": "vepa", "eth1": "private"}
    shown = trial.json("show", "web0")
    assert [candidate["mode"] for candidate in shown["candidates"]] == ["vepa", "private"]
    with BuiltinGuest(lab.host, "web0", f.mac_text(mac)) as guest:
        guest.boot()
        trial.define("web0", definition(mac, uplinks.format("bridge")) + 'mode = "private"')
        trial.wait("web0", "connected")
        lab.wire.run("ping", "-c", "1", "-W", "2", "192.0.2.10")
    assert macvlan_modes(lab) == {"eth0": "bridge", "eth1": "private"}
    assert trial.json("plan") == {"actions": []}


def test_host_and_guest_do_not_reach_each_other_over_the_uplink_that_both_use(pair: Pair) -> None:
    pair.set_mode("bridge")
    pair.lab.host.ip("addr", "add", "192.0.2.78/24", "dev", "eth0")
    assert pair.first.hears_of(IPv4Address("192.0.2.78")) == []
    with pytest.raises(LabError):
        pair.lab.host.run("ping", "-c", "1", "-W", "1", str(pair.first.ipv4))
    # Everything else has both.
    assert pair.both_reach_the_network()
    pair.lab.host.run("ping", "-c", "1", "-W", "2", WIRE_IPV4)
    pair.lab.wire.run("ping", "-c", "1", "-W", "2", "192.0.2.78")
