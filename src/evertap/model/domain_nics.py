"""The NICs that a libvirt domain defines in its <metadata>: the definitions' schema, written in XML."""

from __future__ import annotations

import difflib
import re
from typing import Any, Final, get_type_hints

from evertap.model.domain import Domain
from evertap.model.domain_direct import number
from evertap.model.domain_xml import URI, Element, domain, interfaces, mac_of
from evertap.model.errors import DefinitionError
from evertap.model.nic import Nic, UplinkSpec, check_name, parse_nic

NICS: Final = f"{{{URI}}}nics"
NIC: Final = f"{{{URI}}}nic"
UPLINK: Final = f"{{{URI}}}uplink"
ORIGINAL: Final = f"{{{URI}}}original"  # the interface as it was before `adopt`

_TYPES: Final = get_type_hints(Nic)
# The name is the tap's, and libvirt knows the VM.
_ATTRIBUTES: Final = [field for field in Nic.__struct_fields__ if field not in ("name", "uplinks", "vm")]
_UPLINK: Final = UplinkSpec.__struct_fields__
_WORDS: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_UPLINK_HELP: Final = (
    "<evertap:uplink> with exactly one of name, mac, path and bridge, such as <evertap:uplink name='eth0'/>"
)


def nics_of(domain: Domain) -> tuple[dict[str, Nic], list[DefinitionError]]:
    """The NICs of a domain by name, as it runs or else as it will start; what is wrong with the others."""
    if domain.running and domain.live_xml:
        return nics_in(domain.live_xml, f"domain {domain.name} (live)", domain.name)
    if domain.config_xml:
        return nics_in(domain.config_xml, f"domain {domain.name} (configuration)", domain.name)
    return {}, []


def taps_of(domain: Domain) -> dict[str, Nic]:
    """The NICs whose taps have to exist: those of the running domain and those of its next start."""
    found: dict[str, Nic] = {}
    for xml in (domain.config_xml, domain.live_xml):
        if xml:
            found.update(nics_in(xml, f"domain {domain.name}", domain.name)[0])
    return found


def refused_nic(xml: str, problem: DefinitionError) -> str:
    """The name of the NIC that a problem of this description concerns; empty if that cannot be told."""
    found = re.match(r"nic\[([0-9a-f:]{17})\]", problem.field)
    present = interfaces(domain(xml, problem.file).root) if found else ()
    same = (each.get("target", "dev") for each in present if found and mac_of(each) == found.group(1))
    return next(same, "")


def wants_replug(domain: Domain) -> bool:
    """Whether the domain has asked for replug of its interfaces of type='direct'."""
    xml = domain.live_xml if domain.running and domain.live_xml else domain.config_xml
    try:
        nics = metadata_of(xml, f"domain {domain.name}") if xml else None
        return nics is not None and _replug(nics, "")
    except DefinitionError:
        return False  # nics_of tells


def metadata_of(xml: str, file: str) -> Element | None:
    """evertap's element in a domain's <metadata>; libvirt keeps one for each namespace (DefinitionError)."""
    return nics_element(domain(xml, file).root)


def nics_element(root: Element) -> Element | None:
    """evertap's element in the <metadata> of a domain."""
    metadata = root.first("metadata")
    return metadata.first(NICS) if metadata else None


def nics_in(xml: str, file: str, name: str) -> tuple[dict[str, Nic], list[DefinitionError]]:
    """The NICs in one description of the domain `name`. `file` stands for it in errors."""
    try:
        root = domain(xml, file).root
    except DefinitionError as problem:
        return {}, [problem]
    nics = nics_element(root)
    if nics is None:
        return {}, []
    problems = list(_strangers(nics, root, file))
    found: dict[str, Nic] = {}
    macs: set[str] = set()
    for place, element in enumerate(nics.all(NIC)):
        mac = element.attributes.get("mac", "").lower()
        try:
            if mac and mac in macs:
                raise DefinitionError(
                    file, f"nic[{mac}]", "stands in the <metadata> twice; the first one counts. Remove one"
                )
            macs.add(mac)
            nic = _nic(element, list(interfaces(root)), file, f"nic[{mac or place}]", name)
            if nic.name in found:
                raise DefinitionError(
                    file, f"nic[{mac}]", f'has the tap "{nic.name}", as another has. Rename one <target dev>'
                )
        except DefinitionError as problem:
            problems.append(problem)
        else:
            found[nic.name] = nic
    return found, problems


def _strangers(nics: Element, root: Element, file: str) -> list[DefinitionError]:
    """What stands around the NICs and should not."""
    problems: list[DefinitionError] = []
    try:
        _replug(nics, file)
        _known(nics.attributes, ["replug"], file, "nics")
    except DefinitionError as problem:
        problems.append(problem)
    others = [child for child in nics.children if child.tag != NIC]
    problems += [_unknown_element(child, "<evertap:nic>", file, "nics") for child in others]
    metadata = root.first("metadata")
    if metadata and len(metadata.all(NICS)) > 1:
        problems.append(
            DefinitionError(file, "nics", "stands in the <metadata> twice; the first one counts. Merge them")
        )
    return problems


def _replug(nics: Element, file: str) -> bool:
    text = nics.attributes.get("replug", "no")
    if text not in _WORDS:
        raise DefinitionError(file, "nics.replug", f'found "{text}"; allowed: "yes" or "no"')
    return _WORDS[text]


