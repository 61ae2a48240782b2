"""systemd-networkd and NetworkManager take evertap's devices, and with the packaged files they do not."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from evertap.lab.netns import Namespace
from evertap.lab.trial import Trial
from evertap.lab.wires import Lab

pytestmark = [pytest.mark.soak, pytest.mark.timeout(120)]

_REPOSITORY = Path(__file__).parents[2]
_UNMARKED = "ev1048577"
"""A macvlan that udev looks at before it has been marked."""
_SYSTEMD = Path("/lib/systemd")
_UDEVD = _SYSTEMD / "systemd-udevd"
_NETWORKD = _SYSTEMD / "systemd-networkd"

# A host's folders of the namespace's own, with evertap's definitions where udev's rules look for them.
_FOLDERS = """
mount -t tmpfs tmpfs /run
mkdir -p /run/upper /run/work /run/udev /run/dbus /run/netif/links /run/systemd/netif
mount -t overlay -o lowerdir=/etc,upperdir=/run/upper,workdir=/run/work overlay /etc
rm -rf /etc/systemd/network /etc/NetworkManager /etc/udev/rules.d
mkdir -p /etc/evertap /etc/systemd/network /etc/NetworkManager /etc/udev/rules.d /run/nm
mount --bind /run/nm /var/lib/NetworkManager 2>/dev/null || true
for folder in links leases lldp; do mkdir -p /run/systemd/netif/$folder; done
chown -R systemd-network /run/systemd/netif
mount --bind "$1" /etc/evertap
"""
_GREEDY = """
printf '[Match]\\nName=*\\n[Network]\\nAddress=192.0.2.77/24\\nLinkLocalAddressing=no\\nIPv6AcceptRA=no\\n' \
    > /etc/systemd/network/50-greedy.network
"""
_BUS = """
echo '<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen>
<auth>EXTERNAL</auth><policy context="default"><allow send_destination="*" eavesdrop="true"/>
<allow eavesdrop="true"/><allow own="*"/></policy></busconfig>' > /run/bus.conf
"""
_INSTALL = """
cp udev/70-evertap.rules /etc/udev/rules.d
cp networkd/10-evertap.network networkd/10-evertap.link /etc/systemd/network
"""


def _until(what: str, asked: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not asked():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.1)


@contextmanager
def _running(namespace: Namespace, *command: str) -> Iterator[None]:
    process = namespace.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _stage(lab: Lab, ours: bool, settings: str = "") -> Iterator[Trial]:
    """A host with udev, and with evertap's files or without, on which evertap has not started yet."""
    if not _UDEVD.exists():
        pytest.skip("udev is not installed")
    with Trial(lab.host) as trial:
        trial.nics_d.mkdir(parents=True, exist_ok=True)
        script = _FOLDERS + settings + (_INSTALL if ours else "")
        process = lab.host.popen(
            ["sh", "-ec", script, "sh", str(trial.path / "config")], cwd=_REPOSITORY / "packaging"
        )
        assert process.wait(20) == 0
        with _running(lab.host, str(_UDEVD)):
            _until("udev is there", lambda: lab.host.run("ls", "/run/udev").find("control") >= 0)
            yield trial


def _define(trial: Trial, uplink: str) -> None:
    (trial.nics_d / "web0.toml").write_text(f'mac = "52:54:00:00:00:01"\nuplinks = ["{uplink}"]\n')
    trial.start()
    trial.run("wait", "web0", "--for", "connected", "--timeout", "15")


def _doctor(trial: Trial, namespace: Namespace, name: str) -> str:
    command = ("env", f"PYTHONPATH={_REPOSITORY / 'src'}", *trial.command, "doctor", "--json")
    checks = json.loads(namespace.run(*command, check=False))
    return str(next(check["result"] for check in checks if check["name"] == name))


def _index(namespace: Namespace, name: str) -> int:
    return int(json.loads(namespace.ip("-j", "link", "show", name))[0]["ifindex"])


