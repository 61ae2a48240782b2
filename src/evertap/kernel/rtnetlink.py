"""Talks rtnetlink with the kernel: one socket to ask and change, another that tells what happens to links."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Container, Iterator, Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

from evertap.kernel import codec
from evertap.kernel.codec import Buffer, Filter, Message
from evertap.model.errors import EvertapError
from evertap.model.links import Link, LinkEvent

_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_NETLINK_GET_STRICT_CHK: Final = 12
_SO_RCVBUFFORCE: Final = 33
_RTMGRP_LINK: Final = 1

_REQUEST_BUFFER: Final = 1 << 20  # bytes of answers that may wait to be read
_EVENT_BUFFER: Final = 8 << 20
_DATAGRAM: Final = 256 << 10  # the kernel's dumps use 32 KiB at most, an event is one message of some 1.5 KB
_MESSAGES_A_SEND: Final = 400
_BYTES_AN_ANSWER: Final = 2048  # of the receive buffer: an sk_buff with a long ext_ack text
_TIMEOUT: Final = 5  # seconds
_DUMP_ATTEMPTS: Final = 10
_LINK_DUMPS: Final = 3  # with thousands of interfaces, each takes a tenth of a second
_DATAGRAMS_A_READ: Final = 10_000

_T = TypeVar("_T")


class KernelRefusal(EvertapError, OSError):  # noqa: N818
    """The kernel refused a request: `errno` (positive), its `name` ("EEXIST"), the kernel's `text` if any.

    `place` is that of the refused message in its group, from 1.
    """

    def __init__(self, number: int, text: str = "", place: int = 1) -> None:
        super().__init__(number, os.strerror(number))
        self.name = errno.errorcode.get(number, str(number))
        self.text = text
        self.place = place

    def __str__(self) -> str:
        return f"{self.name}: {self.text or self.strerror}"


class Overflow(EvertapError):  # noqa: N818
    """The kernel threw messages away for want of room: everything must be read again."""


class DumpInterruptedError(EvertapError):
    """What was being dumped changed all the while; every attempt was interrupted."""


class _NetlinkSocket:
    """An rtnetlink socket with one receive buffer that is used over and over."""

    def __init__(self, groups: int, receive_buffer: int, datagram: int) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        try:
            _grow(self._socket, receive_buffer)
            self._socket.bind((0, groups))
        except BaseException:
            self._socket.close()
            raise
        self._buffer = memoryview(bytearray(datagram))

    def fileno(self) -> int:
        """The socket's descriptor; -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self) -> bytes:
        """One datagram. Raises BlockingIOError if there is none, Overflow if some are lost."""
        try:
            while True:
                size, (port, _) = self._socket.recvfrom_into(self._buffer, 0, socket.MSG_TRUNC)
                if port == 0:  # from the kernel, not from another process
                    break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._discard()
            raise Overflow("the kernel's messages came faster than they were read; some are lost") from None
        if size > len(self._buffer):
            self._discard()
            raise Overflow(f"a netlink message of {size} bytes is larger than the buffer for it")
        return bytes(self._buffer[:size])  # decoding is a third faster than from the view

    def _discard(self) -> None:
        # what still waits is older than the reread that must follow, and would be taken for news after it;
        # besides, the kernel drops everything until the queue has been emptied (NETLINK_S_CONGESTED)
        while True:
            try:
                self._socket.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise


