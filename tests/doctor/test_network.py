"""Settings of the network, in a pretended /proc; other programs on a real uplink."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evertap.doctor import network
from evertap.doctor.host import Host
from evertap.kernel import bpf
from evertap.lab.netns import Namespace
from evertap.model.links import Link
from tests.doctor.pretended import PretendedHost, defined, nic, only

_TAP = Link(2, "web0", kind="tun", alias="evertap:web0")


@pytest.mark.parametrize(("value", "result"), [("0", "ok"), ("1", "ok"), ("2", "note")])
def test_rp_filter_of_all(tmp_path: Path, value: str, result: str) -> None:
    host = PretendedHost(tmp_path)
    host.write("/proc/sys/net/ipv4/conf/all/rp_filter", f"{value}\n")
    assert only(list(network.checks(host, defined())), "rp_filter").result == result


def test_a_tap_that_somebody_has_changed(tmp_path: Path) -> None:
    host = PretendedHost(tmp_path)
    host.links = [_TAP]
    host.write("/proc/sys/net/ipv4/conf/web0/rp_filter", "1\n")
    host.write("/proc/sys/net/ipv4/conf/web0/arp_ignore", "8\n")
    assert only(list(network.checks(host, defined())), "tap settings").result == "ok"
    host.write("/proc/sys/net/ipv4/conf/web0/rp_filter", "2\n")
    check = only(list(network.checks(host, defined())), "tap settings")
    assert (check.result, check.remedy) == ("warning", "sysctl -w net/ipv4/conf/web0/rp_filter=1")


@pytest.mark.parametrize(
    ("value", "uplink", "result"),
    [("0", {"bridge": "br0"}, "ok"), ("1", "eth0", "note"), ("1", {"bridge": "br0"}, "warning")],
)
def test_iptables_on_bridges(tmp_path: Path, value: str, uplink: object, result: str) -> None:
    host = PretendedHost(tmp_path)
    host.write("/proc/sys/net/bridge/bridge-nf-call-iptables", f"{value}\n")
    found = defined(nic("web0", uplink))
    assert only(list(network.checks(host, found)), "bridge filter").result == result


def test_another_program_on_an_uplink(namespace: Namespace) -> None:
    namespace.ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    with namespace.enter():
        host, found = Host(), defined(nic("web0", "eth0"))
        assert "uplink's programs" not in [check.name for check in network.checks(host, found)]
        (eth0,) = [link.index for link in host.links if link.name == "eth0"]
        program = bpf.load_source_program("")
        bpf.attach_tcx(eth0, program)
        os.close(program)
        check = only(list(network.checks(host, found)), "uplink's programs")
    assert check.result == "note"
    assert "eth0" in check.found