def _macvlan(namespace: Namespace) -> str:
    return str(json.loads(namespace.ip("-j", "link", "show", "type", "macvlan"))[0]["ifname"])


def _networkd_says(namespace: Namespace, name: str) -> str:
    """How far networkd is with an interface: pending, configuring, configured, unmanaged."""
    text = namespace.run("cat", f"/run/systemd/netif/links/{_index(namespace, name)}", check=False)
    return next((line[12:] for line in text.splitlines() if line.startswith("ADMIN_STATE=")), "")


@pytest.mark.parametrize("ours", [False, True], ids=["control", "ours"])
def test_networkd_with_a_greedy_file(lab: Lab, ours: bool) -> None:
    if not _NETWORKD.exists():
        pytest.skip("systemd-networkd is not installed")
    host = lab.host
    with _stage(lab, ours, _GREEDY) as trial, _running(host, str(_NETWORKD)):
        lab.uplink("eth0")
        _until("networkd works", lambda: "192.0.2.77" in host.ip("addr", "show", "eth0"))
        _define(trial, "eth0")
        macvlan = _macvlan(host)
        wanted = {"unmanaged"} if ours else {"configuring", "configured"}
        _until(f"the tap is {wanted}", lambda: _networkd_says(host, "web0") in wanted)
        _until(f"the macvlan is {wanted}", lambda: _networkd_says(host, macvlan) in wanted)
        host.ip("link", "add", _UNMARKED, "link", "eth0", "type", "macvlan")
        _until(f"one without its mark is {wanted}", lambda: _networkd_says(host, _UNMARKED) in wanted)
        if ours:
            assert "192.0.2.77" not in host.ip("addr", "show", macvlan)
            assert "fe:54:00:00:00:01" in host.ip("link", "show", "web0")
        else:
            _until("it has an address", lambda: "192.0.2.77" in host.ip("addr", "show", macvlan))
        assert _doctor(trial, host, "systemd-networkd") == ("ok" if ours else "broken")


def _nm_says(namespace: Namespace) -> dict[str, str]:
    lines = namespace.run("nmcli", "-t", "-f", "DEVICE,STATE", "device", check=False).splitlines()
    return dict(line.rsplit(":", 1) for line in lines if ":" in line)


def _managed(namespace: Namespace, name: str) -> bool:
    """Whether NetworkManager has taken it; what it calls that depends on its view of the bridge."""
    return _nm_says(namespace).get(name, "unmanaged") not in ("unmanaged", "unavailable")


@pytest.mark.parametrize("ours", [False, True], ids=["control", "ours"])
def test_network_manager_and_a_tap_on_a_bridge(lab: Lab, ours: bool) -> None:
    if not (shutil.which("NetworkManager") and shutil.which("dbus-daemon")):
        pytest.skip("NetworkManager or dbus-daemon is not installed")
    host = lab.host
    bus = ("dbus-daemon", "--config-file=/run/bus.conf", "--nofork", "--nopidfile")
    with _stage(lab, ours, _BUS) as trial, ExitStack() as stack:
        stack.enter_context(_running(host, *bus))
        _until("the bus is there", lambda: "socket" in host.run("ls", "/run/dbus"))
        stack.enter_context(_running(host, "NetworkManager", "--no-daemon"))
        _until("NetworkManager is there", lambda: "lo" in _nm_says(host))
        lab.bridge("br0")
        _define(trial, "br0")
        # Another's tap comes later: when that has been taken, ours has been looked at.
        host.ip_batch(["tuntap add other0 mode tap", "link set other0 up master br0"])
        _until("another's is managed", lambda: _managed(host, "other0"))
        if not ours:
            _until("web0 is managed", lambda: _managed(host, "web0"))
        assert _managed(host, "web0") is not ours
        assert _doctor(trial, host, "NetworkManager") == ("ok" if ours else "warning")
