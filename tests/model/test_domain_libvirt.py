"""adopt, retarget and release by way of libvirt's own parser and formatter (its test driver, no daemon)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from evertap.model.domain import Domain
from evertap.model.domain_adopt import adopt, release
from evertap.model.domain_nics import nics_of
from evertap.model.domain_retarget import with_uplinks
from evertap.model.domain_xml import URI
from tests.model.domain_xmls import MAC2, MIXED, RUNNING, domain_xml

libvirt = pytest.importorskip("libvirt", reason="needs libvirt-python")

EMULATOR = "    <emulator>/usr/bin/qemu-system-x86_64</emulator>\n"
MAC3 = "52:54:00:00:00:03"


@pytest.fixture
def connection() -> Iterator[Any]:
    opened = libvirt.open("test:///default")
    yield opened
    opened.close()


def for_the_test_driver(xml: str) -> str:
    return (
        xml.replace("type='kvm'", "type='test'").replace("type='qemu'>", "type='test'>").replace(EMULATOR, "")
    )


def config(domain: Any) -> str:
    return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


@pytest.mark.parametrize(
    "xml",
    [
        MIXED,
        MIXED.replace("  <memory", "  <metadata><a:b xmlns:a='urn:a'>1</a:b></metadata>\n  <memory", 1),
        domain_xml(f"<interface type='direct'><mac address='{MAC2}'/><source dev='eth0'/></interface>"),
        RUNNING[: RUNNING.index("  <seclabel")] + "</domain>",
    ],
)
def test_libvirt_takes_what_adopt_makes_and_release_gives_back_what_was(connection: Any, xml: str) -> None:
    before = config(connection.defineXML(for_the_test_driver(xml)))
    told = adopt(before, ())
    assert told.nics
    adopted = config(connection.defineXML(told.xml))
    nics, problems = nics_of(Domain("u", "db", config_xml=adopted))
    assert ({nic.mac: name for name, nic in nics.items()}, problems) == (told.nics, [])
    assert release(adopted).xml == before
    assert config(connection.defineXML(release(adopted).xml)) == before


def test_metadata_set_anew_keeps_the_original(connection: Any) -> None:
    before = config(connection.defineXML(for_the_test_driver(MIXED)))
    domain = connection.defineXML(adopt(before, ()).xml)
    kind, flags = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_CONFIG
    metadata = with_uplinks(domain.metadata(kind, URI, flags), MAC3, ["eth7", {"bridge": "br0"}], "f")
    domain.setMetadata(kind, metadata, "evertap", URI, flags)
    nics, problems = nics_of(Domain("u", "db", config_xml=config(domain)))
    assert problems == []
    (changed,) = (nic for nic in nics.values() if nic.mac == MAC3)
    assert [str(uplink) for uplink in changed.uplinks] == ["eth7", "bridge=br0"]
    assert release(config(domain)).xml == before


def test_the_guides_way_of_writing_metadata(connection: Any) -> None:
    """libvirt puts elements without a namespace into ours; with one of their own prefix it refuses them."""
    domain = connection.defineXML(for_the_test_driver(domain_xml()))
    kind, flags = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_CONFIG
    domain.setMetadata(kind, f"<nics><nic mac='{MAC2}'/></nics>", "evertap", URI, flags)
    assert f'<evertap:nics xmlns:evertap="{URI}">' in config(domain)
    assert f'<evertap:nic mac="{MAC2}"/>' in config(domain)
