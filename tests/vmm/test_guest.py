"""A real guest on the hub: what it sees of plugging, of its link, of attach and detach, and the stall."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from evertap.kernel import tun
from evertap.lab.image import GuestImage
from evertap.lab.pinger import Pinger
from evertap.lab.qemu import QemuGuest
from evertap.lab.wires import Lab
from evertap.model.arguments import qemu_arguments, qmp_arguments
from evertap.model.vmm import card_port, host_netdev, qemu_id, sink_port
from tests.support.nics import MAC, nic
from tests.vmm.following import Following, follow, until
from tests.vmm.macvtaps import open_macvtap

pytestmark = pytest.mark.timeout(120)

WEB0 = nic("web0", backend="macvtap", mac=MAC)
Story = Callable[[Following, QemuGuest, str], Awaitable[None]]


def with_guest(lab: Lab, image: GuestImage, folder: Path, arguments: list[str], story: Story) -> None:
    path = str(folder / "vm.qmp")

    async def body(following: Following) -> None:
        following.vmms.follow({path})
        with QemuGuest(lab.host, image, [*arguments, *qmp_arguments(path)]) as guest:
            # Not in another thread: QEMU dies with the thread that started it.
            guest.boot()
            await following.running(path)
            await story(following, guest, path)

    follow(body, debug=False)


async def wait_reply(pinger: Pinger, seconds: float = 10) -> float:
    return await asyncio.to_thread(pinger.wait_reply, seconds)


async def sh(guest: QemuGuest, command: str) -> str:
    return await asyncio.to_thread(guest.sh, command)


def test_plugging_reaches_the_guest_and_nothing_stalls(
    lab: Lab, guest_image: GuestImage, tmp_path: Path
) -> None:
    async def story(following: Following, guest: QemuGuest, path: str) -> None:
        vmms, boot_id, changes = following.vmms, guest.boot_id(), guest.carrier_changes()
        # The guest transmits much more than its queue holds (256) while there is no uplink.
        await sh(guest, "arp -s 192.0.2.1 02:00:00:00:00:01")
        sent = int(await sh(guest, "cat /sys/class/net/eth0/statistics/tx_packets"))
        await sh(guest, "ping -c 600 -i 0.002 -W 1 -q 192.0.2.1 > /dev/null; true")
        later = int(await sh(guest, "cat /sys/class/net/eth0/statistics/tx_packets"))
        assert later > sent + 500, "the queue goes on although nobody hears"
        with Pinger(lab.wire) as pinger:
            for number in range(3):
                lab.uplink("up0")
                with open_macvtap(lab.host, "up0", f"mvt{number}", MAC) as (index, tap):
                    begun = time.monotonic()
                    await vmms.plug(path, "web0", index, tap)
                    replied = await wait_reply(pinger)
                    print(f"\nfirst reply {(replied - begun) * 1000:.0f} ms after the plug began")
                    assert "64 bytes" in await sh(guest, "ping -c 1 -W 2 192.0.2.1")
                    if number != 1:  # the interface may also vanish under it
                        await vmms.unplug(path, "web0", index)
                    lab.remove("up0")
                if number == 1:
                    await vmms.unplug(path, "web0", index)
                assert following.vmm(path).parts == {qemu_id("web0"), card_port("web0"), sink_port("web0")}
        assert (guest.boot_id(), guest.carrier_changes()) == (boot_id, changes)

        # The guest sees its link only when told to, and counts each change.
        await vmms.set_link(path, "web0", False)
        await until(lambda: guest.sh("cat /sys/class/net/eth0/carrier").strip() == "0")
        await vmms.set_link(path, "web0", True)
        await until(lambda: guest.sh("cat /sys/class/net/eth0/carrier").strip() == "1")
        assert guest.carrier_changes() == changes + 2

        # What the guest wants to hear is known without asking.
        await until(lambda: bool(following.filters))
        before = len(following.filters)
        group = "33:33:ff:00:ab:cd"  # of this address's neighbour discovery
        await sh(guest, "ip -6 addr add 2001:db8::abcd/64 dev eth0")
        await until(lambda: group in following.filters[-1][2].multicast)
        assert following.filters[-1][2].mac == MAC
        assert len(following.filters) - before <= 3

    with_guest(lab, guest_image, tmp_path, qemu_arguments(WEB0, vhost=False), story)


def test_a_card_comes_and_goes_while_the_guest_runs(
    lab: Lab, guest_image: GuestImage, tmp_path: Path
) -> None:
    async def story(following: Following, guest: QemuGuest, path: str) -> None:
        vmms, boot_id = following.vmms, guest.boot_id()
        lab.uplink("up0")

        # On a hub, without an uplink at first.
        begun = time.perf_counter()
        await vmms.attach(path, WEB0, [])
        print(f"\nattach to a hub: {(time.perf_counter() - begun) * 1000:.0f} ms")
        await until(lambda: "eth0" in guest.sh("ls /sys/class/net"))
        with Pinger(lab.wire) as pinger, open_macvtap(lab.host, "up0", "mvt0", MAC) as (index, tap):
            await vmms.plug(path, "web0", index, tap)
            await wait_reply(pinger)
            # detach takes the uplink's netdevs too.
            begun = time.perf_counter()
            await vmms.detach(path, WEB0)
            print(f"detach: {(time.perf_counter() - begun) * 1000:.0f} ms")
        assert following.vmm(path).parts == frozenset()
        assert "eth0" not in guest.sh("ls /sys/class/net")

        # On a tap that is a port of a bridge, in the same slot.
        lab.host.ip("link", "set", "up0", "down")
        with lab.host.enter():
            tap = tun.create_tap("web0")
        lab.host.ip_batch(["link set web0 addrgenmode none", "link set web0 up", "link set up0 up"])
        lab.bridge("br0", "up0", "web0")
        await vmms.attach(path, nic("web0", mac=MAC), [tap])
        assert following.vmm(path).parts == {qemu_id("web0"), host_netdev("web0")}
        with Pinger(lab.wire) as pinger:
            await wait_reply(pinger)
            await vmms.detach(path, nic("web0", mac=MAC))
        assert following.vmm(path).parts == frozenset()
        assert guest.boot_id() == boot_id

    with_guest(lab, guest_image, tmp_path, ["-device", "pcie-root-port,id=rp1"], story)
