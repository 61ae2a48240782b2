"""The backend macvtap in a libvirt domain: its hub is reached by the monitor, which libvirt lends."""

from __future__ import annotations

import re
from typing import Final

from evertap.engine.ports import Domains
from evertap.model.vmm import hub_id, plugged, qemu_id, uplink_netdev, uplink_port

_IDS: Final = re.compile(r"\bevertap-[A-Za-z0-9._-]+")


async def read_parts(domains: Domains, uuid: str) -> frozenset[str]:
    """The ids of evertap's parts in the domain's QEMU (ActionError)."""
    answer = await domains.monitor(uuid, "human-monitor-command", {"command-line": "info network"})
    return frozenset(_IDS.findall(str(answer)))


async def plug(
    domains: Domains, uuid: str, nic: str, index: int, descriptor: int, parts: frozenset[str]
) -> None:
    """Join an open macvtap to the NIC's hub, in the place of the one there (ActionError).

    What is left half done the next plan takes off.
    """
    name = f"{qemu_id(nic)}-fd"
    netdev = uplink_netdev(nic, index)
    await domains.monitor(uuid, "getfd", {"fdname": name}, [descriptor])
    await domains.monitor(uuid, "netdev_add", {"type": "tap", "id": netdev, "fd": name, "vhost": False})
    for other in plugged(nic, parts) - {index}:
        if uplink_port(nic, other) in parts:
            await domains.monitor(uuid, "netdev_del", {"id": uplink_port(nic, other)})
    # A netdev that was made just now has no peer yet: QEMU would abort if it had.
    port = {"type": "hubport", "id": uplink_port(nic, index), "hubid": hub_id(nic), "netdev": netdev}
    await domains.monitor(uuid, "netdev_add", port)


async def unplug(domains: Domains, uuid: str, nic: str, index: int, parts: frozenset[str]) -> None:
    """Take a macvtap off the NIC's hub, as much of it as is there (ActionError)."""
    for part in (uplink_port(nic, index), uplink_netdev(nic, index)):
        if part in parts:
            await domains.monitor(uuid, "netdev_del", {"id": part})
