"""Persistent taps, by ioctl(2) on /dev/net/tun (Documentation/networking/tuntap.rst, linux/if_tun.h)."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from typing import Final

DEVICE: Final = "/dev/net/tun"

_TUNSETIFF: Final = 0x400454CA
_TUNSETPERSIST: Final = 0x400454CB
_TUNSETOWNER: Final = 0x400454CC
_TUNSETIFINDEX: Final = 0x400454DA

_IFF_TAP: Final = 0x0002
_IFF_MULTI_QUEUE: Final = 0x0100
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_IFF_TUN_EXCL: Final = 0x8000

_IFREQ: Final = struct.Struct("=16sH22x")


def create_tap(name: str, queues: int = 1, index: int | None = None) -> int:
    """Make a tap with vnet headers; it lasts as long as the descriptor given back, unless `persist`ed.

    `queues` above 1 makes it a multi-queue tap; each further queue is opened with `open_tap`. `index` chooses
    its ifindex. Raises FileExistsError for a taken name; OSError: EBUSY for a taken index, EINVAL for a name
    the kernel does not allow, EPERM, ENOENT without /dev/net/tun.
    """
    fd = _open_device()
    try:
        if index is not None:
            fcntl.ioctl(fd, _TUNSETIFINDEX, struct.pack("=i", index))
        try:
            _set_interface(fd, name, queues, _IFF_TUN_EXCL)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            # the kernel says EBUSY for both
            if _exists(name):
                raise FileExistsError(errno.EEXIST, f'there is an interface named "{name}" already') from None
            raise OSError(errno.EBUSY, f'no tap "{name}": interface index {index} is taken') from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_tap(name: str, queues: int = 1) -> int:
    """Attach to (a queue of) a tap that exists; `queues` as it was created.

    Raises OSError: ENODEV if there is none, EBUSY if a VMM holds all its queues, EINVAL if it is no tap or
    has been created with another kind of queues.
    """
    # TUNSETIFF would make a missing one
    if not _exists(name):
        raise OSError(errno.ENODEV, f'there is no interface named "{name}"')
    fd = _open_device()
    try:
        _set_interface(fd, name, queues, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def persist(fd: int, on: bool = True) -> None:
    """Let the tap outlive its descriptors, or (off) die with the last of them. Raises OSError."""
    fcntl.ioctl(fd, _TUNSETPERSIST, int(on))


def set_owner(fd: int, uid: int) -> None:
    """Let a user open the tap who lacks CAP_NET_ADMIN. Raises OSError."""
    fcntl.ioctl(fd, _TUNSETOWNER, uid)


def delete_tap(name: str, queues: int = 1) -> None:
    """Delete a tap that no VMM holds. Raises as `open_tap`; a held one yields to `codec.del_link`."""
    fd = open_tap(name, queues)
    try:
        persist(fd, False)
    finally:
        os.close(fd)


def _open_device() -> int:
    return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)


def _set_interface(fd: int, name: str, queues: int, extra: int) -> None:
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | extra
    if queues > 1:
        flags |= _IFF_MULTI_QUEUE
    encoded = os.fsencode(name)
    if not 0 < len(encoded) < 16:  # an empty name lets the kernel choose, a long one is cut
        raise OSError(errno.EINVAL, f'an interface\'s name has 1 to 15 bytes, not "{name}"')
    fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(encoded, flags))


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True
