"""Makes a NIC's persistent tap with its program, in an order that leaves no moment unsafe."""

from __future__ import annotations

import errno
import functools
import os
import pwd
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from evertap.kernel import bpf, codec, tun
from evertap.kernel.codec import Message
from evertap.kernel.rtnetlink import Rtnetlink
from evertap.model.nic import Nic
from evertap.model.observed import Splicing
from evertap.model.plan_tap import tap_alias

_CONF: Final = Path("/proc/sys/net")
_IPV6_MIN_MTU: Final = 1280


class Tap(NamedTuple):
    """A NIC's tap, with descriptors of its map and of the program for its macvlans."""

    ifindex: int
    map_fd: int
    uplink_program: int

    @classmethod
    def of(cls, ifindex: int, map_fd: int) -> Tap:
        """Load what the map's tap needs, so that no connect has to wait for it."""
        try:
            return cls(ifindex, map_fd, bpf.load_uplink_program(map_fd, ifindex))
        except BaseException:
            os.close(map_fd)
            raise

    def close(self) -> None:
        """Give the descriptors back; what they name lives on where it is attached."""
        os.close(self.map_fd)
        os.close(self.uplink_program)


def make_tap(nic: Nic, rtnetlink: Rtnetlink) -> Tap:
    """Make the NIC's tap, or give one that we made before its program.

    The order is what makes it safe: the program is there before the tap is up, and it is marked before it is
    made to last, so that no moment leaves an open way to the host's stack or a device that nobody owns.
    """
    owner = pwd.getpwnam(nic.owner).pw_uid if nic.owner else None
    try:
        fd = tun.create_tap(nic.name, nic.queues)
    except FileExistsError:
        return _adopt_tap(nic, rtnetlink)
    try:
        index = socket.if_nametoindex(nic.name)
        # At once: by its mark, udev and the like know to keep off.
        insist(rtnetlink, [codec.set_link(index, alias=tap_alias(nic))])
        map_fd = _attach_program(nic, index, rtnetlink)
        try:
            _silence(nic.name)
            _configure(nic, index, rtnetlink)
            if owner is not None:
                tun.set_owner(fd, owner)
            tun.persist(fd)
        except BaseException:
            os.close(map_fd)
            raise
        return Tap.of(index, map_fd)
    finally:
        os.close(fd)


def _adopt_tap(nic: Nic, rtnetlink: Rtnetlink) -> Tap:
    """A tap of ours whose program somebody took off."""
    index = socket.if_nametoindex(nic.name)
    link = rtnetlink.get_link(index)
    if link is None or link.owner != nic.name:
        raise FileExistsError(
            errno.EEXIST, f'an interface named "{nic.name}" exists that evertap did not make'
        )
    return Tap.of(index, _attach_program(nic, index, rtnetlink))


def _attach_program(nic: Nic, index: int, rtnetlink: Rtnetlink) -> int:
    """Put the NIC's program on its tap; give its map."""
    map_fd = bpf.create_map(nic.name)
    try:
        bpf.write_map(map_fd, Splicing(0, nic.spoof_check, nic.mac))
        program = bpf.load_tap_program(map_fd)
        try:
            if bpf.tcx_supported():
                bpf.attach_tcx(index, program)
            else:
                messages = [codec.add_clsact(index), codec.add_bpf_filter(index, program, bpf.TAP_PROGRAM)]
                insist(rtnetlink, messages)
        finally:
            os.close(program)
    except BaseException:
        os.close(map_fd)
        raise
    return map_fd


def _configure(nic: Nic, index: int, rtnetlink: Rtnetlink) -> None:
    # A bridge takes the lowest MAC of its ports for its own, and hands frames for a port's MAC to the host:
    # hence a MAC that is high, and not the guest's.
    first = "fa" if nic.mac.startswith("fe") else "fe"
    mac = first + nic.mac[2:]
    insist(
        rtnetlink,
        [
            codec.set_link(index, mac=mac, mtu=nic.mtu, noarp=True),
            *([codec.set_link(index, addrgen_none=True)] if has_ipv6(nic.mtu) else []),
            # a queue before the tap's own ring never holds a frame, and takes time: docs/performance.md
            codec.set_noqueue(index),
            codec.set_link(index, up=True),
        ],
    )


def insist(rtnetlink: Rtnetlink, messages: list[Message]) -> None:
    for refusal in rtnetlink.request([[message] for message in messages]):
        if refusal:
            raise refusal


def _silence(name: str) -> None:
    """Keep the host's stack off the tap, also for the moment in which a bridge under it has been deleted."""
    settings: list[tuple[str, str]] = [
        (f"ipv6/conf/{name}/disable_ipv6", "1"),
        (f"ipv4/conf/{name}/rp_filter", "1"),
        (f"ipv4/conf/{name}/arp_ignore", "8"),
    ]
    for setting, value in settings:
        with suppress(FileNotFoundError):  # a kernel without IPv6
            (_CONF / setting).write_text(value)


def has_ipv6(mtu: int) -> bool:
    """Whether IPv6 is there on a device of that MTU: then it has to be told to have no address of its own."""
    return mtu >= _IPV6_MIN_MTU and _ipv6_is_there()


@functools.cache
def _ipv6_is_there() -> bool:
    return (_CONF / "ipv6").exists()
