"""A domain's own description, as libvirt hands it to its hooks."""

from __future__ import annotations

from evertap.model.domain import Domain
from evertap.model.domain_xml import domain as parse
from evertap.model.domain_xml import interfaces
from evertap.model.errors import DefinitionError


def parse_domain(xml: str) -> Domain:
    """The domain that is about to start with this description (DefinitionError if it is none)."""
    root = parse(xml, "the domain's XML").root
    uuid, name = (root.first(tag) for tag in ("uuid", "name"))
    if uuid is None or name is None or not uuid.text.strip():
        raise DefinitionError("the domain's XML", "", "has no <uuid> or <name>, as libvirt always gives them")
    return Domain(uuid=uuid.text.strip(), name=name.text.strip(), config_xml=xml)


def tap_names(xml: str) -> list[str]:
    """The taps that a domain's description expects to find (DefinitionError if it is none)."""
    root = parse(xml, "the domain's XML").root
    return [
        interface.get("target", "dev")
        for interface in interfaces(root)
        if interface.attributes.get("type") == "ethernet" and interface.get("target", "managed") == "no"
    ]
