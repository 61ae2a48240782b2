"""Whether a running domain's type='direct' interface has to be plugged anew, and as what."""

from __future__ import annotations

from evertap.model.domain_direct import DirectInterface, is_generated
from evertap.model.domain_xml import Changes, Document, attribute
from evertap.model.links import ARPHRD_ETHER, Link
from evertap.model.table import STACKED_ON_UPLINK, LinkTable


def needs_replug(interface: DirectInterface, links: LinkTable) -> bool:
    """Whether the interface's macvtap is gone while the interface it stood on is back and usable.

    False wherever that is not certain: replugging is seen by the guest.
    """
    return is_lost(interface, links) and is_back(interface, links)


def is_lost(interface: DirectInterface, links: LinkTable) -> bool:
    """Whether no device can be the interface's macvtap any more."""
    if not interface.target or not interface.mac:
        return False  # libvirt is not done with it yet
    named = links.named(interface.target)
    if named and _is_macvtap(named) and (named.mac == interface.mac or interface.trusts_guest):
        return False  # the guest may have given it another MAC, if it is trusted
    source = links.named(interface.source)
    # Renamed by somebody it still works; and the kernel would refuse a second one beside it.
    return not any(
        _is_macvtap(link) and (source is None or link.lower == source.index)
        for link in links.with_mac(interface.mac)
    )


def is_back(interface: DirectInterface, links: LinkTable) -> bool:
    """Whether libvirt could make a macvtap on the interface's source now."""
    source = links.named(interface.source)
    # A port of a bridge or bond takes no macvtap (netdev_rx_handler_register).
    return source is not None and source.up and source.type == ARPHRD_ETHER and not source.master


def _is_macvtap(link: Link) -> bool:
    return link.kind in STACKED_ON_UPLINK


def device_xml(interface: DirectInterface) -> str:
    """The element to detach and attach: the same device for the guest, without what lasts a run only."""
    document = Document(interface.xml, f"interface {interface.mac}")
    root, changes = document.root, Changes(document)
    if source := root.first("source"):
        if network := source.attributes.get("network"):
            # The network chose the interface, and shall do so again.
            group = source.attributes.get("portgroup")
            more = f" {attribute('portgroup', group)}" if group else ""
            changes.replace(source, f"<source {attribute('network', network)}{more}/>")
            changes.set_attributes(root, {"type": "network"})
        else:
            changes.set_attributes(source, {"portid": None})
    for child in root.children:
        name = child.attributes.get("name", "")
        if (
            (child.tag == "target" and is_generated(child.attributes.get("dev", "")))
            or (child.tag == "alias" and not name.startswith("ua-"))
            or child.tag == "backenddomain"
        ):
            changes.remove(child)
        elif child.tag == "mac":
            changes.set_attributes(child, {"currentAddress": None})
    return changes.result()
