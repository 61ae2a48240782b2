"""Plugging and attaching, on a QEMU that does as it should: order, undoing, descriptors."""

import asyncio
import os
from pathlib import Path

import pytest

from evertap.model.errors import ActionError
from evertap.model.vmm import card_port, hub_id, qemu_id, sink_port, uplink_netdev, uplink_port
from evertap.vmm.qmp import QemuMonitors
from tests.support.nics import nic
from tests.vmm.fake_qmp import FakeQmp, Peer, QemuError, Received
from tests.vmm.following import QUICK, Following, follow, until
from tests.vmm.test_hostile import leaving


def test_each_descriptor_goes_with_its_own_command(tmp_path: Path) -> None:
    files = [(tmp_path / f"file{number}").open("w") for number in range(8)]

    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake:
            following.vmms.follow({fake.path})
            await following.running(fake.path)
            plugs = [
                following.vmms.plug(fake.path, f"web{number}", number + 1, file.fileno())
                for number, file in enumerate(files)
            ]
            others = [following.vmms.set_link(fake.path, f"web{number}", True) for number in range(8)]
            tasks = asyncio.gather(*(call for pair in zip(plugs, others, strict=True) for call in pair))
            await asyncio.sleep(0)
            # They have copies of their own by now.
            inodes = [os.fstat(file.fileno()).st_ino for file in files]
            for file in files:
                file.close()
            await tasks
            for number, inode in enumerate(inodes):
                netdev = uplink_netdev(f"web{number}", number + 1)
                assert fake.netdevs[netdev]["inode"] == inode
                port = fake.netdevs[uplink_port(f"web{number}", number + 1)]
                assert (port["netdev"], port["hubid"]) == (netdev, hub_id(f"web{number}"))
            assert following.vmm(fake.path).parts == fake.netdevs.keys()

    follow(body)


def test_a_change_is_told_before_the_call_returns_and_once(tmp_path: Path) -> None:
    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake, (tmp_path / "file").open("w") as file:
            following.vmms.follow({fake.path})
            await following.running(fake.path)
            both = {uplink_netdev("web0", 7), uplink_port("web0", 7)}
            told = len(following.history)
            await following.vmms.plug(fake.path, "web0", 7, file.fileno())
            assert following.vmm(fake.path).parts == both
            await following.vmms.unplug(fake.path, "web0", 7)
            assert following.vmm(fake.path).parts == frozenset()
            assert len(following.history) == told + 2
            await following.vmms.unplug(fake.path, "web0", 7)
            assert fake.names().count("netdev_del") == 4, "that there is none is no error"

    follow(body)


def test_what_is_plugged_is_not_plugged_again_and_a_half_is_made_whole(tmp_path: Path) -> None:
    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake, (tmp_path / "file").open("w") as file:
            fake.netdevs = {uplink_netdev("web0", 7): {"type": "tap"}}
            following.vmms.follow({fake.path})
            await following.running(fake.path)
            await following.vmms.plug(fake.path, "web0", 7, file.fileno())
            assert fake.names() == ["netdev_del", "getfd", "netdev_add", "netdev_add"]
            with pytest.raises(ActionError, match="it is on the NIC's hub already"):
                await following.vmms.plug(fake.path, "web0", 7, file.fileno())
            assert len(fake.names()) == 4

    follow(body)


def test_a_call_that_is_cancelled_is_carried_out_to_its_end(tmp_path: Path) -> None:
    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake, (tmp_path / "file").open("w") as file:
            following.vmms.follow({fake.path})
            await following.running(fake.path)
            fake.freeze()
            plug = asyncio.create_task(following.vmms.plug(fake.path, "web0", 7, file.fileno()))
            await asyncio.sleep(0.05)
            plug.cancel()
            await asyncio.sleep(0.05)
            assert plug.cancelled()
            fake.thaw()
            await until(lambda: len(following.vmm(fake.path).parts) == 2)

    follow(body)


