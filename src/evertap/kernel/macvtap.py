"""Opens a macvtap's character device (drivers/net/tap.c), and makes sure that it is the one."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from evertap.kernel.rtnetlink import Rtnetlink

_TUNSETIFF: Final = 0x400454CA
_TUNGETIFF: Final = 0x800454D2
_SIOCGIFHWADDR: Final = 0x8927
_FLAGS: Final = 0x0002 | 0x1000 | 0x4000  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
_IFREQ: Final = struct.Struct("=16sH22x")
_MAC: Final = slice(18, 24)  # of a struct ifreq with a hardware address


def open_macvtap(index: int, rtnetlink: Rtnetlink) -> int:
    """Open /dev/tapINDEX with vnet headers, for a VMM. Raises OSError.

    devtmpfs makes the node in the initial /dev for the devices of all namespaces, and an index is unique in
    one namespace only: so the descriptor is asked for its interface's name and MAC, which must be our link's.
    """
    link = rtnetlink.get_link(index)
    if link is None:
        raise OSError(errno.ENODEV, f"there is no interface {index}")
    path = Path(f"/dev/tap{index}")
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(b"", _FLAGS))
        name = fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size))[:16].rstrip(b"\0")
        mac = fcntl.ioctl(fd, _SIOCGIFHWADDR, bytes(_IFREQ.size))[_MAC].hex(":")
        if (name, mac) != (os.fsencode(link.name), link.mac):
            raise OSError(errno.ENXIO, f"{path} belongs to another interface than {link.name}")
    except BaseException:
        os.close(fd)
        raise
    return fd
