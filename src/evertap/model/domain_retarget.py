"""The change of a NIC's uplinks in a domain's metadata that keeps the rest of it."""

from __future__ import annotations

from collections.abc import Sequence

from evertap.model.domain_xml import URI, Changes, Document, Element, attributes
from evertap.model.errors import DefinitionError


def with_uplinks(metadata: str, mac: str, uplinks: Sequence[dict[str, str] | str], file: str) -> str:
    """evertap's element with other uplinks for the NIC with that MAC address (DefinitionError).

    `metadata` is what virDomainGetMetadata gives, the result what virDomainSetMetadata takes: both without
    the namespace, which libvirt takes away and puts back.
    """
    document = Document(metadata, file)
    nics = (each for each in document.root.children if _is(each, "nic"))
    nic = next((each for each in nics if each.attributes.get("mac", "").lower() == mac.lower()), None)
    old = [child for child in nic.children if _is(child, "uplink")] if nic else []
    if not old:
        raise DefinitionError(file, f"nic[{mac.lower()}]", "is not there. Define the NIC first")
    prefix = document.source(old[0])[1:].partition("uplink")[0]
    texts = [f"<{prefix}uplink {attributes(_table(uplink))}/>" for uplink in uplinks]
    changes = Changes(document)
    changes.replace(old[0], "".join(texts))
    for each in old[1:]:
        changes.remove(each)
    return changes.result()


def _is(element: Element, local: str) -> bool:
    return element.tag in (local, f"{{{URI}}}{local}")


def _table(uplink: dict[str, str] | str) -> dict[str, str]:
    return {"name": uplink} if isinstance(uplink, str) else uplink