def test_a_closed_descriptor_is_an_error_of_the_call_alone(tmp_path: Path) -> None:
    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake:
            following.vmms.follow({fake.path})
            await following.running(fake.path)
            with pytest.raises(ActionError, match="descriptor: Bad file"):
                await following.vmms.plug(fake.path, "web0", 7, 9999)
            assert following.vmm(fake.path).running

    follow(body)


def test_what_is_not_followed_is_refused(tmp_path: Path) -> None:
    async def body(following: Following) -> None:
        with pytest.raises(ActionError, match="/nowhere is not followed"):
            await following.vmms.unplug("/nowhere", "web0", 7)

    follow(body)


def test_attach_with_several_queues(tmp_path: Path) -> None:
    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake, (tmp_path / "file").open("w") as file:
            following.vmms.follow({fake.path})
            await following.running(fake.path)
            web0 = nic("web0", queues=2, mtu=9000)
            await following.vmms.attach(fake.path, web0, [file.fileno(), file.fileno()])
            netdev = fake.netdevs["evertap-web0-host"]
            assert (netdev["type"], netdev["fds"]) == ("tap", "evertap-web0-fd0:evertap-web0-fd1")
            device = fake.devices["evertap-web0"]
            assert (device["mq"], device["vectors"], device["host_mtu"]) == (True, 6, 9000)
            assert following.vmm(fake.path).parts == {"evertap-web0", "evertap-web0-host"}
            with pytest.raises(ActionError, match="has a device of that id already"):
                await following.vmms.attach(fake.path, web0, [])

    follow(body)


def test_attach_with_vhost_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evertap.vmm.card.VHOST_NET", "/dev/null")

    async def body(following: Following) -> None:
        following.vmms = QemuMonitors(vhost=True)
        following.listen()
        with FakeQmp(tmp_path / "vm.qmp") as fake, (tmp_path / "file").open("w") as file:
            following.vmms.follow({fake.path})
            await following.running(fake.path)
            await following.vmms.attach(fake.path, nic("web0", queues=2), [file.fileno(), file.fileno()])
            netdev = fake.netdevs["evertap-web0-host"]
            assert (netdev["vhost"], netdev["vhostforce"]) == (True, True)
            assert netdev["vhostfds"] == "evertap-web0-vhost0:evertap-web0-vhost1"
            assert fake.files["evertap-web0-vhost1"] == os.stat("/dev/null").st_ino  # noqa: PTH116

    follow(body)


def test_attach_without_descriptors_is_on_a_hub_with_its_sink(tmp_path: Path) -> None:
    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake:
            following.vmms.follow({fake.path})
            await following.running(fake.path)
            await following.vmms.attach(fake.path, nic("web0", backend="macvtap", queues=2), [])
            assert fake.netdevs.keys() == {card_port("web0"), sink_port("web0")}
            assert {netdev["hubid"] for netdev in fake.netdevs.values()} == {hub_id("web0")}
            assert fake.devices["evertap-web0"]["netdev"] == card_port("web0")
            assert "mq" not in fake.devices["evertap-web0"]

    follow(body)


def test_ports_are_tried_until_one_is_free(tmp_path: Path) -> None:
    def port(ident: str) -> dict[str, object]:
        return {"qdev_id": ident, "class_info": {"class": 0x0604}, "pci_bridge": {"bus": {}}}

    def refuse(peer: Peer, received: Received) -> bool:
        bus = received.arguments.get("bus", "pcie.0")
        if received.command == "device_add" and bus == "rp2":
            raise QemuError("GenericError", "PCI: slot 0 function 0 not available for x, in use by y,id=z")
        if received.command == "device_add" and bus != "rp3":
            raise QemuError("GenericError", f"Bus '{bus}' does not support hotplugging")
        return False

    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake:
            fake.misbehave = refuse
            fake.answers["query-pci"] = [{"devices": [port("rp1"), port("rp2"), port("rp3")]}]
            following.vmms.follow({fake.path})
            await following.running(fake.path)
            await following.vmms.attach(fake.path, nic("web0"), [])
            assert fake.devices["evertap-web0"]["bus"] == "rp3"
            fake.answers["query-pci"] = [{"devices": [port("rp1"), port("rp2")]}]
            words = r"no PCI Express port that does is free.*-device pcie-root-port"
            with pytest.raises(ActionError, match=words):
                await following.vmms.attach(fake.path, nic("web1"), [])
            assert set(fake.netdevs) == {card_port("web0"), sink_port("web0")}

    follow(body)