def _nic(element: Element, present: list[Element], file: str, field: str, domain_name: str) -> Nic:
    _known(element.attributes, _ATTRIBUTES, file, field)
    raw: dict[str, Any] = {key: _value(key, text) for key, text in element.attributes.items()}
    raw["uplinks"] = _uplinks(element, file, field)
    if raw.get("backend") == "macvtap":
        raise DefinitionError(
            file,
            f"{field}.backend",
            'found "macvtap"; allowed: "tap". A macvtap in a domain is defined in a file',
        )
    mac = element.attributes.get("mac", "").lower()
    if not mac:
        raise DefinitionError(
            file, f"{field}.mac", "missing; add it: the MAC address of one of the domain's interfaces"
        )
    interface = _interface(present, mac, file, field, domain_name)
    name = interface.get("target", "dev")
    check_name(name, file, field, "Rename it in the interface's <target dev>")
    _agree(raw, interface, file, field)
    try:
        return parse_nic(name, raw, file)
    except DefinitionError as problem:
        where = f"{field}.{problem.field}" if problem.field else field
        raise DefinitionError(file, where, problem.problem) from None


def _uplinks(element: Element, file: str, field: str) -> list[dict[str, str]]:
    for child in element.children:
        if child.tag not in (UPLINK, ORIGINAL):
            raise _unknown_element(child, "<evertap:uplink>", file, field)
    uplinks = element.all(UPLINK)
    if not uplinks:
        raise DefinitionError(file, field, f"has no uplink; add at least one {_UPLINK_HELP}")
    for place, uplink in enumerate(uplinks):
        where = f"{field}.uplinks[{place}]"
        _known(uplink.attributes, list(_UPLINK), file, where)
        if uplink.children:
            raise _unknown_element(uplink.children[0], "none", file, where)
        named = [key for key in uplink.attributes if key != "mode" and uplink.attributes[key]]
        if len(named) != 1:
            raise DefinitionError(
                file, where, f"found {' and '.join(named) or 'none of them'}; allowed: {_UPLINK_HELP}"
            )
    return [dict(uplink.attributes) for uplink in uplinks]


def _value(key: str, text: str) -> Any:
    """An attribute's text as TOML would give it. What does not look like its type stays text."""
    kind = _TYPES[key]
    if kind is bool:
        return _WORDS.get(text, text)
    if kind in (int, float) and re.fullmatch(r"-?[0-9]{1,9}", text):
        return int(text)
    if kind is float and re.fullmatch(r"-?[0-9]{1,9}\.[0-9]{1,9}", text):
        return float(text)
    return text


def _interface(present: list[Element], mac: str, file: str, field: str, domain_name: str) -> Element:
    """The interface that a NIC belongs to: a tap that libvirt leaves alone."""
    wanted = "<interface type='ethernet'> with <target dev='NAME' managed='no'/>"
    same = [each for each in present if mac_of(each) == mac]
    if not same:
        raise DefinitionError(
            file,
            field,
            f"no interface of the domain has this MAC address. Add an {wanted} and "
            f"<mac address='{mac}'/>, or remove the <evertap:nic>",
        )
    if len(same) > 1:
        raise DefinitionError(
            file, field, f"{len(same)} interfaces of the domain have this MAC address. Give each its own"
        )
    kind = same[0].attributes.get("type", "")
    if kind == "direct":
        raise DefinitionError(
            file,
            field,
            f"found <interface type='direct'>, which is libvirt's own macvtap; allowed: {wanted}. "
            f"Remove the <evertap:nic> and run: evertap adopt {domain_name}",
        )
    if kind != "ethernet":
        raise DefinitionError(file, field, f"found <interface type='{kind}'>; allowed: {wanted}")
    target = same[0].first("target")
    if target is None or not target.attributes.get("dev"):
        raise DefinitionError(
            file, field, "the interface has no <target>. Add <target dev='NAME' managed='no'/> to it"
        )
    if target.attributes.get("managed") != "no":
        raise DefinitionError(
            file,
            field,
            f"the interface's <target dev='{target.attributes['dev']}'> is without managed='no', so libvirt "
            "would set up the tap itself. Add managed='no' to it",
        )
    return same[0]


def _agree(raw: dict[str, Any], interface: Element, file: str, field: str) -> None:
    """Queues and MTU follow the interface's: libvirt cannot open a tap with another number of queues."""
    queues = number(interface.get("driver", "queues")) or 1
    if raw.setdefault("queues", queues) != queues:
        raise DefinitionError(
            file,
            f"{field}.queues",
            f"found {raw['queues']}, but the interface has {queues} (<driver queues>). Remove the attribute: "
            "the interface's number is used",
        )
    mtu = number(interface.get("mtu", "size"))
    if mtu and isinstance(raw.setdefault("mtu", mtu), int) and raw["mtu"] < mtu:
        raise DefinitionError(
            file,
            f"{field}.mtu",
            f"found {raw['mtu']}, but the interface tells the guest {mtu} (<mtu size>). Remove the "
            "attribute: the interface's MTU is used",
        )


def _known(found: dict[str, str], allowed: list[str], file: str, field: str) -> None:
    for name in found:
        if name in allowed:
            continue
        near = difflib.get_close_matches(name.rpartition("}")[2], allowed, 1)
        hint = f'did you mean "{near[0]}"? ' if near else ""
        raise DefinitionError(
            file, f"{field}.{name}", f"unknown attribute; {hint}allowed: {', '.join(allowed)}"
        )


def _unknown_element(child: Element, allowed: str, file: str, field: str) -> DefinitionError:
    uri, _, local = child.tag.rpartition("}")
    note = "" if uri == "{" + URI else f" (not in the namespace {URI})"
    return DefinitionError(file, field, f"unknown element <{local}>{note}; allowed: {allowed}. Remove it")
