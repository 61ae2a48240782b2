"""The QEMU command line arguments for a NIC."""

from __future__ import annotations

import re
import zlib

from evertap.model.nic import Nic


def qemu_id(name: str) -> str:
    """The NIC's id in QEMU: its name, made to fit QEMU's rules for ids (id_wellformed in util/id.c)."""
    fitted = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    if fitted != name:
        fitted += f"-{zlib.crc32(name.encode('utf-8', 'surrogateescape')):08x}"
    return f"evertap-{fitted}"


def qemu_arguments(nic: Nic, *, vhost: bool) -> list[str]:
    """`-netdev` and `-device` for the NIC on its tap (qemu(1)); `vhost`: the host's kernel has vhost-net."""
    ident = qemu_id(nic.name)
    ifname = nic.name.replace(",", ",,")  # QEMU's escape
    netdev = f"tap,id={ident}-host,ifname={ifname},script=no,downscript=no"
    device = f"virtio-net-pci,id={ident},netdev={ident}-host,mac={nic.mac}"
    if nic.queues > 1:
        netdev += f",queues={nic.queues}"
        device += f",mq=on,vectors={2 * nic.queues + 2}"
    if vhost:
        netdev += ",vhost=on"
    if nic.mtu != 1500:
        device += f",host_mtu={nic.mtu}"
    return ["-netdev", netdev, "-device", device]