def test_detach_removes_all_that_is_the_nics_and_nothing_else(tmp_path: Path) -> None:
    mine = {card_port("web"), sink_port("web"), uplink_netdev("web", 7), uplink_port("web", 7)}
    others = {card_port("web-up"), uplink_port("web2", 7), "theirs"}

    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake:
            fake.devices = {qemu_id("web"): {}, qemu_id("web2"): {}}
            fake.netdevs = {name: {"type": "hubport"} for name in mine | others}
            fake.misbehave = leaving(fake)
            following.vmms.follow({fake.path})
            await following.running(fake.path)
            await following.vmms.detach(fake.path, nic("web"))
            assert set(fake.netdevs) == others
            deleted = [
                received.arguments["id"] for received in fake.received if received.command == "netdev_del"
            ]
            assert deleted.index(uplink_port("web", 7)) < deleted.index(uplink_netdev("web", 7))
            assert following.vmm(fake.path).parts == {qemu_id("web2"), *others} - {"theirs"}
            await following.vmms.detach(fake.path, nic("web"))

    follow(body)


def test_a_guest_that_does_not_let_go_can_be_asked_again(tmp_path: Path) -> None:
    def pending(peer: Peer, received: Received) -> bool:
        if received.command == "device_del" and len(asked) > 1:
            raise QemuError("GenericError", "Device evertap-web0 is already in the process of unplug")
        return False

    asked: list[int] = []

    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake:
            fake.devices, fake.netdevs = {qemu_id("web0"): {}}, {card_port("web0"): {"type": "hubport"}}
            fake.misbehave = pending
            following.vmms.follow({fake.path})
            await following.running(fake.path)
            asked.append(1)
            with pytest.raises(
                ActionError, match=r"the guest has not let go of it within 0.4 s.*detach it again"
            ):
                await following.vmms.detach(fake.path, nic("web0"))
            assert fake.netdevs
            asked.append(2)
            detach = asyncio.create_task(following.vmms.detach(fake.path, nic("web0")))
            await asyncio.sleep(0.1)
            fake.event("DEVICE_UNPLUG_GUEST_ERROR", device="evertap-web0", path="/x")
            with pytest.raises(ActionError, match="the guest refuses to let go of it"):
                await detach
            # It does so later, while nobody waits.
            del fake.devices[qemu_id("web0")]
            fake.event("DEVICE_DELETED", device="evertap-web0", path="/x")
            await until(lambda: following.vmm(fake.path).parts == {card_port("web0")})
            asked.clear()
            await following.vmms.detach(fake.path, nic("web0"))
            assert not fake.netdevs

    follow(body, QUICK)


def test_a_detach_does_not_keep_other_nics_waiting_and_ends_with_its_qemu(tmp_path: Path) -> None:
    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake:
            fake.devices = {qemu_id("web0"): {}}
            following.vmms.follow({fake.path})
            await following.running(fake.path)
            detach = asyncio.create_task(following.vmms.detach(fake.path, nic("web0")))
            await asyncio.sleep(0.05)
            await following.vmms.set_link(fake.path, "web1", True)
            assert not detach.done()
            fake.stop()
            with pytest.raises(ActionError, match="QEMU has ended"):
                await detach

    follow(body)
