"""Changes to domains: links, devices, definitions, QEMU's monitor."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from evertap.lab.image import GuestImage
from evertap.lab.libvirtd import DomainGuest, Libvirtd
from evertap.libvirt.connection import Connection
from evertap.libvirt.limits import Limits
from evertap.model.errors import ActionError
from tests.libvirt.conftest import MAC, Blank, card
from tests.libvirt.following import Following, follow, qemu, until

OTHER = "52:54:00:00:00:02"


def test_the_link_is_set_in_the_running_domain_only(libvirtd: Libvirtd, paused: Blank) -> None:
    async def body(following: Following) -> None:
        await following.domains.set_link(paused.uuid, MAC, False)
        domain = await following.see(paused.uuid, lambda it: "<link state='down'/>" in it.live_xml)
        assert "<link" not in domain.config_xml
        await following.domains.set_link(paused.uuid, MAC.upper(), True)
        await following.see(paused.uuid, lambda it: "<link state='down'/>" not in it.live_xml)
        await following.domains.set_link(paused.uuid, MAC, True)

    follow(libvirtd.uri, body)


def test_refusals_say_what_and_why(libvirtd: Libvirtd, blank: Blank) -> None:
    async def body(following: Following) -> None:
        with pytest.raises(ActionError, match="setting the link, domain blank: the domain does not run"):
            await following.domains.set_link(blank.uuid, MAC, False)
        await asyncio.to_thread(libvirtd.virsh, "start", "--paused", "blank")
        with pytest.raises(ActionError, match=f"no interface with the MAC address {OTHER}"):
            await following.domains.set_link(blank.uuid, OTHER, False)
        with pytest.raises(ActionError, match="define: missing name information"):
            await following.domains.define("<domain/>")
        with pytest.raises(ActionError, match=r"attach, domain blank: .*<nonsense"):
            await following.domains.attach(blank.uuid, "<nonsense", live=True, config=False)
        with pytest.raises(ActionError, match=r"detach, domain blank: .*not found"):
            await following.domains.detach(blank.uuid, card(OTHER), live=True, config=False)
        with pytest.raises(ActionError, match="Domain not found"):
            await following.domains.set_link("00000000-0000-0000-0000-000000000001", MAC, True)

    follow(libvirtd.uri, body)


def test_a_card_is_attached_to_and_detached_from_the_configuration(libvirtd: Libvirtd, blank: Blank) -> None:
    async def body(following: Following) -> None:
        await following.domains.attach(blank.uuid, card(OTHER), live=False, config=True)
        await following.see(blank.uuid, lambda it: OTHER in it.config_xml)
        await following.domains.detach(blank.uuid, card(OTHER), live=False, config=True)
        await following.see(blank.uuid, lambda it: OTHER not in it.config_xml)

    follow(libvirtd.uri, body)


@pytest.mark.timeout(60)
def test_a_guest_lets_go_of_a_card_and_gets_another(libvirtd: Libvirtd, guest_image: GuestImage) -> None:
    with DomainGuest(libvirtd, guest_image, card(MAC), name="hotplug") as guest:
        guest.boot()

        async def body(following: Following) -> None:
            uuid = next(it.uuid for it in following.known.values() if it.name == "hotplug")
            await following.domains.attach(uuid, card(OTHER), live=True, config=True)
            await following.see(uuid, lambda it: OTHER in it.live_xml and OTHER in it.config_xml)
            await until(lambda: OTHER in guest.sh("cat /sys/class/net/*/address"))
            await following.domains.detach(uuid, card(OTHER), live=True, config=True)
            assert OTHER not in guest.sh("cat /sys/class/net/*/address")
            await following.see(uuid, lambda it: OTHER not in it.live_xml + it.config_xml)
            changes = guest.carrier_changes()
            await following.domains.set_link(uuid, MAC, False)
            await until(lambda: guest.carrier_changes() > changes)

        follow(libvirtd.uri, body, debug=False)


def test_a_guest_that_keeps_a_card_is_waited_for_to_a_limit(libvirtd: Libvirtd, paused: Blank) -> None:
    async def body(following: Following) -> None:
        started = time.monotonic()
        with pytest.raises(ActionError, match="the guest has not let go of it within 1 s"):
            await following.domains.detach(paused.uuid, card(MAC), live=True, config=False)
        assert time.monotonic() - started < 3

    follow(libvirtd.uri, body, Limits(unplug=1, answer=8))


def test_qemu_gets_a_descriptor_by_getfd(libvirtd: Libvirtd, paused: Blank) -> None:
    reading, writing = os.pipe()
    pipe = os.fstat(writing)

    def held(pid: int) -> bool:
        for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
            there = os.stat(f"/proc/{pid}/fd/{name}")  # noqa: PTH116
            if (there.st_dev, there.st_ino) == (pipe.st_dev, pipe.st_ino):
                return True
        return False

    async def body(following: Following) -> None:
        monitor = following.domains.monitor
        pid = qemu("blank")
        assert not held(pid)
        assert await monitor(paused.uuid, "getfd", {"fdname": "ours"}, [writing]) == {}
        assert held(pid)
        os.close(writing)
        assert await monitor(paused.uuid, "closefd", {"fdname": "ours"}) == {}
        assert os.read(reading, 1) == b"", "somebody still holds a copy of the descriptor"
        with pytest.raises(ActionError, match=r"closefd, domain blank: .*'ours'"):
            await monitor(paused.uuid, "closefd", {"fdname": "ours"})
        assert (await monitor(paused.uuid, "query-status", {}))["status"] == "prelaunch"
        with pytest.raises(ActionError, match="one descriptor"):
            await monitor(paused.uuid, "getfd", {"fdname": "ours"}, [reading, reading])

    try:
        follow(libvirtd.uri, body)
    finally:
        os.close(reading)


def test_an_old_libvirt_gets_no_descriptors(
    libvirtd: Libvirtd, paused: Blank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "takes_descriptors", False)

    async def body(following: Following) -> None:
        with pytest.raises(ActionError, match=r"needs libvirt 8\.2"):
            await following.domains.monitor(paused.uuid, "getfd", {"fdname": "ours"}, [0])

    follow(libvirtd.uri, body)


def test_a_qemu_that_hangs_delays_only_its_own_domain(libvirtd: Libvirtd, paused: Blank) -> None:
    other = Blank(libvirtd, "other")
    libvirtd.create(other.xml, "--paused")
    pid = qemu("blank")

    async def body(following: Following) -> None:
        domains = following.domains
        os.kill(pid, signal.SIGSTOP)
        hanging = asyncio.create_task(domains.set_link(paused.uuid, MAC, False))
        await asyncio.sleep(0.1)
        started = time.monotonic()
        await domains.set_link(other.uuid, MAC, False)
        await following.see(other.uuid, lambda it: "<link state='down'/>" in it.live_xml)
        assert time.monotonic() - started < 0.5
        with pytest.raises(ActionError, match="does not answer within 1 s"):
            await hanging
        started = time.monotonic()
        with pytest.raises(ActionError, match="has not finished an earlier call"):
            await domains.set_link(paused.uuid, MAC, False)
        assert time.monotonic() - started < 0.1
        await asyncio.sleep(0.6)
        assert following.reasons[-1] == "", "libvirt itself answers"
        await domains.set_link(other.uuid, MAC, True)
        os.kill(pid, signal.SIGCONT)
        await following.see(paused.uuid, lambda it: "<link state='down'/>" in it.live_xml)
        await domains.set_link(paused.uuid, MAC, True)

    try:
        follow(libvirtd.uri, body, Limits(answer=1, probe=0.5))
    finally:
        os.kill(pid, signal.SIGCONT)
        libvirtd.virsh("destroy", "other")
