"""A domain's type='direct' interfaces turned into evertap's, and back into exactly what they were."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import msgspec

from evertap.model.domain_direct import DirectInterface, is_direct, is_generated, read
from evertap.model.domain_nics import NIC, ORIGINAL, nics_element
from evertap.model.domain_xml import (
    URI,
    Changes,
    Document,
    Element,
    attribute,
    attributes,
    domain,
    interfaces,
    mac_of,
)
from evertap.model.errors import DefinitionError
from evertap.model.nic import parse_nic

_FILE: Final = "the domain's XML"
_PASSWORD: Final = re.compile(r"\b(passwd|password)=(?:'[^']*'|\"[^\"]*\")")
_BEFORE_METADATA: Final = ("name", "uuid", "genid", "title", "description")
_NAME_MAX: Final = 15  # IFNAMSIZ - 1, if.h


class Adoption(msgspec.Struct, frozen=True):
    """A domain's configuration rewritten, and what to tell of it. Every text names its interface by MAC."""

    xml: str  # the one that was given, if `nics` is empty
    nics: dict[str, str]  # by MAC address, what was rewritten: the name of the NIC (of the tap)
    changes: list[str]  # what is different from now on
    losses: list[str]  # what cannot be kept
    left: list[str]  # interfaces that stay as they are, and why


def adopt(config_xml: str, names: Collection[str], mtus: Mapping[str, int] | None = None) -> Adoption:
    """Turn every type='direct' interface of a domain into one of evertap's (DefinitionError).

    `names` are taken: of NICs and of host interfaces. `mtus` are those of the host's interfaces: a macvtap
    has its uplink's, a NIC the one that it is given.
    """
    document = domain(config_xml, _FILE)
    root, changes = document.root, Changes(document)
    told = Adoption(config_xml, {}, [], [], [])
    taken = {*names, *(each.get("target", "dev") for each in interfaces(root))}
    nics = nics_element(root)
    known = {each.attributes.get("mac", "").lower() for each in nics.all(NIC)} if nics else set()
    elements: list[list[str]] = []
    for element in interfaces(root):
        interface = read(document, element)
        if not is_direct(element):
            if element.attributes.get("type") == "network":
                told.left.append(
                    f"interface {interface.mac}: type='network': where it leads is decided by the network "
                    f"\"{interface.network}\". If that is one of macvtaps, make it type='direct' first"
                )
            continue
        name = _free_name(root, taken)
        fields = _fields(interface, mtus or {})
        if problem := _obstacle(name, interface, fields, known):
            told.left.append(f"interface {interface.mac or 'without a MAC address'}: {problem}")
            continue
        taken.add(name)
        known.add(interface.mac)
        told.nics[interface.mac] = name
        told.changes.extend(f"interface {interface.mac}: {text}" for text in _news(name, interface, fields))
        told.losses.extend(f"interface {interface.mac}: {text}" for text in _lost(element))
        elements.append(_nic_lines(interface, fields))
        _rewrite(element, name, changes)
    if not told.nics:
        return told
    _add(root, nics, elements, document, changes)
    return msgspec.structs.replace(told, xml=changes.result())


def _free_name(root: Element, taken: Collection[str]) -> str:
    """The domain's name, cut so that a number fits: web0, web1; db1-0 for the domain db1."""
    label = root.first("name")
    base = re.sub(r"[^A-Za-z0-9_-]+", "", label.text if label else "") or "vm"
    if is_generated(base):
        base = f"vm-{base}"  # libvirt blanks out such names
    number = 0
    while True:
        tail = f"-{number}" if base[-1].isdigit() else str(number)
        if (name := base[: _NAME_MAX - len(tail)] + tail) not in taken:
            return name
        number += 1


def _fields(interface: DirectInterface, mtus: Mapping[str, int]) -> dict[str, str]:
    """The NIC's fields, as attributes."""
    fields = {"mac": interface.mac, "mode": interface.mode}
    if interface.trusts_guest:
        fields |= {"multicast": "guest", "spoof_check": "false"}
    elif interface.mode == "passthru":
        fields["spoof_check"] = "false"  # such an uplink is promiscuous: the guest may well bridge
    mtu = interface.mtu or mtus.get(interface.source, 1500)
    if mtu != 1500:
        fields["mtu"] = str(mtu)
    return fields


def _obstacle(name: str, interface: DirectInterface, fields: Mapping[str, str], known: set[str]) -> str:
    if interface.network:
        return f'the network "{interface.network}" chose its interface, so it is not the domain\'s to change'
    if interface.mac in known:
        return "the <metadata> or the domain has another NIC with this MAC address. Remove one of them"
    raw: dict[str, Any] = {
        "mac": interface.mac,
        "uplinks": [interface.source],
        "mode": interface.mode,
        "queues": interface.queues,
        "mtu": int(fields.get("mtu", "1500")),
    }
    try:
        parse_nic(name, raw, "")
    except DefinitionError as problem:
        return str(problem)
    return ""


def _news(name: str, interface: DirectInterface, fields: Mapping[str, str]) -> Iterator[str]:
    yield f'becomes NIC "{name}" with uplink {interface.source} in mode {interface.mode}'
    if interface.trusts_guest:
        yield 'trustGuestRxFilters=\'yes\' becomes multicast="guest" and spoof_check="false"'
    elif "spoof_check" not in fields:
        yield (
            "frames that bear another source MAC address than the NIC's are dropped from now on; "
            'spoof_check="false" lets them pass'
        )
    if interface.target and not is_generated(interface.target):
        yield f'the host\'s device is "{name}" instead of "{interface.target}"'


