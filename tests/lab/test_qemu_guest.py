"""A real guest boots, obeys, answers pings and leaves nothing behind."""

import time
from pathlib import Path

import pytest

from evertap.lab.errors import LabError
from evertap.lab.image import GuestImage
from evertap.lab.pinger import Pinger
from evertap.lab.qemu import QemuGuest
from evertap.lab.wires import Lab

MAC = "52:54:00:12:34:56"
NIC = (
    *("-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no"),
    *("-device", f"virtio-net-pci,netdev=n0,mac={MAC}"),
)

pytestmark = pytest.mark.timeout(120)


def test_a_guest_on_a_bridged_tap(lab: Lab, guest_image: GuestImage) -> None:
    lab.uplink("eth0")
    lab.host.ip_batch(["tuntap add tap0 mode tap vnet_hdr", "link set tap0 addrgenmode none up"])
    lab.bridge("br0", "eth0", "tap0")
    with QemuGuest(lab.host, guest_image, NIC) as guest:
        guest.boot()
        boot_id, changes = guest.boot_id(), guest.carrier_changes()
        with Pinger(lab.wire) as pinger:
            since = pinger.wait_reply(5)
            time.sleep(1)
        assert pinger.lost(since, until=since + 0.4) == 0
        lab.wire.run("ping", "-c1", "-W5", "2001:db8::10")
        assert MAC in guest.sh("ip link show eth0")
        assert "64 bytes" in guest.sh("ping -c 1 192.0.2.1")

        # A card that is plugged in anew gets its addresses, as a machine with a network manager gives them.
        driver = "/sys/bus/virtio/drivers/virtio_net"
        guest.sh(f"cd {driver}; card=$(ls -d virtio[0-9]*); echo $card > unbind; echo $card > bind")
        with Pinger(lab.wire) as pinger:
            pinger.wait_reply(5)
        changes = guest.carrier_changes()

        # A wire that is pulled is none of the guest's business.
        lab.remove("eth0")
        lab.uplink("eth0")
        lab.host.ip("link", "set", "eth0", "master", "br0")
        with Pinger(lab.wire) as pinger:
            pinger.wait_reply(5)
        assert (guest.boot_id(), guest.carrier_changes()) == (boot_id, changes)


def test_the_guests_shell(lab: Lab, guest_image: GuestImage) -> None:
    with QemuGuest(lab.host, guest_image) as guest:
        guest.boot()
        assert guest.uptime() > 0
        assert guest.sh("echo one; printf 'two\\r\\n\\tthree %%'; echo \"$HOME\" '$1' >&2") == (
            "one\ntwo\r\n\tthree %/ $1\n"
        )
        assert guest.sh("for n in 1 2; do\n    echo $n\ndone") == "1\n2\n"
        assert len(guest.sh("seq 1 20000").splitlines()) == 20000
        assert guest.sh("cat") == "", "commands have no standard input"
        with pytest.raises(LabError, match=r"'ls /none' in the guest failed with code 1: .*No such file"):
            guest.sh("ls /none")
        assert guest.sh("exit 7", check=False) == ""
        with pytest.raises(LabError, match="syntax error"):
            guest.sh("if")
        with pytest.raises(LabError, match="'sleep 100' took more than 1 s"):
            guest.sh("sleep 100", timeout=1)
        assert guest.sh("echo still here") == "still here\n"

        pid = guest.pid
        guest.sh("(sleep 0.5; echo c > /proc/sysrq-trigger) > /dev/null 2>&1 &")
        with pytest.raises(LabError, match="serial line"):
            guest.sh("sleep 5")
        guest.stop()
        assert not Path(f"/proc/{pid}").exists()
        with pytest.raises(LabError, match="does not run"):
            guest.sh("true")


def test_what_qemu_says_is_in_the_error(lab: Lab, guest_image: GuestImage) -> None:
    # Such a tap is opened with another flag than QEMU's one queue has.
    lab.host.ip("tuntap", "add", "tap0", "mode", "tap", "multi_queue")
    with (
        QemuGuest(lab.host, guest_image, NIC) as guest,
        pytest.raises(LabError, match=r"the guest did not boot: .*QEMU said: (.|\n)*tap0"),
    ):
        guest.boot()


def test_no_descriptor_is_left_open(lab: Lab, guest_image: GuestImage) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with QemuGuest(lab.host, guest_image) as guest:
        guest.boot()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
