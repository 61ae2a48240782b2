"""Reads libvirt's domains and their XML. To be called in a thread (see Threads): libvirt's calls block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import libvirt

from evertap.libvirt.threads import RefusedError
from evertap.model.domain import Domain


def uuids(conn: Any) -> set[str]:
    """All domains, running or not."""
    return {domain.UUIDString() for domain in conn.listAllDomains()}


def read(conn: Any, wanted: Sequence[str]) -> dict[str, Domain | None]:
    """These domains as they are; None for those that there are no more."""
    return {uuid: _read(conn, uuid) for uuid in wanted}


def _read(conn: Any, uuid: str) -> Domain | None:
    try:
        domain = conn.lookupByUUIDString(uuid)
        running = bool(domain.isActive())
        return Domain(
            uuid=uuid,
            name=domain.name(),
            running=running,
            live_xml=domain.XMLDesc() if running else "",
            # With passwords: they would be lost if this were changed and defined again.
            config_xml=domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
            if domain.isPersistent()
            else "",
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def interface(xml: str, mac: str) -> ElementTree.Element | None:
    """The interface with that MAC address, in a domain's XML."""
    for found in ElementTree.fromstring(xml).iterfind("devices/interface"):
        if _mac(found) == mac.lower():
            return found
    return None


def alias(domain_xml: str, device_xml: str) -> str:
    """The running domain's name for the device that is described; empty if it has no such interface."""
    try:
        wanted = _mac(ElementTree.fromstring(device_xml))
    except ElementTree.ParseError as error:
        raise RefusedError(f"the device's XML cannot be read: {error}") from None
    found = interface(domain_xml, wanted) if wanted else None
    named = found.find("alias") if found is not None else None
    return named.get("name", "") if named is not None else ""


def with_link(xml: str, mac: str, up: bool) -> str:
    """The interface's XML with that link state; empty if it has it already."""
    found = interface(xml, mac)
    if found is None:
        raise RefusedError(f"the running domain has no interface with the MAC address {mac}")
    link = found.find("link")
    state = "up" if up else "down"
    if (link.get("state", "up") if link is not None else "up") == state:
        return ""
    if link is None:
        link = ElementTree.SubElement(found, "link")
    link.set("state", state)
    return ElementTree.tostring(found, encoding="unicode")


def _mac(element: ElementTree.Element) -> str:
    mac = element.find("mac")
    return mac.get("address", "").lower() if mac is not None else ""
