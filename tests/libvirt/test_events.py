"""What is told of domains, while others change them by virsh."""

from __future__ import annotations

import asyncio

from evertap.lab.libvirtd import Libvirtd
from tests.libvirt.conftest import MAC, Blank, card
from tests.libvirt.following import Following, follow, until

SPACE = "https://example.org/1"


def test_domains_that_are_there_are_told_with_both_descriptions(libvirtd: Libvirtd, paused: Blank) -> None:
    async def body(following: Following) -> None:
        domain = following.known[paused.uuid]
        assert (domain.name, domain.running) == ("blank", True)
        assert "<alias name='net0'/>" in domain.live_xml
        assert "<alias name=" not in domain.config_xml
        assert MAC in domain.config_xml

    follow(libvirtd.uri, body)


def test_a_domains_life_is_followed(libvirtd: Libvirtd) -> None:
    made = Blank(libvirtd, "life")

    async def body(following: Following) -> None:
        async def virsh(*arguments: str) -> None:
            await asyncio.to_thread(libvirtd.virsh, *arguments)

        await asyncio.to_thread(libvirtd.define, made.xml)
        domain = await following.see(made.uuid, lambda it: it.config_xml != "")
        assert not domain.running
        assert domain.live_xml == ""

        await virsh("start", "--paused", "life")
        domain = await following.see(made.uuid, lambda it: it.running)
        assert MAC in domain.live_xml

        await virsh("metadata", "life", SPACE, "--key", "x", "--set", "<nic of='live'/>", "--live")
        domain = await following.see(
            made.uuid, lambda it: "of='live'" in it.live_xml or 'of="live"' in it.live_xml
        )
        assert SPACE not in domain.config_xml

        await virsh("metadata", "life", SPACE, "--key", "x", "--set", "<nic of='next'/>", "--config")
        domain = await following.see(made.uuid, lambda it: SPACE in it.config_xml)
        assert "next" not in domain.live_xml

        await virsh("destroy", "life")
        await following.see(made.uuid, lambda it: not it.running and it.live_xml == "")

        await virsh("domrename", "life", "afterlife")
        await following.see(made.uuid, lambda it: it.name == "afterlife")

        await virsh("start", "--paused", "afterlife")
        await following.see(made.uuid, lambda it: it.running)
        await virsh("undefine", "afterlife")  # now it is transient
        await following.see(made.uuid, lambda it: it.running and it.config_xml == "")
        await virsh("destroy", "afterlife")
        await until(lambda: made.uuid not in following.known)

    follow(libvirtd.uri, body)


def test_a_domain_that_is_undefined_while_off_is_gone(libvirtd: Libvirtd, blank: Blank) -> None:
    async def body(following: Following) -> None:
        assert blank.uuid in following.known
        await asyncio.to_thread(libvirtd.virsh, "undefine", "blank")
        await until(lambda: blank.uuid not in following.known)

    follow(libvirtd.uri, body)


def test_save_and_restore_are_followed(libvirtd: Libvirtd, paused: Blank) -> None:
    async def body(following: Following) -> None:
        await asyncio.to_thread(libvirtd.virsh, "managedsave", "--paused", "blank")
        await following.see(paused.uuid, lambda it: not it.running)
        await asyncio.to_thread(libvirtd.virsh, "start", "blank")
        await following.see(paused.uuid, lambda it: it.running)

    follow(libvirtd.uri, body)


def test_devices_that_others_attach_are_seen(libvirtd: Libvirtd, paused: Blank) -> None:
    file = libvirtd.path / "card.xml"
    file.write_text(card("52:54:00:00:00:77"))

    async def body(following: Following) -> None:
        await asyncio.to_thread(libvirtd.virsh, "attach-device", "blank", str(file), "--live")
        domain = await following.see(paused.uuid, lambda it: "52:54:00:00:00:77" in it.live_xml)
        assert "52:54:00:00:00:77" not in domain.config_xml

    follow(libvirtd.uri, body)


def test_passwords_survive_a_new_definition(libvirtd: Libvirtd) -> None:
    made = Blank(libvirtd, "secret")
    screen = "<graphics type='vnc' port='-1' autoport='yes' passwd='sesame'/>"
    libvirtd.define(made.xml.replace("</devices>", f"{screen}</devices>"))

    async def body(following: Following) -> None:
        before = following.known[made.uuid].config_xml
        await following.domains.define(before.replace(MAC, "52:54:00:00:00:78"))
        domain = await following.see(made.uuid, lambda it: "52:54:00:00:00:78" in it.config_xml)
        assert "sesame" in domain.config_xml

    try:
        follow(libvirtd.uri, body)
    finally:
        libvirtd.virsh("undefine", "secret")
