"""Programs that would take evertap's devices, by their configuration in a pretended root folder."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from evertap.doctor import managers
from evertap.doctor.check import Check
from evertap.doctor.host import Answer
from evertap.model.links import Link
from tests.doctor.pretended import MACVLAN, PretendedHost, defined, nic, only

_PACKAGING = Path(__file__).parents[2] / "packaging"
_RULES = (_PACKAGING / "udev/70-evertap.rules").read_text()
_NETWORK = (_PACKAGING / "networkd/10-evertap.network").read_text()
_GREEDY = "[Match]\nName=*\n[Network]\nDHCP=yes\n"


def _check(host: PretendedHost, name: str) -> Check:
    return only(list(managers.checks(host, defined(nic("web0")))), name)


def test_nothing_runs_and_nothing_is_wrong(tmp_path: Path) -> None:
    checks = list(managers.checks(PretendedHost(tmp_path), defined(nic("web0"))))
    assert {check.result for check in checks} == {"ok"}


def test_network_manager_needs_the_rules(tmp_path: Path) -> None:
    host = PretendedHost(tmp_path, "NetworkManager")
    check = _check(host, "NetworkManager")
    assert check.result == "warning"
    source = shlex.split(check.remedy.partition("&&")[0])[-2]
    assert Path(source).read_text() == _RULES
    host.write("/etc/udev/rules.d/70-evertap.rules", _RULES)
    assert _check(host, "NetworkManager").result == "ok"


@pytest.mark.parametrize(
    ("state", "result"),
    [("unmanaged", "ok"), ("connected (externally)", "warning"), ("disconnected", "warning")],
)
def test_network_manager_that_has_taken_a_device(tmp_path: Path, state: str, result: str) -> None:
    host = PretendedHost(tmp_path, "NetworkManager")
    host.write("/etc/udev/rules.d/70-evertap.rules", _RULES)
    host.links = [Link(2, "web0", kind="tun", alias="evertap:web0"), Link(3, "eth0")]
    host.answers["nmcli"] = Answer(0, f"web0:{state}\neth0:connected")
    check = _check(host, "NetworkManager")
    assert check.result == result
    if result != "ok":
        assert check.remedy == "nmcli device set web0 managed no"


@pytest.mark.parametrize(
    ("match", "result"),
    [
        ("Name=*", "broken"),
        ("Name=en* eth*", "ok"),
        ("Name=web?", "broken"),
        ("Name=ev[0-9]*", "broken"),
        ("Name=!lo", "broken"),
        ("Name=!ev* web*", "ok"),
        ("Type=ether", "broken"),
        ("Type=wlan", "ok"),
        ("Kind=macvlan", "broken"),
        ("Kind=bridge", "ok"),
        ("Driver=tun", "broken"),
        ("Driver=e1000", "ok"),
        ("Type=ether\nKind=!*", "ok"),
        ("MACAddress=02:00:00:00:00:01\nName=*", "ok"),
        ("Path=pci-*", "ok"),
        ("# Name=*", "ok"),
    ],
)
def test_networkd_by_what_its_files_match(tmp_path: Path, match: str, result: str) -> None:
    host = PretendedHost(tmp_path, "systemd-networkd")
    host.write("/etc/systemd/network/50-some.network", f"[Match]\n{match}\n[Network]\nDHCP=yes\n")
    assert _check(host, "systemd-networkd").result == result


def test_networkd_takes_the_first_file_that_matches(tmp_path: Path) -> None:
    host = PretendedHost(tmp_path, "systemd-networkd")
    host.write("/etc/systemd/network/50-greedy.network", _GREEDY)
    host.write("/run/systemd/network/20-none.network", "[Match]\nName=*\n[Link]\nUnmanaged=yes\n")
    assert _check(host, "systemd-networkd").result == "ok"


def test_networkd_does_not_see_what_is_masked(tmp_path: Path) -> None:
    host = PretendedHost(tmp_path, "systemd-networkd")
    host.write("/usr/lib/systemd/network/50-greedy.network", _GREEDY)
    assert _check(host, "systemd-networkd").result == "broken"
    mask = host.path("/etc/systemd/network/50-greedy.network")
    mask.parent.mkdir(parents=True)
    mask.symlink_to(os.devnull)
    assert _check(host, "systemd-networkd").result == "ok"


def test_networkd_with_our_file_and_rules(tmp_path: Path) -> None:
    host = PretendedHost(tmp_path, "systemd-networkd")
    host.write("/etc/systemd/network/50-greedy.network", _GREEDY)
    ours = host.write("/etc/systemd/network/10-evertap.network", _NETWORK)
    without_rules = _check(host, "systemd-networkd")
    assert without_rules.result == "broken"
    assert "70-evertap.rules" in without_rules.remedy
    assert "10-evertap.network" not in without_rules.remedy
    host.write("/etc/udev/rules.d/70-evertap.rules", _RULES)
    assert _check(host, "systemd-networkd").result == "ok"
    ours.rename(ours.with_name("90-evertap.network"))  # behind the greedy one
    assert _check(host, "systemd-networkd").result == "broken"


@pytest.mark.parametrize(
    ("line", "result"),
    [
        ('SUBSYSTEM=="net", ACTION=="add", NAME="lan%n"', "broken"),
        ('SUBSYSTEM=="net", KERNEL=="ev*", NAME="lan0"', "broken"),
        ('SUBSYSTEM=="net", KERNEL=="eth*", NAME="lan0"', "ok"),
        ('SUBSYSTEM=="net", ATTR{address}=="02:00:00:00:00:01", NAME="lan0"', "ok"),
        ('# SUBSYSTEM=="net", NAME="lan0"', "ok"),
    ],
)
def test_udev_rules_that_rename(tmp_path: Path, line: str, result: str) -> None:
    host = PretendedHost(tmp_path)
    host.write("/etc/udev/rules.d/70-names.rules", line + "\n")
    assert _check(host, "udev").result == result


def test_link_files_that_rename(tmp_path: Path) -> None:
    host = PretendedHost(tmp_path)
    path = host.write("/etc/systemd/network/50-lan.link", "[Match]\nDriver=tun\n[Link]\nName=lan0\n")
    check = _check(host, "udev")
    assert (check.result, "renames web0" in check.found) == ("broken", True)
    assert "10-evertap.link" in check.remedy
    path.write_text("[Match]\nOriginalName=*\n[Link]\nNamePolicy=keep\n")
    assert _check(host, "udev").result == "ok"


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("auto lo eth0\niface eth0 inet dhcp\n", "ok"),
        ("allow-hotplug web0\niface web0 inet dhcp\n", "broken"),
        ("auto /ev*\n", "broken"),
        ("# auto web0\n", "ok"),
    ],
)
def test_ifupdown(tmp_path: Path, text: str, result: str) -> None:
    host = PretendedHost(tmp_path)
    host.write("/etc/network/interfaces.d/some", text)
    assert _check(host, "ifupdown").result == result


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("", "warning"),
        ("denyinterfaces ev[1-9]* web0\n", "ok"),
        ("denyinterfaces ev*\n", "warning"),
        ("allowinterfaces eth*\n", "ok"),
        ("allowinterfaces eth* web*\n", "warning"),
    ],
)
def test_dhcpcd(tmp_path: Path, text: str, result: str) -> None:
    host = PretendedHost(tmp_path, "dhcpcd")
    host.write("/etc/dhcpcd.conf", text)
    check = _check(host, "dhcpcd")
    assert check.result == result
    if not text:
        assert "denyinterfaces ev[1-9]* web0" in check.remedy


@pytest.mark.parametrize(
    ("text", "result"), [("", "warning"), ("[General]\nNetworkInterfaceBlacklist=veth, ev1,web\n", "ok")]
)
def test_connman(tmp_path: Path, text: str, result: str) -> None:
    host = PretendedHost(tmp_path, "connmand")
    host.write("/etc/connman/main.conf", text)
    assert _check(host, "connman").result == result


def test_the_macvlan_stands_for_names_that_the_kernel_side_gives(tmp_path: Path) -> None:
    from evertap.kernel.host import _FIRST_INDEX

    assert MACVLAN == managers._MACVLAN == f"ev{_FIRST_INDEX}"
