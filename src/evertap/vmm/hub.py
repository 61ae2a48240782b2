"""The backend macvtap: a NIC's device is on a hub of QEMU, and macvtaps are plugged into that and out."""

from __future__ import annotations

from evertap.model.errors import ActionError
from evertap.model.vmm import hub_id, plugged, qemu_id, uplink_netdev, uplink_port
from evertap.vmm.session import Session


async def plug(session: Session, nic: str, index: int, descriptor: int) -> None:
    """Join an open macvtap to the NIC's hub, in the place of the one there; two would make a loop of it."""
    netdev, port = uplink_netdev(nic, index), uplink_port(nic, index)
    async with session.change():
        if {netdev, port} <= session.netdevs:
            raise ActionError(f"netdev_add {port}: it is on the NIC's hub already")
        for half in {netdev, port} & session.netdevs:
            await session.remove_netdev(half)
        # The name is the NIC's, not the macvtap's: a descriptor that was left behind is replaced, and closed.
        name = await session.pass_descriptor(f"{qemu_id(nic)}-fd", descriptor)
        await session.add_netdev(netdev, type="tap", fd=name, vhost=False)
        for other in plugged(nic, session.netdevs) - {index}:
            await session.remove_netdev(uplink_port(nic, other))
        # QEMU aborts (an assertion in net/net.c) if the netdev has a peer. This one cannot have any:
        # netdev_add refuses an id that is in use, so it was made just now, and by us.
        await session.add_netdev(port, type="hubport", hubid=hub_id(nic), netdev=netdev)


async def unplug(session: Session, nic: str, index: int) -> None:
    """Take a macvtap off the NIC's hub."""
    async with session.change():
        await session.remove_netdev(uplink_port(nic, index))
        await session.remove_netdev(uplink_netdev(nic, index))
