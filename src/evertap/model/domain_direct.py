"""A domain's interfaces of type='direct': libvirt's own macvtaps."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from evertap.model.domain_xml import Document, Element, domain, interfaces, mac_of

_MODES: Final = {"": "vepa", "passthrough": "passthru"}  # libvirt's default, and its word for one
_GENERATED: Final = re.compile(r"(macvtap|macvlan|vnet)\d*")


class DirectInterface(msgspec.Struct, frozen=True):
    """One interface of type='direct'. Fields that it does not set are empty or 0."""

    mac: str
    source: str  # the interface it stands on
    mode: str  # in evertap's words, so "passthru" is libvirt's "passthrough"
    target: str = ""  # name of its macvtap, while the domain runs
    network: str = ""  # the libvirt network that chose `source`
    model: str = ""
    queues: int = 1
    mtu: int = 0
    address: str = ""  # of the guest's device: 0000:01:00.0, where it is on PCI
    alias: str = ""
    boot: int = 0
    link_up: bool = True
    trusts_guest: bool = False  # trustGuestRxFilters
    xml: str = ""  # the element as it is written


def direct_interfaces(xml: str, file: str = "the domain's XML") -> list[DirectInterface]:
    """The interfaces of type='direct' in a description, live or not (DefinitionError if it is none)."""
    document = domain(xml, file)
    return [read(document, each) for each in interfaces(document.root) if is_direct(each)]


def is_direct(interface: Element) -> bool:
    """Whether it is a macvtap of libvirt's."""
    return interface.attributes.get("type") == "direct"


def is_generated(name: str) -> bool:
    """Whether libvirt makes up such names itself (virNetDevReserveName): they do not last."""
    return bool(_GENERATED.fullmatch(name))


def interface_xml(xml: str, mac: str, file: str = "the domain's XML") -> str:
    """The text of the interface with that MAC address in a description; empty if there is none."""
    document = domain(xml, file)
    found = (each for each in interfaces(document.root) if mac_of(each) == mac.lower())
    return next((document.source(each) for each in found), "")


def read(document: Document, interface: Element) -> DirectInterface:
    """One interface's element."""
    mode = interface.get("source", "mode")
    return DirectInterface(
        mac=mac_of(interface),
        source=interface.get("source", "dev"),
        mode=_MODES.get(mode, mode),
        target=interface.get("target", "dev"),
        network=interface.get("source", "network"),
        model=interface.get("model", "type"),
        queues=number(interface.get("driver", "queues")) or 1,
        mtu=number(interface.get("mtu", "size")),
        address=_address(interface),
        alias=interface.get("alias", "name"),
        boot=number(interface.get("boot", "order")),
        link_up=interface.get("link", "state") != "down",
        trusts_guest=interface.attributes.get("trustGuestRxFilters") == "yes",
        xml=document.source(interface),
    )


def number(text: str) -> int:
    """A whole number in decimal; 0 if it is none."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0


def _address(interface: Element) -> str:
    address = interface.first("address")
    if address is None or address.attributes.get("type") != "pci":
        return ""
    parts = [address.attributes.get(part, "") for part in ("domain", "bus", "slot", "function")]
    if not all(re.fullmatch(r"0x[0-9a-fA-F]{1,8}|[0-9]{1,9}", part) for part in parts):
        return ""
    domain_, bus, slot, function = (int(part, 16 if part.startswith("0x") else 10) for part in parts)
    return f"{domain_:04x}:{bus:02x}:{slot:02x}.{function:x}"
