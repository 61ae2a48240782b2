"""The daemon at work: its files, signals and rights, and what others do to interfaces, its own included."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import evertap
from evertap.kernel import tun
from evertap.lab import frames as f
from evertap.lab.builtin_guest import BuiltinGuest
from evertap.lab.capture import Capture
from evertap.lab.netns import Namespace
from evertap.lab.pinger import Pinger
from evertap.lab.trial import Trial
from evertap.lab.wires import Lab

MAC = "52:54:00:12:34:56"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(evertap.__file__).parents[1])}
VNET_HEADER = bytes(10)


def definition(*uplinks: str, mac: str = MAC, more: str = "") -> str:
    return f'mac = "{mac}"\nuplinks = {json.dumps(uplinks)}\n{more}\n'


def eventually(condition: Callable[[], object], timeout: float = 5) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.03)


def state(trial: Trial, name: str = "web0") -> tuple[str, str | None]:
    shown = trial.nic(name)
    return shown.state, shown.uplink


def wait_uplink(trial: Trial, uplink: str | None, name: str = "web0") -> None:
    eventually(lambda: state(trial, name)[1] == uplink)


def names(trial: Trial) -> list[str]:
    return [nic["name"] for nic in trial.json("list")]


def links(namespace: Namespace, *which: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(namespace.ip("-d", "-j", "link", "show", *which) or "[]")
    return [link for link in found if link]


def macvlan(lab: Lab) -> str:
    """The name of the only one."""
    (link,) = links(lab.host, "type", "macvlan")
    return str(link["ifname"])


def run_daemon(
    namespace: Namespace, trial: Trial, *before: str, **folders: Path
) -> subprocess.CompletedProcess[str]:
    """A daemon that should not start: its end."""
    more = [f"--{kind}-dir={path}" for kind, path in folders.items()]
    with namespace.popen(
        [*before, *trial.command, *more, "daemon"], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        try:
            _, errors = process.communicate(timeout=10)
        finally:
            process.kill()
    return subprocess.CompletedProcess([], process.returncode, "", errors)


@pytest.fixture
def guest(lab: Lab, trial: Trial) -> Iterator[BuiltinGuest]:
    """Runs on web0, which wants eth0 and then eth1."""
    trial.define("web0", definition("eth0", "eth1", more="failback_delay = 0"))
    with BuiltinGuest(lab.host, "web0", MAC) as made:
        made.boot()
        yield made


# Definitions are files


def test_a_file_dropped_edited_and_removed_is_a_nic_connected_retargeted_and_removed(
    lab: Lab, trial: Trial
) -> None:
    lab.uplink("eth0")
    lab.uplink("eth1")
    trial.nics_d.mkdir(parents=True, exist_ok=True)
    file = trial.nics_d / "web0.toml"
    file.write_text(definition("eth0"))
    eventually(lambda: names(trial) == ["web0"])
    trial.wait("web0", "connected")
    assert state(trial) == ("connected", "eth0")
    file.write_text(definition("eth1"))
    wait_uplink(trial, "eth1")
    # Editors write another file and rename it.
    new = file.with_name("web0.toml~")
    new.write_text(definition("eth0"))
    new.rename(file)
    wait_uplink(trial, "eth0")
    file.unlink()
    eventually(lambda: names(trial) == [])
    assert trial.try_run("show", "web0").returncode == 4
    assert [link["ifname"] for link in links(lab.host)] == ["lo", "eth0", "eth1"]


def test_a_broken_file_leaves_the_last_good_definition_in_force_and_other_nics_alone(
    lab: Lab, trial: Trial
) -> None:
    lab.uplink("eth0")
    lab.uplink("eth1")
    trial.define("web0", definition("eth0"))
    trial.define("db0", definition("eth0", mac="52:54:00:00:00:02"))
    file = trial.nics_d / "web0.toml"
    whole = definition("eth1")
    for broken, said in (
        (whole[: len(whole) // 2].encode(), "is not TOML"),
        ((whole + 'mode = "bridg"').encode(), 'mode: found "bridg"; allowed: "bridge"'),
        (b"\xff\xfe" + whole.encode(), "UTF-8"),
    ):
        file.write_bytes(broken)
        eventually(lambda said=said: said in trial.nic("web0").problem)  # type: ignore[misc]
        assert str(file) in trial.nic("web0").problem
        assert "The last good definition is in force" in trial.run("show", "web0")
        assert state(trial) == ("connected", "eth0")
    (trial.nics_d / "db0.toml").write_text(definition("eth1", mac="52:54:00:00:00:02"))
    wait_uplink(trial, "eth1", "db0")
    # The last good one outlives the daemon, too.
    trial.kill()
    trial.start()
    assert state(trial) == ("connected", "eth0")
    assert "UTF-8" in trial.nic("web0").problem
    file.write_text(whole)
    wait_uplink(trial, "eth1")
    assert trial.nic("web0").problem == ""


def test_a_file_that_never_was_good_is_a_failed_nic_with_the_reason(trial: Trial) -> None:
    trial.define("db0", definition("eth0", mac="52:54:00:00:00:02"))
    (trial.nics_d / "web0.toml").write_text('mac = "53:54:00:12:34:56"\nuplinks = ["eth0"]')
    eventually(lambda: names(trial) == ["db0", "web0"])
    shown = trial.json("show", "web0")
    assert shown["state"] == "failed"
    assert 'mac: found "53:54:00:12:34:56"' in shown["reason"]
    assert state(trial, "db0") == ("waiting", None)


def test_sighup_rereads_the_definitions(lab: Lab, trial: Trial) -> None:
    lab.uplink("eth0")
    lab.uplink("eth1")
    elsewhere = trial.path / "elsewhere"
    elsewhere.write_text(definition("eth0"))
    trial.nics_d.mkdir(parents=True, exist_ok=True)
    (trial.nics_d / "web0.toml").symlink_to(elsewhere)
    eventually(lambda: names(trial) == ["web0"])
    trial.wait("web0", "connected")
    # What lies behind a link is not watched.
    elsewhere.write_text(definition("eth1"))
    time.sleep(0.5)
    assert state(trial) == ("connected", "eth0")
    os.kill(trial.pid, signal.SIGHUP)
    wait_uplink(trial, "eth1")


# Start and end


def test_sigterm_leaves_traffic_flowing_and_the_next_daemon_takes_over(
    lab: Lab, trial: Trial, guest: BuiltinGuest
) -> None:
    lab.uplink("eth0")
    with Pinger(lab.wire) as pinger:
        pinger.wait_reply(5)
        since = time.monotonic()
        assert trial.stop() == 0
        time.sleep(0.5)
        trial.start()
        time.sleep(0.5)
        until = time.monotonic()
        time.sleep(0.3)
        assert pinger.lost(since, until) == 0
    assert trial.json("plan") == {"actions": []}
    assert state(trial) == ("connected", "eth0")


def test_a_second_daemon_is_refused_in_the_same_namespace_and_in_the_same_folder(
    lab: Lab, trial: Trial
) -> None:
    elsewhere = trial.path / "elsewhere"
    done = run_daemon(lab.host, trial, runtime=elsewhere, state=elsewhere, config=elsewhere)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "evertap: another evertap daemon runs in this network namespace; stop it first"
    )
    done = run_daemon(lab.wire, trial)
    assert done.returncode == 1
    assert f"another evertap daemon is running in {trial.path / 'runtime'}; stop it" in done.stderr
    # The one that was there has not suffered.
    assert names(trial) == []


def test_a_daemon_without_rights_says_so(lab: Lab, trial: Trial) -> None:
    trial.stop()
    done = run_daemon(lab.host, trial, "setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")
    assert done.returncode == 1
    assert "the daemon has to run as root" in done.stderr
    assert "Traceback" not in done.stderr


# Devices that are not evertap's


def test_a_foreign_interface_with_the_nics_name_is_left_alone_until_it_goes(lab: Lab, trial: Trial) -> None:
    lab.uplink("eth0")
    lab.host.ip("tuntap", "add", "web0", "mode", "tap")
    foreign = links(lab.host, "web0")
    trial.define("web0", definition("eth0"))
    trial.define("db0", definition("eth0", mac="52:54:00:00:00:02"))
    shown = trial.json("show", "web0")
    assert (shown["state"], shown["uplink"], shown["tap"]) == ("failed", None, None)
    assert 'an interface named "web0" exists that evertap did not make; it is left alone' in shown["reason"]
    assert state(trial, "db0") == ("connected", "eth0")
    # Neither changing nor removing the NIC touches it.
    trial.run("disconnect", "web0")
    trial.run("connect", "web0")
    trial.run("undefine", "web0")
    assert links(lab.host, "web0") == foreign
    trial.define("web0", definition("eth0"))
    lab.remove("web0")
    trial.wait("web0", "connected")


def test_a_foreign_macvtap_with_the_nics_mac_is_named_and_waited_for(lab: Lab, trial: Trial) -> None:
    lab.uplink("eth0")
    lab.host.ip("link", "add", "link", "eth0", "name", "old0", "address", MAC, "type", "macvtap")
    trial.define("web0", definition("eth0"))
    shown = trial.json("show", "web0")
    assert (shown["state"], shown["uplink"]) == ("waiting", None)
    assert shown["reason"] == (
        "eth0: has a foreign macvtap old0 with this NIC's MAC; remove it: ip link del old0"
    )
    lab.remove("old0")
    trial.wait("web0", "connected")


# What others do to evertap's devices


DAMAGES = (
    "link del {macvlan}",
    "link set {macvlan} down",
    "link set {macvlan} name other0",
    "link set {macvlan} mtu 1300",
    "link set {macvlan} address 52:54:00:99:99:99",
    "link set web0 mtu 1300",
)


def assert_mended(lab: Lab, trial: Trial, damage: str) -> None:
    with Pinger(lab.wire) as pinger:
        pinger.wait_reply(5)
        lab.host.ip(*damage.format(macvlan=macvlan(lab)).split())
        pinger.wait_reply(3)
    eventually(lambda: trial.json("plan") == {"actions": []})
    (ours,), (tap,) = links(lab.host, "type", "macvlan"), links(lab.host, "web0")
    assert (ours["mtu"], ours["address"], "UP" in ours["flags"]) == (1500, MAC, True), damage
    assert (tap["mtu"], "UP" in tap["flags"]) == (1500, True), damage
    assert state(trial) == ("connected", "eth0")


def test_what_somebody_does_to_its_devices_is_mended(lab: Lab, trial: Trial, guest: BuiltinGuest) -> None:
    lab.uplink("eth0")
    for damage in DAMAGES:
        assert_mended(lab, trial, damage)


def test_a_tap_that_somebody_sets_down_is_set_up_again(lab: Lab, trial: Trial, guest: BuiltinGuest) -> None:
    lab.uplink("eth0")
    assert_mended(lab, trial, "link set web0 down")


def test_a_tap_that_somebody_renames_gets_its_name_back(lab: Lab, trial: Trial, guest: BuiltinGuest) -> None:
    lab.uplink("eth0")
    assert_mended(lab, trial, "link set web0 name foo0")


def test_a_tap_that_somebody_deletes_is_made_anew(lab: Lab, trial: Trial) -> None:
    lab.uplink("eth0")
    trial.define("web0", definition("eth0"))
    (before,) = links(lab.host, "web0")
    lab.host.ip("link", "del", "web0")
    eventually(lambda: "web0" in lab.host.ip("link") and state(trial) == ("connected", "eth0"))
    assert links(lab.host, "web0")[0]["ifindex"] != before["ifindex"]
    with BuiltinGuest(lab.host, "web0", MAC) as guest, Pinger(lab.wire) as pinger:
        guest.boot()
        pinger.wait_reply(3)


@pytest.mark.parametrize("change", ["queues = 2", 'owner = "nobody"'])
def test_a_change_that_takes_a_new_tap_leaves_the_nic_connected(lab: Lab, trial: Trial, change: str) -> None:
    lab.uplink("eth0")
    trial.define("web0", definition("eth0"))
    before = links(lab.host, "web0")[0]["ifindex"]
    trial.define("web0", definition("eth0", more=change))
    trial.wait("web0", "connected")
    assert links(lab.host, "web0")[0]["ifindex"] != before
    with BuiltinGuest(lab.host, "web0", MAC) as guest, Pinger(lab.wire) as pinger:
        guest.boot()
        pinger.wait_reply(3)


def test_a_tap_that_somebody_takes_out_of_its_bridge_returns_to_it(
    lab: Lab, trial: Trial, guest: BuiltinGuest
) -> None:
    lab.uplink("eth9")
    lab.bridge("br0", "eth9")
    trial.run("retarget", "web0", "bridge=br0")
    with Pinger(lab.wire) as pinger:
        pinger.wait_reply(5)
        lab.host.ip("link", "set", "web0", "nomaster")
        pinger.wait_reply(5)
    trial.wait("web0", "connected")
    assert links(lab.host, "web0")[0]["master"] == "br0"


# What others do to uplinks


def test_an_uplink_that_moves_to_another_namespace_is_lost_until_it_is_back(
    lab: Lab, trial: Trial, guest: BuiltinGuest
) -> None:
    lab.uplink("eth0")
    trial.wait("web0", "connected")
    lab.host.ip("link", "set", "eth0", "netns", str(lab.wire.pid))
    trial.wait("web0", "waiting")
    eventually(lambda: "eth0: no such interface" in trial.nic("web0").reason)
    eventually(lambda: links(lab.host, "type", "macvlan") == [])
    lab.wire.ip("link", "set", "eth0", "netns", str(lab.host.pid))
    trial.wait("web0", "connected", timeout=3)
    with Pinger(lab.wire) as pinger:
        pinger.wait_reply(5)


def test_an_uplink_with_a_smaller_mtu_is_used_with_a_warning(lab: Lab, trial: Trial) -> None:
    lab.uplink("eth0", mtu=1400)
    trial.define("web0", definition("eth0"))
    shown = trial.json("show", "web0")
    warning = "MTU 1400 is smaller than the NIC's 1500"
    assert (shown["state"], shown["uplink"]) == ("connected", "eth0")
    assert (shown["reason"], shown["candidates"][0]["reason"]) == (warning, warning)
    assert warning in trial.run("show", "web0")
    assert links(lab.host, "type", "macvlan")[0]["mtu"] == 1400
    lab.host.ip("link", "set", "eth0", "mtu", "1500")
    eventually(lambda: links(lab.host, "type", "macvlan")[0]["mtu"] == 1500)
    assert trial.nic("web0").candidates[0].reason == ""


def test_an_uplink_that_appears_down_is_brought_up_once_and_then_is_the_administrators(
    lab: Lab, trial: Trial
) -> None:
    trial.define("web0", definition("eth0"))
    lab.uplink("eth0", up=False)
    trial.wait("web0", "connected")
    lab.host.ip("link", "set", "eth0", "down")
    trial.wait("web0", "waiting")
    time.sleep(0.3)
    assert "UP" not in links(lab.host, "eth0")[0]["flags"]
    trial.kill()
    trial.start()
    time.sleep(0.3)
    shown = trial.json("show", "web0")
    assert (shown["state"], shown["reason"]) == ("waiting", "eth0: is down")
    assert "UP" not in links(lab.host, "eth0")[0]["flags"]
    lab.host.ip("link", "set", "eth0", "up")
    trial.wait("web0", "connected")
    # A new interface is a new chance.
    lab.remove("eth0")
    lab.uplink("eth0", up=False)
    trial.wait("web0", "connected")


@pytest.mark.parametrize("uplinks", [["br0"], ["eth0", "eth1"]])
def test_an_uplink_that_the_administrator_took_down_stays_down_although_no_device_of_ours_is_on_it(
    lab: Lab, trial: Trial, uplinks: list[str]
) -> None:
    lab.uplink("eth0")
    lab.uplink("eth1")
    lab.bridge("br0")
    trial.define("web0", definition(*uplinks, more='failover = "cold"'))
    trial.wait("web0", "connected")
    lab.host.ip("link", "set", uplinks[0], "down")
    eventually(lambda: state(trial)[1] != uplinks[0])
    trial.kill()
    trial.start()
    time.sleep(0.3)
    assert "UP" not in links(lab.host, uplinks[0])[0]["flags"]


def test_an_altname_given_to_an_interface_that_is_down_is_found(lab: Lab, trial: Trial) -> None:
    file = trial.path / "web0.toml"
    file.write_text(definition("enp3s0"))
    trial.run("define", str(file))
    lab.uplink("eth0", up=False)
    lab.host.ip("link", "property", "add", "dev", "eth0", "altname", "enp3s0")  # the kernel tells nobody
    trial.wait("web0", "connected")
    assert trial.nic("web0").uplink == "eth0"


def test_without_bring_up_an_uplink_that_is_down_stays_so(lab: Lab, trial: Trial) -> None:
    trial.define("web0", definition("eth0", more="bring_up = false"))
    lab.uplink("eth0", up=False)
    time.sleep(0.3)
    assert trial.nic("web0").reason == "eth0: is down"
    assert "UP" not in links(lab.host, "eth0")[0]["flags"]


def test_a_flapping_uplink_is_avoided_for_a_while_and_show_says_so(lab: Lab, trial: Trial) -> None:
    trial.define("web0", definition("eth0", "eth1", more="failback_delay = 0\nflap_hold = 1.5"))
    lab.uplink("eth1")
    lab.uplink("eth0")
    for _ in range(5):
        wait_uplink(trial, "eth0")
        lab.carrier("eth0", False)
        wait_uplink(trial, "eth1")
        lab.carrier("eth0", True)
    failed = time.monotonic()
    shown = trial.json("show", "web0")
    assert shown["uplink"] == "eth1"
    assert shown["candidates"][0]["reason"] == (
        "failed 5 times within 60 s; avoided for 1.5 s while another is usable"
    )
    wait_uplink(trial, "eth0")
    assert time.monotonic() - failed > 1


# Commands


def test_live_states_outlive_the_daemon_and_a_new_definition_ends_them(lab: Lab, trial: Trial) -> None:
    for name in ("eth0", "eth1", "eth2"):
        lab.uplink(name)
    trial.define("web0", definition("eth0"))
    trial.run("retarget", "web0", "eth1", "--live")
    assert '"eth0"' in (trial.nics_d / "web0.toml").read_text()
    trial.kill()
    trial.start()
    shown = trial.json("show", "web0")
    assert (shown["uplink"], shown["live"]) == ("eth1", True)
    trial.run("disconnect", "web0")
    trial.kill()
    trial.start()
    assert state(trial) == ("disconnected", None)
    trial.run("connect", "web0")
    # The same definition again is no new wish.
    trial.define("web0", definition("eth0", more="queues = 1"))
    assert state(trial) == ("connected", "eth1")
    trial.define("web0", definition("eth2"))
    shown = trial.json("show", "web0")
    assert (shown["uplink"], shown["live"]) == ("eth2", False)
    trial.kill()
    trial.start()
    assert state(trial) == ("connected", "eth2")


def test_fifty_nics_on_an_uplink_that_goes_and_returns_are_all_connected_again(
    lab: Lab, trial: Trial
) -> None:
    files = []
    for number in range(50):
        files.append(trial.path / f"vm{number}.toml")
        files[-1].write_text(definition("eth0", mac=f"52:54:00:00:01:{number:02x}"))
    lab.uplink("eth0")
    trial.run("define", *map(str, files))

    def all_are(wanted: str) -> bool:
        return [nic["state"] for nic in trial.json("list")] == [wanted] * 50

    eventually(lambda: all_are("connected"))
    lab.remove("eth0")
    eventually(lambda: all_are("waiting"))
    assert links(lab.host, "type", "macvlan") == []
    lab.uplink("eth0")
    eventually(lambda: all_are("connected"))
    assert len(links(lab.host, "type", "macvlan")) == 50
    assert trial.json("plan") == {"actions": []}
    trial.run("undefine", *(file.stem for file in files))
    eventually(lambda: [link["ifname"] for link in links(lab.host)] == ["lo", "eth0"])


def test_events_follow_streams_a_connection_with_its_latency(lab: Lab, trial: Trial) -> None:
    trial.define("web0", definition("eth0"))
    command = [*trial.command, "events", "--follow", "--nic", "web0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as following:
        assert following.stdout is not None
        try:
            # Whether it follows already is seen by an event's coming.
            deadline = time.monotonic() + 5
            while not select.select([following.stdout], [], [], 0.2)[0]:
                assert time.monotonic() < deadline
                verb = "connect" if state(trial)[0] == "disconnected" else "disconnect"
                trial.run(verb, "web0")
            trial.run("connect", "web0")
            lab.uplink("eth0")
            event = json.loads(following.stdout.readline())
            while event["event"] != "connected":
                event = json.loads(following.stdout.readline())
        finally:
            following.kill()
    assert (event["nic"], event["uplink"]) == ("web0", "eth0")
    assert 0 < event["latency_ms"] < 1000


def test_wait_tells_by_its_exit_code_what_came_of_it(lab: Lab, trial: Trial) -> None:
    trial.define("web0", definition("eth0"))
    started = time.monotonic()
    done = trial.try_run("wait", "web0", "--for", "connected", "--timeout", "0.3")
    assert done.returncode == 5
    assert time.monotonic() - started > 0.3
    assert trial.try_run("wait", "nobody0", "--for", "connected", "--timeout", "1").returncode == 4
    command = [*trial.command, "wait", "web0", "--for", "connected", "--timeout", "10"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT) as waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.5)
        lab.uplink("eth0")
        assert waiting.wait(5) == 0


# Taps


OPEN_TAP = """
open(my $tun, "+<", "/dev/net/tun") or die "open: $!\\n";
my $interface = pack("a16 s x22", "web0", 0x5002);
ioctl($tun, 0x400454ca, $interface) or die "TUNSETIFF: $!\\n";
print "opened\\n";
"""  # IFF_TAP | IFF_NO_PI | IFF_VNET_HDR


def test_the_owner_and_no_other_user_can_open_the_tap(lab: Lab, trial: Trial) -> None:
    trial.define("web0", definition("eth0", more='owner = "nobody"'))
    # Wherever udev runs, everybody may open the device; here is a copy of it for this laboratory alone.
    node = trial.path / "tun"
    trial.path.chmod(0o755)
    lab.host.run("mknod", str(node), "c", "10", "200")
    node.chmod(0o666)
    lab.host.run("mount", "--bind", str(node), "/dev/net/tun")

    def open_as(user: str) -> str:
        as_user = ("setpriv", "--reuid", user, "--clear-groups", "--inh-caps=-all", "--")
        return lab.host.run("sh", "-c", 'exec "$@" 2>&1', "sh", *as_user, "perl", "-e", OPEN_TAP, check=False)

    assert open_as("daemon") == "TUNSETIFF: Operation not permitted\n"
    assert open_as("nobody") == "opened\n"
    # A change of the owner takes a new tap, as nobody holds this one.
    trial.define("web0", definition("eth0", more='owner = "daemon"'))
    assert open_as("nobody") == "TUNSETIFF: Operation not permitted\n"
    assert open_as("daemon") == "opened\n"


def test_a_tap_with_two_queues_is_opened_twice_and_both_send(lab: Lab, trial: Trial) -> None:
    lab.uplink("eth0")
    trial.define("web0", definition("eth0", more="queues = 2"))
    with lab.host.enter():
        queues = [tun.open_tap("web0", 2), tun.open_tap("web0", 2)]
    try:
        with Capture(lab.wire, "net0") as capture:
            for number, queue in enumerate(queues):
                frame = f.ethernet(f.BROADCAST, f.mac_bytes(MAC), 0x88B5, bytes([number]) * 46)
                os.write(queue, VNET_HEADER + frame)
                capture.wait(lambda seen, frame=frame: seen.data == frame)  # type: ignore[misc]
    finally:
        for queue in queues:
            os.close(queue)
