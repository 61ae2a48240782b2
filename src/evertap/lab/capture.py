"""Listens on an interface and keeps every frame that passes, with its direction."""

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from evertap.lab.netns import Namespace

_ETH_P_ALL = 0x0003
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_OUTGOING = 4  # linux/if_packet.h: PACKET_OUTGOING
_LONGEST_FRAME = 65550


@dataclass(frozen=True, slots=True)
class Captured:
    """A frame that passed `device` at `time` (time.monotonic); `outgoing` if this host sent it there."""

    time: float
    device: str
    outgoing: bool
    data: bytes


def _any(_: Captured) -> bool:
    return True


class Capture:
    """Captures on `device` of `namespace`, or on all of its interfaces (None), from now until `close`.

    Raises OSError when the device is not there. Frames that pass while it is gone are not there to see;
    a device that comes back under its name needs a new capture, one on all interfaces goes on.
    """

    def __init__(self, namespace: Namespace, device: str | None = None) -> None:
        self._frames: list[Captured] = []
        self._news = threading.Condition()
        # Protocol 0 hears nothing before bind, so that nothing of other devices gets in.
        protocol = socket.htons(_ETH_P_ALL) if device is None else 0
        with namespace.enter():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
        try:
            # A burst of large frames must not be missed.
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
            if device is not None:
                self._socket.bind((device, _ETH_P_ALL))
        except BaseException:
            self._socket.close()
            raise
        wake, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run, args=(wake,), name="capture", daemon=True)
        self._thread.start()

    def frames(self, predicate: Callable[[Captured], bool] = _any) -> list[Captured]:
        """All frames so far that `predicate` likes."""
        with self._news:
            return [frame for frame in self._frames if predicate(frame)]

    def wait(self, predicate: Callable[[Captured], bool], timeout: float = 5) -> Captured:
        """The first frame that `predicate` likes, past ones included. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        seen = 0
        with self._news:
            while True:
                for frame in self._frames[seen:]:
                    if predicate(frame):
                        return frame
                seen = len(self._frames)
                if not self._news.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"no such frame within {timeout} s, among {seen} captured")

    def close(self) -> None:
        """Stop listening; the frames stay. May be called twice."""
        if self._wake < 0:
            return
        os.close(self._wake)
        self._wake = -1
        self._thread.join()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, wake: int) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(wake, select.POLLIN | select.POLLHUP)
        while wake not in {descriptor for descriptor, _ in poll.poll()}:
            self._drain()
        # What arrived before the stop belongs to the capture.
        self._drain()
        os.close(wake)

    def _drain(self) -> None:
        while True:
            try:
                data, address = self._socket.recvfrom(_LONGEST_FRAME)
            except BlockingIOError:
                return
            except OSError:
                # ENETDOWN: the device went away. Said once, then the socket is merely silent.
                continue
            with self._news:
                self._frames.append(Captured(time.monotonic(), address[0], address[2] == _OUTGOING, data))
                self._news.notify_all()
