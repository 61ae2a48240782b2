"""The builtin guest's process: holds a tap as a VMM does and answers pings. `-m evertap.lab.builtin`."""

import argparse
import errno
import fcntl
import json
import os
import select
import socket
import struct
import sys
import time
import uuid
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

from evertap.lab.answering import Station
from evertap.lab.frames import mac_bytes

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_MULTI_QUEUE = 0x0100

_LONGEST_FRAME = 65550


def open_tap(name: str) -> int:
    """Open the persistent tap `name`, one queue of it, without packet information or vnet header.

    Raises OSError: it is not there (ENODEV) or somebody else holds it (EBUSY).
    """
    # TUNSETIFF would make a tap that is not there.
    socket.if_nametoindex(name)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            _set_interface(descriptor, name, _IFF_TAP | _IFF_NO_PI)
        except OSError as error:
            # The flag must be as it was when the tap was made; which way is not known here.
            if error.errno != errno.EINVAL:
                raise
            _set_interface(descriptor, name, _IFF_TAP | _IFF_NO_PI | _IFF_MULTI_QUEUE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _set_interface(descriptor: int, name: str, flags: int) -> None:
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))


def _serve(tap: int, station: Station) -> None:
    """Answer frames until standard input ends; a line of it asks for the state or sends a frame.

    A VMM does not open a tap anew that failed under it, and neither does this.
    """
    boot_id = str(uuid.uuid4())
    failures = answered = 0
    started = time.monotonic()
    poll = select.poll()
    poll.register(tap, select.POLLIN)
    poll.register(sys.stdin, select.POLLIN)
    print("ready", flush=True)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if tap in ready:
            try:
                reply = station.answer(os.read(tap, _LONGEST_FRAME))
            except BlockingIOError:
                continue
            except OSError:
                # The tap itself is gone (EBADFD).
                failures += 1
                poll.unregister(tap)
                continue
            if reply is not None:
                _send(tap, reply)
                answered += 1
        if sys.stdin.fileno() in ready:
            words = sys.stdin.readline().split()
            if not words:
                return
            if words[0] == "send":
                _send(tap, bytes.fromhex(words[1]))
            state = {
                "boot_id": boot_id,
                "failures": failures,
                "answered": answered,
                "uptime": time.monotonic() - started,
            }
            print(json.dumps(state), flush=True)


def _send(tap: int, frame: bytes) -> None:
    # A tap that is down (EIO) or full (EAGAIN) loses the frame, as a network does.
    with suppress(OSError):
        os.write(tap, frame)


def main() -> None:
    """Run the builtin guest on the tap named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m evertap.lab.builtin")
    parser.add_argument("tap")
    parser.add_argument("mac", type=mac_bytes)
    parser.add_argument("ipv4", type=IPv4Address)
    parser.add_argument("ipv6", type=IPv6Address, nargs="?")
    arguments = parser.parse_args()
    try:
        tap = open_tap(arguments.tap)
    except OSError as error:
        sys.exit(f"cannot open the tap {arguments.tap!r}: {error}")
    _serve(tap, Station(arguments.mac, arguments.ipv4, arguments.ipv6))


if __name__ == "__main__":
    main()