class Rtnetlink(_NetlinkSocket):
    """Asks the kernel for changes and dumps. Not for use by two threads at once.

    The kernel carries a request out, under its rtnl lock, within send(2): when it returns, the answers are in
    the receive buffer already. So reading them does not wait, and there is nothing for an event loop to do;
    the time limit of 5 s on receiving is there for the case that this should ever cease to be true.
    """

    def __init__(self) -> None:
        super().__init__(groups=0, receive_buffer=_REQUEST_BUFFER, datagram=_DATAGRAM)
        sock = self._socket
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            try:
                sock.setsockopt(_SOL_NETLINK, option, 1)
            except OSError:  # an old kernel: refusals come without text
                continue
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _TIMEOUT, 0))
        self._sequence = 0
        self.interrupted = 0
        """How many dumps were interrupted by changes, and repeated."""
        room = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        self._most_messages = max(1, min(_MESSAGES_A_SEND, room // _BYTES_AN_ANSWER))
        # a send above sk_sndbuf - 32 is refused with EMSGSIZE (net/netlink/af_netlink.c)
        self._most_bytes = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - 1024

    def request(self, groups: Sequence[Sequence[Message]]) -> list[KernelRefusal | None]:
        """Carry out all messages of all groups, in order; for each group its first refusal, or None.

        All go out in one send(2) where they fit. A refused message does not stop those after it, neither in
        its group nor in others: see to it that what follows cannot harm (an index that nobody else uses),
        and undo. Raises Overflow if answers were lost, TimeoutError if they failed to come (then it is not
        known what was done), OSError if the socket fails.
        """
        refusals: list[KernelRefusal | None] = [None] * len(groups)
        for batch in self._batches(groups):
            self._carry_out(batch, refusals)
        return refusals

    def dump_links(self) -> list[Link]:
        """All interfaces. Raises KernelRefusal, Overflow, TimeoutError.

        Where they come and go so quickly that every dump is interrupted, it is what several dumps have found
        together: rather too much than too little, since a LinkMonitor tells of those that have gone.
        """
        found: dict[int, Link] = {}
        for _ in range(_LINK_DUMPS):
            answers, whole = self._dump_once(codec.dump_links())
            links = (codec.decode_link(answer, 0, len(answer)) for answer in answers)
            now = {link.index: link for link in links if isinstance(link, Link)}
            if whole:
                return list(now.values())
            found |= now
        return list(found.values())

    def dump_filters(self, index: int, *, ingress: bool = True) -> list[Filter]:
        """The filters of an interface's clsact qdisc, none without it.

        Raises as `dump_links`, and DumpInterruptedError.
        """
        return self._dump(codec.dump_filters(index, ingress=ingress), codec.decode_filter)

    def get_link(self, index: int) -> Link | None:
        """One interface; None if there is no such. Raises KernelRefusal, Overflow, TimeoutError."""
        sequence = self._next()
        self._send([_stamp(codec.get_link(index), codec.NLM_F_REQUEST, sequence)])
        for buffer, kind, _, offset, length in self._answers(sequence):
            if kind == codec.NLMSG_ERROR:
                answer = codec.decode_error(buffer, offset, length)
                if answer.errno == errno.ENODEV:
                    return None
                raise KernelRefusal(*answer)
            link = codec.decode_link(buffer, offset, length)
            if isinstance(link, Link):
                return link
        return None

    def _next(self) -> int:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        return self._sequence

    def _batches(self, groups: Sequence[Sequence[Message]]) -> Iterator[list[tuple[int, int, Message, bool]]]:
        """In portions of one send: each message's group, its place there, itself, whether it is the last."""
        batch: list[tuple[int, int, Message, bool]] = []
        size = 0
        for group_number, group in enumerate(groups):
            for place, message in enumerate(group, 1):
                length = 16 + len(message.body) + 3
                if batch and (len(batch) == self._most_messages or size + length > self._most_bytes):
                    yield batch
                    batch, size = [], 0
                batch.append((group_number, place, message, place == len(group)))
                size += length
        if batch:
            yield batch

    def _carry_out(
        self, batch: list[tuple[int, int, Message, bool]], refusals: list[KernelRefusal | None]
    ) -> None:
        asked: dict[int, tuple[int, int]] = {}
        stamped = []
        for number, (group, place, message, last) in enumerate(batch, 1):
            sequence = self._next()
            asked[sequence] = group, place
            # refusals come unasked; the answer to the portion's last message says that all have come
            ask = codec.NLM_F_ACK if last or number == len(batch) else 0
            stamped.append(_stamp(message, codec.NLM_F_REQUEST | ask, sequence))
        final = self._sequence
        self._send(stamped)
        finished = False
        while not finished:
            buffer = self._receive_answer()
            for kind, _, sequence, _, offset, length in codec.split(buffer):
                if kind != codec.NLMSG_ERROR or sequence not in asked:
                    continue  # left over from a request that was given up
                answer = codec.decode_error(buffer, offset, length)
                group, place = asked[sequence]
                if answer.errno and refusals[group] is None:
                    refusals[group] = KernelRefusal(*answer, place)
                finished = finished or sequence == final

    def _send(self, stamped: list[bytes]) -> None:
        self._socket.send(b"".join(stamped))

    def _receive_answer(self) -> bytes:
        try:
            return self._receive()
        except BlockingIOError:
            raise TimeoutError(f"the kernel did not answer a netlink request within {_TIMEOUT} s") from None

    def _answers(self, sequence: int) -> Iterator[tuple[bytes, int, int, int, int]]:
        """Buffer, type, flags, offset and length of the messages that answer one request, without an end."""
        while True:
            buffer = self._receive_answer()
            for kind, flags, number, _, offset, length in codec.split(buffer):
                if number == sequence:
                    yield buffer, kind, flags, offset, length

    def _dump(self, message: Message, decode: Callable[[Buffer, int, int], _T | None]) -> list[_T]:
        for _ in range(_DUMP_ATTEMPTS):
            answers, whole = self._dump_once(message)
            if whole:
                found = (decode(answer, 0, len(answer)) for answer in answers)
                return [entry for entry in found if entry is not None]
        raise DumpInterruptedError(f"a netlink dump was interrupted by changes {_DUMP_ATTEMPTS} times")

    def _dump_once(self, message: Message) -> tuple[list[bytes], bool]:
        """The messages of one dump, and whether it is whole: changes meanwhile have not interrupted it.

        They are decoded only after the dump is complete: an error half-way would leave the socket busy with
        it.
        """
        sequence = self._next()
        self._send([_stamp(message, codec.NLM_F_REQUEST, sequence)])
        answers: list[bytes] = []
        interrupted = False
        for buffer, kind, flags, offset, length in self._answers(sequence):
            interrupted = interrupted or bool(flags & codec.NLM_F_DUMP_INTR)
            if kind in (codec.NLMSG_ERROR, codec.NLMSG_DONE):
                answer = codec.decode_error(buffer, offset, length)
                if answer.errno:
                    raise KernelRefusal(*answer)
                break
            answers.append(buffer[offset : offset + length])
        self.interrupted += interrupted
        return answers, not interrupted


class LinkMonitor(_NetlinkSocket):
    """Hears of every change of an interface in the namespace that it was made in, from its making on.

    Non-blocking: wait for `fileno()` to become readable. `receive_buffer` (bytes) is what the kernel may keep
    until it is read; above net.core.rmem_max it takes CAP_NET_ADMIN and is silently less without. An event
    takes about 2.5 KB of it.
    """

    def __init__(self, receive_buffer: int = _EVENT_BUFFER) -> None:
        super().__init__(groups=_RTMGRP_LINK, receive_buffer=receive_buffer, datagram=_DATAGRAM)
        self._socket.setblocking(False)

    def read(self, final: Container[int] = ()) -> list[LinkEvent]:
        """All that has happened since the last call, oldest first; empty if nothing has.

        Of the interfaces in `final` (their indices) only the last word counts, where the rest is not worth
        its decoding.
        Raises Overflow if the kernel dropped events: then all that waited is dropped too, whatever happens
        from now on will be heard, and all links must be read again. Raises NetlinkFormatError on malformed
        bytes.
        """
        said: list[tuple[bytes, int, int] | None] = []
        last: dict[int, int] = {}
        for _ in range(_DATAGRAMS_A_READ):  # a storm must not keep the caller here for ever
            try:
                buffer = self._receive()
            except BlockingIOError:
                break
            for _, _, _, _, offset, length in codec.split(buffer):
                if final and (index := codec.link_index(buffer, offset, length)) in final:
                    if index in last:
                        said[last[index]] = None
                    last[index] = len(said)
                said.append((buffer, offset, length))
        decoded = (codec.decode_link(*message) for message in said if message)
        return [event for event in decoded if event is not None]


def _stamp(message: Message, flags: int, sequence: int) -> bytes:
    length = codec.HEADER.size + len(message.body)
    header = codec.HEADER.pack(length, message.type, message.flags | flags, sequence, 0)
    return header + message.body + bytes(-length % 4)


def _grow(sock: socket.socket, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