def _lost(interface: Element) -> Iterator[str]:
    """What libvirt refuses on type='ethernet' (virDomainNetDefParseXML, virDomainActualNetDefValidate)."""
    if port := interface.first("virtualport"):
        kind = port.attributes.get("type", "")
        yield f"<virtualport type='{kind}'>: libvirt refuses it there; the switch is told no profile"
    if interface.first("vlan"):
        yield (
            "<vlan>: libvirt refuses it there. Give the uplink its VLAN on the host: a VLAN interface, or "
            "`ip link set PF vf N vlan ID`"
        )
    bandwidth = interface.first("bandwidth")
    if bandwidth and bandwidth.first("outbound"):
        yield (
            "<bandwidth>'s <outbound>: libvirt's limiter would stand where evertap's program takes the "
            "guest's frames (a limit on <inbound> stays)"
        )
    if interface.first("coalesce"):
        yield "<coalesce>: libvirt refuses it there"


def _rewrite(interface: Element, name: str, changes: Changes) -> None:
    changes.set_attributes(interface, {"type": "ethernet", "trustGuestRxFilters": None})
    for child in interface.children:
        if child.tag == "source":
            changes.replace(child, f"<target {attribute('dev', name)} managed='no'/>")
        elif child.tag in ("target", "virtualport", "vlan", "coalesce"):
            changes.remove(child)
        elif child.tag == "bandwidth" and (outbound := child.first("outbound")):
            changes.remove(outbound if child.first("inbound") else child)


def _nic_lines(interface: DirectInterface, fields: Mapping[str, str]) -> list[str]:
    # As text: libvirt lays out elements anew, and `virsh metadata` takes them into evertap's namespace.
    original = interface.xml.replace("]]>", "]]]]><![CDATA[>")
    return [
        f"<evertap:nic {attributes(fields)}>",
        f"  <evertap:uplink {attributes({'name': interface.source})}/>",
        f"  <evertap:original><![CDATA[{original}]]></evertap:original>",
        "</evertap:nic>",
    ]


def _add(
    root: Element, nics: Element | None, elements: list[list[str]], document: Document, changes: Changes
) -> None:
    """Put the NICs into the <metadata>, which is made if need be."""
    lines = [line for element in elements for line in element]
    if nics and not nics.empty:
        if not document.source(nics).startswith("<evertap:"):
            bound = f"<evertap:nic {attributes({'xmlns:evertap': URI})} "
            lines = [line.replace("<evertap:nic ", bound, 1) for line in lines]
        changes.append(nics, "\n".join(" " * 6 + line for line in lines))
        return
    given = nics.attributes if nics else {}
    head = attributes({"xmlns:evertap": URI, **given})
    block = "\n".join([f"<evertap:nics {head}>", *(" " * 6 + line for line in lines), "    </evertap:nics>"])
    metadata = root.first("metadata")
    if nics:
        changes.replace(nics, block)
    elif metadata and not metadata.empty:
        changes.append(metadata, "    " + block)
    elif metadata:
        changes.replace(metadata, f"<metadata>\n    {block}\n  </metadata>")
    else:
        before = [child for child in root.children if child.tag in _BEFORE_METADATA]
        text = f"  <metadata>\n    {block}\n  </metadata>"
        place = before[-1] if before else root.children[0]
        changes.after(place, text)


def release(xml: str) -> Adoption:
    """Give back the interfaces that `adopt` has rewritten, as they were (DefinitionError).

    Whatever else was changed since is kept; an empty <metadata> is taken out.
    """
    document = domain(xml, _FILE)
    root, changes = document.root, Changes(document)
    told = Adoption(xml, {}, [], [], [])
    nics = nics_element(root)
    done: list[Element] = []
    for nic in nics.all(NIC) if nics else ():
        mac = nic.attributes.get("mac", "").lower()
        original = nic.first(ORIGINAL)
        if original is None:
            told.left.append(f"interface {mac}: it was not adopted, so there is nothing to give back")
            continue
        current = [each for each in interfaces(root) if mac_of(each) == mac]
        if len(current) > 1 or not _is_interface(original.text.strip()):
            told.left.append(f"interface {mac}: which it was cannot be told. Correct the <metadata> by hand")
            continue
        done.append(nic)
        if not current:
            told.losses.append(f"interface {mac}: it was removed from the domain since, and stays so")
            continue
        changes.replace(current[0], original.text.strip())
        told.nics[mac] = current[0].get("target", "dev")
        told.changes.append(f"interface {mac}: is what it was before")
    if nics is None or not done:
        return told
    _take_out(root, nics, done, document, changes)
    return msgspec.structs.replace(told, xml=changes.result())


def _is_interface(text: str) -> bool:
    try:
        return Document(text, "").root.tag == "interface"
    except DefinitionError:
        return False


def _take_out(
    root: Element, nics: Element, done: list[Element], document: Document, changes: Changes
) -> None:
    """Remove NICs from the <metadata>, and all around them that would be empty."""
    target: list[Element] = done
    if _holds_only(document, nics, done) and not nics.attributes:
        metadata = root.first("metadata")
        assert metadata is not None
        target = [metadata if _holds_only(document, metadata, [nics]) else nics]
    for element in target:
        changes.remove(element)


def _holds_only(document: Document, outer: Element, inner: list[Element]) -> bool:
    """Whether nothing but these stands in the element, no comment either."""
    size = len(document.data[outer.opened : outer.closing].translate(None, b" \t\r\n"))
    return size == sum(
        len(document.data[each.start : each.end].translate(None, b" \t\r\n")) for each in inner
    )


def difference(before: str, after: str) -> str:
    """What `adopt` or `release` would change, as a unified diff without passwords; empty if nothing."""
    old, new = (_PASSWORD.sub(r"\1='...'", text).splitlines() for text in (before, after))
    lines = difflib.unified_diff(old, new, "now", "next start", lineterm="")
    return "".join(f"{line}\n" for line in lines)
