"""libvirt's VMs: a real libvirtd of the test's own, real guests, the real daemon."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from evertap.lab.errors import LabError
from evertap.lab.image import GuestImage
from evertap.lab.libvirtd import DomainGuest, Libvirtd, installed
from evertap.lab.pinger import Pinger
from evertap.lab.trial import Trial
from evertap.lab.wires import Lab
from evertap.model.errors import NoSuchNicError

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(installed()), reason=installed() or "libvirtd is installed"),
]

MAC = "52:54:00:12:34:56"
CARD = "02:00:00:00:0a:01"
TAP = (
    f"<interface type='ethernet'><mac address='{MAC}'/><target dev='web0' managed='no'/>"
    "<model type='virtio'/></interface>"
)
DIRECT = (
    f"<interface type='direct'><mac address='{MAC}'/><source dev='eth0' mode='bridge'/>"
    "<model type='virtio'/></interface>"
)


def nics(*uplinks: str, fields: str = "", replug: str = "no") -> str:
    """evertap's element of a domain's metadata."""
    children = "".join(f"<evertap:uplink {uplink}/>" for uplink in uplinks)
    nic = f"<evertap:nic mac='{MAC}' {fields}>{children}</evertap:nic>" if uplinks else ""
    return f"<evertap:nics xmlns:evertap='urn:evertap:1' replug='{replug}'>{nic}</evertap:nics>"


def metadata(element: str) -> str:
    return f"<metadata>{element}</metadata>"


def bare(element: str) -> str:
    """As `virsh metadata --set` wants it: libvirt itself adds the namespace."""
    return element.replace(" xmlns:evertap='urn:evertap:1'", "").replace("evertap:", "")


def until(reached: Callable[[], object], timeout: float = 15) -> None:
    deadline = time.monotonic() + timeout
    while not reached():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def succeed(trial: Trial, *command: str) -> None:
    """Until libvirt has told the daemon of the domain."""
    deadline = time.monotonic() + 10
    while (done := trial.try_run(*command)).returncode:
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.1)


@dataclass
class Scene:
    """A host with libvirt and evertap on it, pinged from outside."""

    lab: Lab
    libvirtd: Libvirtd
    trial: Trial
    image: GuestImage
    pinger: Pinger

    def guest(self, devices: str = TAP, extra: str = "") -> DomainGuest:
        uuid = "<uuid>11111111-2222-3333-4444-555555555555</uuid>"
        return DomainGuest(self.libvirtd, self.image, devices, uuid + extra, name="web")

    def state(self, name: str = "web0") -> tuple[str, str | None]:
        shown = self.trial.nic(name)
        return shown.state, shown.uplink

    def wait_for(self, state: str, uplink: str | None = None, name: str = "web0") -> None:
        def reached() -> bool:
            try:
                return self.state(name) == (state, uplink)
            except NoSuchNicError:  # not defined yet
                return False

        until(reached)

    def reachable(self) -> None:
        self.pinger.wait_reply(10)

    def unreachable(self) -> None:
        with pytest.raises(TimeoutError):
            self.pinger.wait_reply(0.5)


@pytest.fixture
def scene(lab: Lab, guest_image: GuestImage) -> Iterator[Scene]:
    with (
        Libvirtd(lab.host) as libvirtd,
        Trial(lab.host, libvirtd.uri) as trial,
        Pinger(lab.wire) as pinger,
    ):
        libvirtd.start()
        trial.start()
        yield Scene(lab, libvirtd, trial, guest_image, pinger)
        assert "Traceback" not in trial.log, trial.log


def test_a_domain_starts_without_its_uplink_and_never_notices_its_losses(scene: Scene) -> None:
    with scene.guest(extra=metadata(nics(f"mac='{CARD}'", "name='spare0'"))) as guest:
        scene.libvirtd.define(guest.xml)
        scene.wait_for("waiting")
        guest.boot()
        before = guest.boot_id(), guest.carrier_changes()
        scene.unreachable()
        scene.lab.uplink("eth0", mac=CARD)
        scene.reachable()
        for name in ("eth0", "enx0"):
            scene.lab.remove("eth0")
            scene.wait_for("waiting")
            scene.lab.uplink(name, mac=CARD)
            scene.reachable()
        # virsh retargets it live, by the metadata of the running domain alone.
        scene.lab.uplink("spare0")
        change = nics("name='spare0'")
        scene.libvirtd.virsh(
            "metadata", "web", "--uri", "urn:evertap:1", "--key", "evertap", "--set", bare(change), "--live"
        )
        scene.wait_for("connected", "spare0")
        scene.reachable()
        assert (guest.boot_id(), guest.carrier_changes()) == before
        scene.libvirtd.virsh("destroy", "web")
        scene.wait_for("connected", "enx0")  # the configuration is as it was


def test_libvirtd_and_evertap_may_be_killed_in_the_middle(scene: Scene) -> None:
    scene.lab.uplink("eth0")
    with scene.guest(extra=metadata(nics("name='eth0'"))) as guest:
        scene.libvirtd.define(guest.xml)
        scene.wait_for("connected", "eth0")
        guest.boot()
        scene.reachable()
        since = time.monotonic()
        scene.libvirtd.kill()
        time.sleep(0.5)
        assert scene.state() == ("connected", "eth0")
        scene.trial.kill()
        scene.trial.start()  # libvirt is away: what it last said still counts
        assert scene.state() == ("connected", "eth0")
        assert scene.trial.json("plan") == {"actions": []}
        scene.libvirtd.start()
        time.sleep(1)
        assert scene.state() == ("connected", "eth0")
        assert scene.pinger.lost(since) == 0
        scene.lab.uplink("eth1")
        change = nics("name='eth1'")
        scene.libvirtd.virsh(
            "metadata", "web", "--uri", "urn:evertap:1", "--key", "evertap", "--set", bare(change), "--live"
        )
        scene.wait_for("connected", "eth1")
        scene.libvirtd.stop()
        scene.libvirtd.start()
        scene.wait_for("connected", "eth1")
        scene.reachable()


def test_a_libvirtd_that_hangs_delays_no_nic(scene: Scene) -> None:
    scene.trial.define("vm1", 'mac = "52:54:00:00:00:01"\nuplinks = ["eth1"]\n')
    scene.lab.uplink("eth0")
    fields = "guest_link='follow'"
    with scene.guest(extra=metadata(nics("name='eth0'", fields=fields))) as guest:
        scene.libvirtd.define(guest.xml)
        scene.wait_for("connected", "eth0")
        guest.boot()
        scene.reachable()
        scene.libvirtd.pause()
        try:
            scene.lab.remove("eth0")
            scene.wait_for("waiting")
            for _ in range(3):
                scene.lab.uplink("eth1")
                scene.wait_for("connected", "eth1", "vm1")
                scene.lab.remove("eth1")
                scene.wait_for("waiting", None, "vm1")
        finally:
            scene.libvirtd.resume()
        latencies = [event["latency_ms"] for event in scene.trial.events("vm1") if "latency_ms" in event]
        assert max(latencies) < 500
        scene.lab.uplink("eth0")
        scene.reachable()
        until(lambda: guest.sh("cat /sys/class/net/eth0/carrier").strip() == "1")


def test_stop_start_save_and_restore(scene: Scene) -> None:
    scene.lab.uplink("eth0")
    with scene.guest(extra=metadata(nics("name='eth0'"))) as guest:
        scene.libvirtd.define(guest.xml)
        scene.wait_for("connected", "eth0")
        guest.boot()
        scene.reachable()
        saved = str(scene.libvirtd.path / "web.save")
        scene.libvirtd.virsh("save", "web", saved)
        scene.unreachable()
        scene.lab.remove("eth0")
        scene.libvirtd.virsh("restore", saved)
        guest.reconnect()
        scene.lab.uplink("eth0")
        scene.reachable()
        scene.libvirtd.virsh("destroy", "web")
        scene.libvirtd.virsh("start", "web")
        guest.reconnect()
        guest.wait_ready()
        scene.reachable()


def test_the_hook_makes_the_tap_when_the_daemon_is_down(scene: Scene) -> None:
    hooks = scene.libvirtd.path / "etc" / "hooks"
    scene.trial.run("libvirt-setup", "--hooks-dir", str(hooks))
    scene.libvirtd.stop()
    scene.libvirtd.start()  # libvirtd looks for hooks when it starts
    scene.trial.kill()
    with scene.guest(extra=metadata(nics("name='eth0'"))) as guest:
        guest.boot()
        assert "web0" in scene.lab.host.ip("link")
        scene.trial.start()
        scene.wait_for("waiting")
        scene.lab.uplink("eth0")
        scene.reachable()


def test_without_the_hook_libvirt_refuses_what_it_would_have_refused(scene: Scene) -> None:
    scene.trial.kill()
    with (
        scene.guest(extra=metadata(nics("name='eth0'"))) as guest,
        pytest.raises(LabError, match="managed='no'"),
    ):
        guest.boot()


def test_adopt_then_start_and_release_then_start(scene: Scene) -> None:
    with scene.guest(DIRECT) as guest:
        scene.libvirtd.define(guest.xml)
        before = scene.libvirtd.virsh("dumpxml", "web", "--inactive")
        succeed(scene.trial, "adopt", "web", "--dry-run")
        shown = scene.trial.run("adopt", "web", "--dry-run")
        assert "+    <interface type='ethernet'>" in shown
        assert scene.libvirtd.virsh("dumpxml", "web", "--inactive") == before
        with pytest.raises(LabError):  # stock libvirt does not start it: eth0 does not exist
            scene.libvirtd.virsh("start", "web")
        scene.trial.run("adopt", "web")
        (name,) = [nic["name"] for nic in scene.trial.json("list")]
        scene.libvirtd.virsh("start", "web")
        guest.reconnect()
        guest.wait_ready()
        assert scene.state(name) == ("waiting", None)
        scene.lab.uplink("eth0")
        scene.reachable()
        scene.libvirtd.virsh("destroy", "web")
        scene.trial.run("release", "web")
        assert scene.libvirtd.virsh("dumpxml", "web", "--inactive") == before
        until(lambda: scene.trial.json("list") == [])
        scene.libvirtd.virsh("start", "web")
        guest.reconnect()
        guest.wait_ready()
        scene.reachable()


def test_adopt_and_release_live_replug_the_running_guest(scene: Scene) -> None:
    scene.lab.uplink("eth0")
    with scene.guest(DIRECT) as guest:
        guest.boot()
        scene.reachable()
        boot = guest.boot_id()
        succeed(scene.trial, "adopt", "web", "--dry-run")
        scene.trial.run("adopt", "web", "--live")
        (name,) = [nic["name"] for nic in scene.trial.json("list")]
        scene.wait_for("connected", "eth0", name)
        scene.reachable()
        scene.lab.remove("eth0")
        scene.lab.uplink("eth0")
        scene.reachable()
        scene.trial.run("release", "web", "--live")
        scene.reachable()
        assert "macvtap" in scene.lab.host.ip("-d", "link")
        assert guest.boot_id() == boot


def test_a_nic_is_attached_to_a_running_domain_and_detached(scene: Scene) -> None:
    scene.trial.define("web0", f'mac = "{MAC}"\nuplinks = ["eth0"]\n')
    with scene.guest("") as guest:
        guest.boot()
        succeed(scene.trial, "attach", "web0", "--domain", "web")
        until(lambda: "eth0" in guest.sh("ls /sys/class/net"))
        scene.lab.uplink("eth0")
        scene.reachable()
        assert "web0" in scene.libvirtd.virsh("dumpxml", "web", "--inactive")
        succeed(scene.trial, "detach", "web0")
        until(lambda: "eth0" not in guest.sh("ls /sys/class/net"))
        assert "web0" not in scene.libvirtd.virsh("dumpxml", "web", "--inactive")


def test_replug_gives_a_stock_direct_interface_its_network_back(scene: Scene) -> None:
    scene.lab.uplink("eth0")
    with scene.guest(DIRECT) as guest:
        guest.boot()
        scene.reachable()
        scene.lab.remove("eth0")
        scene.lab.uplink("eth0")
        time.sleep(1)
        scene.unreachable()  # as libvirt leaves it
        change = nics(replug="yes")
        scene.libvirtd.virsh(
            "metadata",
            "web",
            "--uri",
            "urn:evertap:1",
            "--key",
            "evertap",
            "--set",
            bare(change),
            "--live",
            "--config",
        )
        scene.reachable()
        scene.lab.remove("eth0")
        scene.unreachable()
        scene.lab.uplink("eth0")
        scene.reachable()
        assert scene.libvirtd.virsh("dumpxml", "web").count("type='direct'") == 1


def test_the_guests_link_follows_through_libvirt(scene: Scene) -> None:
    with scene.guest(extra=metadata(nics("name='eth0'", fields="guest_link='follow'"))) as guest:
        scene.libvirtd.define(guest.xml)
        scene.wait_for("waiting")
        guest.boot()
        carrier = "cat /sys/class/net/eth0/carrier"
        until(lambda: guest.sh(carrier).strip() == "0")
        scene.lab.uplink("eth0")
        until(lambda: guest.sh(carrier).strip() == "1")
        scene.reachable()
        scene.lab.remove("eth0")
        until(lambda: guest.sh(carrier).strip() == "0")


def test_a_macvtap_is_handed_to_a_domain_by_its_monitor(scene: Scene) -> None:
    scene.trial.define(
        "web0", f'mac = "{MAC}"\nuplinks = ["eth0"]\nbackend = "macvtap"\n[vm]\ndomain = "web"\n'
    )
    words = scene.trial.arguments("web0")
    words[-1] += ",addr=0x10"  # a place that libvirt's own devices do not take
    arguments = "".join(f"<qemu:arg value='{word}'/>" for word in words)
    uri = "http://libvirt.org/schemas/domain/qemu/1.0"
    extra = f"<qemu:commandline xmlns:qemu='{uri}'>{arguments}</qemu:commandline>"
    with scene.guest("", extra) as guest:
        guest.boot()
        before = guest.boot_id(), guest.carrier_changes()
        scene.lab.uplink("eth0")
        scene.reachable()
        scene.wait_for("connected", "eth0")
        for _ in range(2):
            scene.lab.remove("eth0")
            scene.wait_for("waiting")
            scene.lab.uplink("eth0")
            scene.reachable()
        scene.trial.kill()
        scene.trial.start()
        scene.wait_for("connected", "eth0")
        assert scene.trial.json("plan") == {"actions": []}
        scene.reachable()
        assert (guest.boot_id(), guest.carrier_changes()) == before
        scene.libvirtd.virsh("destroy", "web")
        until(lambda: "macvtap" not in scene.lab.host.ip("-d", "link"))
        until(lambda: "the domain web does not run" in scene.trial.nic("web0").reason)
