"""A NIC's device in a running QEMU: attach, detach, its link and its announcements."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from evertap.model.errors import ActionError
from evertap.model.nic import Nic
from evertap.model.vmm import card_port, host_netdev, hub_id, qemu_id, sink_port
from evertap.vmm import reading
from evertap.vmm.connection import RefusedError
from evertap.vmm.session import Session

VHOST_NET = "/dev/vhost-net"

# Times of QEMU's own announcements after a migration, in ms (qapi/migration.json, announce-*).
_ANNOUNCE = {"initial": 50, "max": 550, "rounds": 5, "step": 100}

# What QEMU says of a bus on which another one may do (pci_qdev_realize and do_pci_register_device in
# hw/pci/pci.c, qdev_device_add in softmmu/qdev-monitor.c).
_OTHER_BUS = re.compile(r"hotplug|hot-plug|in use by|occupied|not available for|bus.* is full", re.IGNORECASE)


async def set_link(session: Session, nic: str, up: bool) -> None:
    """The carrier of the guest's card. By the card's id: a hub would keep it from the guest."""
    await session.execute("set_link", {"name": qemu_id(nic), "up": up})


async def announce(session: Session, nic: str) -> None:
    """announce-self for this card alone."""
    device = qemu_id(nic)
    await session.execute("announce-self", {**_ANNOUNCE, "interfaces": [device], "id": device})


async def attach(session: Session, nic: Nic, descriptors: Sequence[int], vhost: bool) -> None:
    """Plug the card, on its tap if descriptors are given, else on a hub without uplink."""
    device = qemu_id(nic.name)
    async with session.change():
        if device in session.devices:
            raise ActionError(
                f"device_add {device}: this QEMU has a device of that id already. Detach it first"
            )
        for left in _netdevs(session, nic.name):  # of a device that departed while nobody waited
            await session.remove_netdev(left)
        if descriptors:
            netdev = await _add_tap(session, nic, descriptors, vhost)
        else:
            netdev = card_port(nic.name)
            for port in (netdev, sink_port(nic.name)):
                await session.add_netdev(port, type="hubport", hubid=hub_id(nic.name))
        await _add_device(session, device, _properties(nic, netdev, multiqueue=bool(descriptors)))
        session.devices.add(device)


async def detach(session: Session, nic: Nic) -> None:
    """Unplug the card, and remove its netdevs once the guest has let go of it."""
    device = qemu_id(nic.name)
    # The event may come before the answer.
    with session.departure(device) as left:
        await _ask_to_leave(session, device, left)
        try:
            async with asyncio.timeout(session.limits.unplug):
                trouble = await left
        except TimeoutError:
            trouble = f"the guest has not let go of it within {session.limits.unplug:g} s"
    if trouble:
        raise ActionError(f"device_del {device}: {trouble}. Its netdevs stay; detach it again later")
    async with session.change():
        session.devices.discard(device)
        for netdev in _netdevs(session, nic.name):
            await session.remove_netdev(netdev)


async def _ask_to_leave(session: Session, device: str, left: asyncio.Future[str]) -> None:
    async with session.lock:
        try:
            await session.execute("device_del", {"id": device})
        except RefusedError as error:
            if error.missing and not left.done():
                left.set_result("")
            elif not error.missing and "in the process of unplug" not in error.said:
                raise


async def _add_tap(session: Session, nic: Nic, descriptors: Sequence[int], vhost: bool) -> str:
    """The netdev on the tap; with vhost-net if that can be had."""
    netdev = host_netdev(nic.name)
    prefix = qemu_id(nic.name)
    if vhost:
        with _open_vhost(len(descriptors)) as helpers:
            if helpers:
                with suppress(RefusedError):
                    arguments = await _pass(session, f"{prefix}-fd", descriptors, "fd")
                    arguments |= await _pass(session, f"{prefix}-vhost", helpers, "vhostfd")
                    # Without vhostforce QEMU 7.2 aborts (assertion in net/net.c) if it cannot use vhost-net.
                    await session.add_netdev(netdev, type="tap", vhost=True, vhostforce=True, **arguments)
                    return netdev
    # Anew, since a netdev_add that fails closes what it was given.
    arguments = await _pass(session, f"{prefix}-fd", descriptors, "fd")
    await session.add_netdev(netdev, type="tap", vhost=False, **arguments)
    return netdev


async def _pass(session: Session, prefix: str, descriptors: Sequence[int], key: str) -> dict[str, str]:
    """Pass descriptors; gives netdev_add's argument that names them."""
    names = [
        await session.pass_descriptor(f"{prefix}{queue}", descriptor)
        for queue, descriptor in enumerate(descriptors)
    ]
    return {key if len(names) == 1 else f"{key}s": ":".join(names)}


@contextmanager
def _open_vhost(count: int) -> Iterator[list[int]]:
    """vhost-net for each queue, opened by us, since QEMU may not be allowed to; none if it is not there."""
    descriptors: list[int] = []
    try:
        with suppress(OSError):
            for _ in range(count):
                descriptors.append(os.open(VHOST_NET, os.O_RDWR | os.O_CLOEXEC))  # noqa: PERF401
        yield descriptors if len(descriptors) == count else []
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _properties(nic: Nic, netdev: str, multiqueue: bool) -> dict[str, Any]:
    """As arguments.qemu_arguments; with JSON's types, since newer QEMUs do not convert any more."""
    properties: dict[str, Any] = {"mac": nic.mac, "netdev": netdev}
    if nic.mtu != 1500:
        properties["host_mtu"] = nic.mtu
    if multiqueue and nic.queues > 1:
        properties |= {"mq": True, "vectors": 2 * nic.queues + 2}
    return properties


async def _add_device(session: Session, device: str, properties: dict[str, Any]) -> None:
    """device_add; where the first bus allows no hotplug (pcie.0 of q35), behind a free root port."""
    arguments = {"driver": "virtio-net-pci", "id": device, **properties}
    try:
        await session.execute("device_add", arguments)
        return
    except RefusedError as error:
        if "hotplug" not in error.said:
            raise
        said = error.said
    for port in reading.free_ports(await session.execute("query-pci")):
        try:
            # The only slot that guests look at behind such a port. QEMU 7.2 would use others; and a port that
            # the guest's firmware has not seen yet appears free.
            await session.execute("device_add", {**arguments, "bus": port, "addr": "0"})
            return
        except RefusedError as error:
            if not _OTHER_BUS.search(error.said):
                raise
    raise ActionError(
        f"device_add {device}: {said}, and no PCI Express port that does is free. Start QEMU with a "
        "`-device pcie-root-port,id=NAME,chassis=NUMBER` for each card that is to be attached"
    )


def _netdevs(session: Session, nic: str) -> list[str]:
    """All netdevs of the NIC; hub ports before what is on them."""
    found: list[str] = []
    for kinds in (r"card|sink|hub\d+", r"host|up\d+"):
        pattern = re.compile(re.escape(qemu_id(nic)) + f"-({kinds})")
        found += sorted(filter(pattern.fullmatch, session.netdevs))
    return found
