"""Pieces of a domain's XML that evertap hands to libvirt."""

from __future__ import annotations

import re

from evertap.model.domain_nics import nics_element
from evertap.model.domain_xml import URI, attribute, domain
from evertap.model.nic import Nic


def nic_interface_xml(nic: Nic) -> str:
    """The `<interface>` on the NIC's tap, as `attach` plugs it."""
    parts = [
        f"<mac {attribute('address', nic.mac)}/>",
        f"<target {attribute('dev', nic.name)} managed='no'/>",
        "<model type='virtio'/>",
    ]
    if nic.queues > 1:
        parts.append(f"<driver name='vhost' {attribute('queues', str(nic.queues))}/>")
    if nic.mtu != 1500:
        parts.append(f"<mtu {attribute('size', str(nic.mtu))}/>")
    return f"<interface type='ethernet'>{''.join(parts)}</interface>"


def metadata_xml(xml: str) -> str:
    """evertap's element in a domain's <metadata>, as virDomainSetMetadata takes it; empty if there is none.

    That is without the namespace, which libvirt puts to every element that has none.
    """
    document = domain(xml, "the domain's XML")
    nics = nics_element(document.root)
    if nics is None:
        return ""
    text = document.source(nics)
    prefix = text[1:].partition("nics")[0]
    if prefix:
        text = text.replace(f"<{prefix}", "<").replace(f"</{prefix}", "</")
    return re.sub(rf"\sxmlns(:\w+)?=['\"]{URI}['\"]", "", text, count=1)
