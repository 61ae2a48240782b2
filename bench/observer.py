"""What happens, as seen from outside of evertap: the kernel's notifications, and what the maps say.

Both are watched by spinning in this process, which has a processor of its own (`alone`), so that the moments
are those of the events and not of a wake-up. Times are seconds of time.monotonic.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from evertap.kernel import bpf
from evertap.lab.netns import Namespace

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
IFLA_MASTER: Final = 10
IFF_UP: Final = 0x1
IFF_LOWER_UP: Final = 0x10000
_GOOD: Final = IFF_UP | IFF_LOWER_UP
_SO_RCVBUFFORCE: Final = 33
_RTMGRP_LINK: Final = 1
_HEADER: Final = struct.Struct("=IHHIIBxHiI")  # nlmsghdr and ifinfomsg up to its flags
_MAP_LOOKUP_ELEM: Final = 1
_DISTURBED: Final = 0.0003
"""Seconds. Setting an interface up keeps even an idle machine's other processor from looking for 0.2 ms."""

_PROCESSORS: Final = os.sched_getaffinity(0)
_BPF: Final = {"x86_64": 321, "ppc64le": 361, "s390x": 351}.get(os.uname().machine, 280)

_syscall: Final = ctypes.CDLL(None, use_errno=True).syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong)

Event = Callable[["Notification"], bool]


@contextmanager
def alone() -> Iterator[None]:
    """Inside: this process has the last processor to itself, as far as what `others` starts goes."""
    with _on({max(_PROCESSORS)}):
        yield


@contextmanager
def others() -> Iterator[None]:
    """Inside: processes are started on all processors but the last."""
    with _on(_PROCESSORS - {max(_PROCESSORS)} or _PROCESSORS):
        yield


@contextmanager
def _on(processors: set[int]) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def bpf_call(command: int, attribute: int) -> None:
    """bpf(2) with an attribute of 32 bytes at that address. OSError."""
    if _syscall(_BPF, command, attribute, 32) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def map_id(fd: int) -> int:
    """The id of a map, by which another process can open it."""
    words = dict(line.split(":\t") for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
    return int(words["map_id"])


class DisturbedError(Exception):
    """Other programs kept this one from looking: when something happened is not known well enough."""


class Moment(NamedTuple):
    """When something was seen, and how long before that there had been nothing to be seen."""

    at: float
    blur: float

    def until(self, end: float) -> float:
        """Seconds from then; DisturbedError if it is not known when that was."""
        if self.blur > _DISTURBED:
            raise DisturbedError
        return end - self.at


class Notification:
    """One link message, decoded only as far as a tight loop needs it."""

    __slots__ = ("data", "flags", "index", "kind")

    def __init__(self, data: bytes) -> None:
        header: tuple[int, ...] = _HEADER.unpack_from(data)
        self.kind, self.index, self.flags = header[1], header[7], header[8]
        self.data = data

    @property
    def new(self) -> bool:
        """Whether it tells of a link that is there."""
        return self.kind == RTM_NEWLINK

    @property
    def carrier(self) -> bool:
        """Whether frames can leave by the link."""
        return self.flags & _GOOD == _GOOD


def name_attribute(name: str) -> bytes:
    """IFLA_IFNAME as it stands in a link message."""
    return struct.pack("=HH", 5 + len(name), 3) + name.encode() + b"\0"


def appears(name: str) -> Event:
    """The link of that name is there, in whatever state."""
    attribute = name_attribute(name)
    return lambda event: event.new and attribute in event.data


def usable(name: str) -> Event:
    """The link of that name is up and has a carrier."""
    attribute = name_attribute(name)
    return lambda event: event.new and event.carrier and attribute in event.data


def loses_carrier(name: str) -> Event:
    """The link of that name is there without a carrier."""
    attribute = name_attribute(name)
    return lambda event: event.new and not event.carrier and attribute in event.data


def enslaved(name: str) -> Event:
    """The link of that name has a master."""
    attribute, master = name_attribute(name), struct.pack("=HH", 8, IFLA_MASTER)
    return lambda event: event.new and attribute in event.data and master in event.data


class Ear:
    """Hears every change of an interface in a namespace, apart from evertap."""

    def __init__(self, namespace: Namespace) -> None:
        with namespace.enter():
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 256 << 20)
        self._socket.bind((0, _RTMGRP_LINK))
        self._socket.setblocking(False)

    def drain(self) -> int:
        """Forget what was heard so far; how many messages that was."""
        count = 0
        while True:
            try:
                self._socket.recv(65536)
            except BlockingIOError:
                return count
            count += 1

    def wait(self, event: Event, timeout: float = 10) -> Moment:
        """When the first such notification came; TimeoutError."""
        receive, monotonic = self._socket.recv, time.monotonic
        looked, deadline = 0.0, monotonic() + timeout
        while True:
            try:
                data = receive(65536)
            except BlockingIOError:
                looked = monotonic()
                if looked > deadline:
                    raise TimeoutError("the awaited notification has not come") from None
                os.sched_yield()  # the kernel's own threads need this processor too, at times with locks held
                continue
            now = monotonic()
            if event(Notification(data)):
                return Moment(now, now - looked)

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


class Eye:
    """Watches maps by bpf(2), apart from evertap."""

    def __init__(self, map_fds: Sequence[int]) -> None:
        self._fds = list(map_fds)
        self._key = ctypes.c_uint32(0)
        self._value = ctypes.create_string_buffer(16)
        self._target = ctypes.c_uint32.from_buffer(self._value)
        places = ctypes.addressof(self._key), ctypes.addressof(self._value)
        self._attributes = [
            ctypes.create_string_buffer(struct.pack("=IxxxxQQQ", fd, *places, 0)) for fd in map_fds
        ]
        self._addresses = [ctypes.addressof(attribute) for attribute in self._attributes]

    @classmethod
    def on_ids(cls, ids: Sequence[int]) -> Eye:
        """Watch the maps with these ids."""
        return cls([bpf.map_fd_by_id(map_id) for map_id in ids])

    def target(self, place: int = 0) -> int:
        """What a map names now."""
        bpf_call(_MAP_LOOKUP_ELEM, self._addresses[place])
        return self._target.value

    def targets(self) -> list[int]:
        """What all maps name now."""
        return [self.target(place) for place in range(len(self._fds))]

    def wait(self, before: Sequence[int], timeout: float = 10) -> float:
        """The moment when every map names something, and not what it did `before`; TimeoutError."""
        deadline = time.monotonic() + timeout
        for place, old in enumerate(before):
            while True:
                now = self.target(place)
                if now not in (0, old):
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError(f"map {place} of {len(before)} still names {now}")
                os.sched_yield()
        return time.monotonic()

    def close(self) -> None:
        """Watch no more."""
        for fd in self._fds:
            os.close(fd)
