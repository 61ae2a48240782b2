"""The QEMU command line arguments for a NIC."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Final

from evertap.model.nic import Nic
from evertap.model.vmm import card_port, host_netdev, hub_id, qemu_id, sink_port


def qemu_arguments(nic: Nic, *, vhost: bool, descriptors: Sequence[int] = ()) -> list[str]:
    """`-netdev` and `-device` for the NIC (qemu(1)).

    `vhost`: the host's kernel has vhost-net. `descriptors`: the open queues of the tap, for a QEMU that may
    not open it; otherwise QEMU opens it by name.
    """
    ident = qemu_id(nic.name)
    device = f"virtio-net-pci,id={ident},mac={nic.mac}"
    if nic.mtu != 1500:
        device += f",host_mtu={nic.mtu}"
    if nic.backend == "macvtap":
        hub = hub_id(nic.name)
        ports = [f"hubport,id={port(nic.name)},hubid={hub}" for port in (card_port, sink_port)]
        return ["-netdev", ports[0], "-netdev", ports[1], "-device", f"{device},netdev={card_port(nic.name)}"]
    netdev = f"tap,id={host_netdev(nic.name)}"
    if descriptors:
        key = "fds" if len(descriptors) > 1 else "fd"
        netdev += f",{key}={':'.join(map(str, descriptors))}"
    else:
        # A comma is QEMU's separator; doubled it is itself.
        netdev += f",ifname={nic.name.replace(',', ',,')},script=no,downscript=no"
        if nic.queues > 1:
            netdev += f",queues={nic.queues}"
    if nic.queues > 1:
        device += f",mq=on,vectors={2 * nic.queues + 2}"
    if vhost:
        netdev += ",vhost=on"
    return ["-netdev", netdev, "-device", f"{device},netdev={host_netdev(nic.name)}"]


_QMP_END: Final = ",server=on,wait=off"


def qmp_arguments(path: str) -> list[str]:
    """A QMP socket of evertap's own: one serves one client."""
    ident = f"evertap-qmp-{zlib.crc32(path.encode('utf-8', 'surrogateescape')):08x}"
    chardev = f"socket,id={ident},path={path.replace(',', ',,')}{_QMP_END}"
    return ["-chardev", chardev, "-mon", f"chardev={ident},mode=control"]


def qmp_sockets(arguments: Sequence[str]) -> list[str]:
    """The paths of evertap's own QMP sockets, which QEMU will make, among its arguments."""
    pattern = re.compile(rf"socket,id=evertap-qmp-\w+,path=(.*){_QMP_END}", re.DOTALL)
    found = (pattern.fullmatch(each) for each in arguments)
    return [match.group(1).replace(",,", ",") for match in found if match]
