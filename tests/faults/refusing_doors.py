"""A daemon whose kernel calls can be made to fail. See `main`; `refusing_stage` steers it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

from evertap.cli.main import main as evertap
from evertap.kernel import bpf, codec

_IOCTLS: Final = {
    0x400454CA: "TUNSETIFF",
    0x400454CB: "TUNSETPERSIST",
    0x400454CC: "TUNSETOWNER",
    0x800454D2: "TUNGETIFF",
    0x8927: "SIOCGIFHWADDR",
}
_OBJECTS: Final = {
    codec.RTM_NEWLINK: "link",
    codec.RTM_DELLINK: "link",
    codec.RTM_GETLINK: "link",
    codec.RTM_NEWNEIGH: "neigh",
    codec.RTM_DELNEIGH: "neigh",
    codec.RTM_NEWQDISC: "qdisc",
    codec.RTM_NEWTFILTER: "filter",
    codec.RTM_GETTFILTER: "filter",
}
_LINK_FIELDS: Final = {row.number: field for field, row in codec._LINK.items() if row.write}


class Faults:
    """The faults that the test wants, read anew at every call, and the calls that were seen.

    The file holds a list of faults. Each has `call` (a regular expression for the call's kind) and `errno`
    (refuse it) or `run` (a program to run before it, whereupon it is let through); it may have `bytes` (hex,
    which the call has to contain) and `times` (only so many calls are met).
    """

    def __init__(self, control: Path, calls: Path) -> None:
        self._control = control
        self._calls = calls.open("a", buffering=1)
        self._seen: dict[str, int] = {}

    def refusal(self, kind: str, data: bytes = b"") -> int:
        """The errno with which this call has to fail; 0 for none."""
        number = 0
        for fault in self._wanted():
            if re.fullmatch(fault["call"], kind) and bytes.fromhex(fault.get("bytes", "")) in data:
                number = number or self._meet(fault)
        self._calls.write(json.dumps({"at": time.monotonic(), "call": kind, "errno": number}) + "\n")
        return number

    def _wanted(self) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = json.loads(self._control.read_text())
        except FileNotFoundError:
            return []
        return found

    def _meet(self, fault: dict[str, Any]) -> int:
        key = json.dumps(fault)
        seen = self._seen[key] = self._seen.get(key, 0) + 1
        if seen > fault.get("times", sys.maxsize):
            return 0
        if program := fault.get("run"):
            subprocess.run(program, check=True, timeout=10)
        return int(getattr(errno, fault.get("errno", ""), 0))

    def check(self, kind: str, data: bytes = b"", name: str | None = None) -> None:
        """OSError if the call has to fail."""
        if number := self.refusal(kind, data):
            raise OSError(number, os.strerror(number), *([name] if name else []))


def _kind(message: bytes) -> str:
    """What a netlink request asks for: "new link(name lower mac mtu info)", "set link(up)", "dump links"."""
    _, number, flags, _, _ = codec.HEADER.unpack_from(message)
    about = _OBJECTS[number]
    if flags & codec.NLM_F_DUMP == codec.NLM_F_DUMP and number in (codec.RTM_GETLINK, codec.RTM_GETTFILTER):
        return f"dump {about}s"
    if number in (codec.RTM_DELLINK, codec.RTM_DELNEIGH):
        return f"delete {about}"
    if number == codec.RTM_NEWNEIGH and message[26] & 0x02:  # NTF_SELF
        return "new neigh self"
    if number == codec.RTM_GETLINK:
        return f"get {about}"
    if number != codec.RTM_NEWLINK:
        return f"new {about}"
    change = struct.unpack_from("=I", message, 28)[0]
    fields = [_LINK_FIELDS[number] for number, _, _ in codec._spans(message, 32, len(message))]
    fields += ["flags"] if change and change != 1 else []
    fields += ["up"] if change & 1 else []
    return f"{'new' if flags & codec.NLM_F_CREATE else 'set'} link({' '.join(fields)})"


class _Socket(socket.socket):
    """A socket whose netlink requests and frames pass the door."""

    faults: Faults

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._answers: deque[bytes] = deque()

    def send(self, data: Any, flags: int = 0) -> int:
        if self.family != socket.AF_NETLINK:
            return super().send(data, flags)
        refused: dict[int, bytes] = {}
        let: list[bytes] = []
        for _, _, sequence, _, offset, length in codec.split(data):
            message = data[offset : offset + length]
            if number := self.faults.refusal(_kind(message), message):
                refused[sequence] = _refusal(message, number)
            else:
                let.append(message + bytes(-length % 4))
        if not refused:
            return super().send(data, flags)
        if let:
            super().send(b"".join(let), flags)
        # In the order in which the kernel would have answered.
        answers = [(codec.HEADER.unpack_from(answer)[3], answer) for answer in self._drain()]
        self._answers.extend(answer for _, answer in sorted([*answers, *refused.items()]))
        return len(data)

    def _drain(self) -> list[bytes]:
        answers = []
        while True:
            try:
                answers.append(super().recv(1 << 18, socket.MSG_DONTWAIT))
            except BlockingIOError:
                return answers

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> Any:
        if not self._answers:
            return super().recvfrom_into(buffer, nbytes, flags)
        answer = self._answers.popleft()
        buffer[: len(answer)] = answer
        return len(answer), (0, 0)

    def sendto(self, data: Any, *more: Any) -> int:
        if self.family == socket.AF_PACKET:
            self.faults.check("announce", bytes(data))
        return super().sendto(data, *more)


def _refusal(request: bytes, number: int) -> bytes:
    """What the kernel answers (NLMSG_ERROR, capped)."""
    sequence = codec.HEADER.unpack_from(request)[3]
    head = codec.HEADER.pack(36, codec.NLMSG_ERROR, codec.NLM_F_CAPPED, sequence, 0)
    return head + struct.pack("=i", -number) + request[:16]


class _Libc:
    """libc's syscall(2) as bpf.py uses it."""

    def __init__(self, real: Any, faults: Faults) -> None:
        self._real = real
        self._faults = faults

    def syscall(self, number: Any, command: Any, *more: Any) -> int:
        if refused := self._faults.refusal(f"bpf {bpf._Command(command.value).name}"):
            ctypes.set_errno(refused)
            return -1
        return int(self._real.syscall(number, command, *more))


def _install(faults: Faults) -> None:
    _Socket.faults = faults
    socket.socket = _Socket  # type: ignore[misc]
    bpf._libc = _Libc(bpf._libc, faults)  # type: ignore[misc,assignment]
    real_ioctl, real_open, real_write = fcntl.ioctl, os.open, Path.write_text

    def ioctl(fd: Any, request: int, *more: Any) -> Any:
        if request in _IOCTLS:
            faults.check(f"ioctl {_IOCTLS[request]}")
        return real_ioctl(fd, request, *more)

    def open_(path: Any, *more: Any, **named: Any) -> int:
        name = str(path)
        if name.startswith(("/dev/net/tun", "/dev/tap")):
            faults.check(f"open {name.rstrip('0123456789')}", name=name)
        return real_open(path, *more, **named)

    def write_text(path: Path, *more: Any, **named: Any) -> int:
        if str(path).startswith("/proc/sys/"):
            faults.check(f"write {path.name}", name=str(path))
        return real_write(path, *more, **named)

    fcntl.ioctl = ioctl
    os.open = open_
    Path.write_text = write_text  # type: ignore[method-assign,assignment]


def main(control: str, calls: str, *arguments: str) -> None:
    """Run `evertap` with these arguments and the faults of the file `control`; list calls in `calls`."""
    _install(Faults(Path(control), Path(calls)))
    sys.argv = ["evertap", *arguments]
    evertap()


if __name__ == "__main__":
    main(*sys.argv[1:])
