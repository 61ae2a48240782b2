"""Which system calls of a traced process change something outside of it, and what they do, in words."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

# The calls of x86-64 that are known here (asm/unistd_64.h). One that is not known counts as a change.
_NUMBERS: Final = """
read 0 write 1 open 2 close 3 stat 4 fstat 5 lstat 6 poll 7 lseek 8 mmap 9 mprotect 10 munmap 11 brk 12
rt_sigaction 13 rt_sigprocmask 14 rt_sigreturn 15 ioctl 16 pread64 17 pwrite64 18 readv 19 writev 20 access 21
pipe 22 select 23 sched_yield 24 mremap 25 madvise 28 dup 32 dup2 33 nanosleep 35 getpid 39 sendfile 40
socket 41 connect 42 accept 43 sendto 44 recvfrom 45 sendmsg 46 recvmsg 47 shutdown 48 bind 49 listen 50
getsockname 51 getpeername 52 socketpair 53 setsockopt 54 getsockopt 55 clone 56 exit 60 uname 63 fcntl 72
fsync 74 fdatasync 75 truncate 76 ftruncate 77 getdents 78 getcwd 79 rename 82 mkdir 83 rmdir 84 creat 85
link 86 unlink 87 symlink 88 readlink 89 chmod 90 fchmod 91 chown 92 fchown 93 gettimeofday 96 getrusage 98
getuid 102 getgid 104 geteuid 107 getegid 108 sigaltstack 131 prctl 157 gettid 186 futex 202
sched_getaffinity 204 getdents64 217 restart_syscall 219 clock_gettime 228 clock_getres 229
clock_nanosleep 230 exit_group 231 epoll_wait 232 epoll_ctl 233 inotify_add_watch 254 inotify_rm_watch 255
openat 257 mkdirat 258 newfstatat 262 unlinkat 263 renameat 264 linkat 265 symlinkat 266 readlinkat 267
fchmodat 268 faccessat 269 pselect6 270 ppoll 271 set_robust_list 273 epoll_pwait 281 accept4 288 eventfd2 290
epoll_create1 291 dup3 292 pipe2 293 inotify_init1 294 prlimit64 302 sendmmsg 307 getcpu 309 renameat2 316
getrandom 318 bpf 321 membarrier 324 statx 332 rseq 334 clone3 435 faccessat2 439 epoll_pwait2 441
"""
_NAMES: Final = {int(number): name for name, number in re.findall(r"(\w+) (\d+)", _NUMBERS)}

# Reads, waits, and changes of nothing but the process itself.
_HARMLESS: Final = re.findall(
    r"\w+",
    """
    read stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn pread64
    readv access pipe select sched_yield mremap madvise dup dup2 nanosleep getpid socket accept recvfrom
    recvmsg listen getsockname getpeername socketpair setsockopt getsockopt clone exit uname fcntl getdents
    getcwd readlink gettimeofday getrusage getuid getgid geteuid getegid sigaltstack prctl gettid futex
    sched_getaffinity getdents64 restart_syscall clock_gettime clock_getres clock_nanosleep exit_group
    epoll_wait epoll_ctl inotify_add_watch inotify_rm_watch newfstatat readlinkat faccessat pselect6 ppoll
    set_robust_list epoll_pwait accept4 eventfd2 epoll_create1 dup3 pipe2 inotify_init1 prlimit64 getcpu
    getrandom membarrier statx rseq clone3 faccessat2 epoll_pwait2
    """,
)

_BPF: Final = {0: "MAP_CREATE", 2: "MAP_UPDATE_ELEM", 3: "MAP_DELETE_ELEM", 5: "PROG_LOAD", 8: "PROG_ATTACH"}
_BPF_READS: Final = {1, 13, 14, 15, 16}  # look-up, descriptor by id (2), info, query
_IOCTLS: Final = {0x400454CA: "TUNSETIFF", 0x400454CB: "TUNSETPERSIST", 0x400454CC: "TUNSETOWNER"}
_IOCTL_READS: Final = {
    *(0x800454D2, 0x8927, 0x8933, 0x8910),  # TUNGETIFF, SIOCGIFHWADDR, SIOCGIFINDEX, SIOCGIFNAME
    *(0x5401, 0x5413, 0x541B, 0x5421, 0x5451),  # of terminals; FIONREAD, FIONBIO, FIOCLEX
}
_MESSAGES: Final = {16: "NEWLINK", 17: "DELLINK", 28: "NEWNEIGH", 36: "NEWQDISC", 44: "NEWTFILTER"}
_AF_UNIX: Final = 1
_PATHS: Final = {
    **dict.fromkeys(("truncate", "mkdir", "rmdir", "creat", "unlink", "chmod", "chown"), (0,)),
    **dict.fromkeys(("rename", "link", "symlink"), (0, 1)),
    **dict.fromkeys(("openat", "mkdirat", "unlinkat", "fchmodat"), (1,)),
    **dict.fromkeys(("renameat", "linkat", "renameat2"), (1, 3)),
    **dict.fromkeys(("open",), (0,)),
}
# Written by SQLite, which sees to that itself, in a thread and at times of its own.
_HISTORY: Final = "/history.db"
_WORDS: Final = 60  # characters of another message that are shown


class Calls:
    """Judges the system calls of process `pid` at their entry."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        self._special: dict[str, Callable[[Sequence[int]], str]] = {
            "open": lambda args: self._open(args[0], args[1]),
            "openat": lambda args: self._open(args[1], args[2]),
            "close": self._close,
            "write": lambda args: self._write(args[0], args[1], args[2]),
            "bind": self._address,
            "connect": self._address,
            "sendto": lambda args: self._send(args[0], args[1], args[2]),
            "sendmsg": self._sendmsg,
            "ioctl": self._ioctl,
            "bpf": self._bpf,
        }

    def change(self, number: int, args: Sequence[int]) -> str:
        """What the call is about to change, with "#" for every number; empty if nothing."""
        what = self._change(number, args)
        return "" if _HISTORY in what else re.sub(r"\d+", "#", what)

    def _change(self, number: int, args: Sequence[int]) -> str:
        name = _NAMES.get(number, f"system call {number}")
        if name in _HARMLESS:
            return ""
        if special := self._special.get(name):
            what = special(args)
            return f"{name} {what}" if what else ""
        if name in _PATHS:
            return f"{name} {' '.join(self._text(args[place]) for place in _PATHS[name])}"
        return f"{name} {self._target(args[0])}"

    def _open(self, path: int, flags: int) -> str:
        """Opening alone changes nothing: a tap is made by ioctl."""
        return self._text(path) if flags & (os.O_CREAT | os.O_TRUNC) else ""

    def _close(self, args: Sequence[int]) -> str:
        """A tap that was not made to last goes with its descriptor."""
        target = self._target(args[0])
        return target if target.startswith("/dev/") else ""

    def _write(self, fd: int, place: int, size: int) -> str:
        target = self._target(fd)
        # The log, and what wakes the process's own threads.
        if fd in (1, 2) or target.startswith(("pipe:", "anon_inode:")):
            return ""
        return self._send(fd, place, size) if target.startswith("socket:") else target

    def _address(self, args: Sequence[int]) -> str:
        """Only Unix sockets are seen by others."""
        data = self._read(args[1], args[2])
        if int.from_bytes(data[:2], "little") != _AF_UNIX:
            return ""
        return data[2:].rstrip(b"\0").decode(errors="replace")

    def _sendmsg(self, args: Sequence[int]) -> str:
        _, _, vector, count = struct.unpack("=QQQQ", self._read(args[1], 32))
        parts = struct.iter_unpack("=QQ", self._read(vector, 16 * count))
        return self._said(args[0], b"".join(self._read(*part) for part in parts))

    def _send(self, fd: int, place: int, size: int) -> str:
        return self._said(fd, self._read(place, size))

    def _said(self, fd: int, data: bytes) -> str:
        family = self._family(fd)
        if family == "netlink":
            kinds = list(_kinds(data))
            # Every third kind of four only asks.
            if all(kind % 4 == 2 for kind in kinds):
                return ""
            return "netlink " + " ".join(_MESSAGES.get(kind, str(kind)) for kind in kinds)
        if family == "packet":
            return "a frame"
        if len(data) == 1:  # asyncio's call to its own thread
            return ""
        return _message(data.rstrip(b"\0"))

    def _ioctl(self, args: Sequence[int]) -> str:
        request = args[1] & 0xFFFFFFFF
        if request in _IOCTL_READS:
            return ""
        return f"{_IOCTLS.get(request, hex(request))} {self._target(args[0])}"

    def _bpf(self, args: Sequence[int]) -> str:
        return "" if args[0] in _BPF_READS else _BPF.get(args[0], str(args[0]))

    def _family(self, fd: int) -> str:
        inode = self._target(fd).removeprefix("socket:[").removesuffix("]")
        for family in ("netlink", "packet"):
            lines = Path(f"/proc/{self._pid}/net/{family}").read_text().splitlines()
            if any(inode in line.split() for line in lines):
                return family
        return ""

    def _target(self, fd: int) -> str:
        try:
            return str(Path(f"/proc/{self._pid}/fd/{fd}").readlink())
        except OSError:
            return "?"

    def _text(self, place: int) -> str:
        return self._read(place, 4096).split(b"\0", 1)[0].decode(errors="replace")

    def _read(self, place: int, size: int) -> bytes:
        """As much of the process's memory as is there: a text may end before a page that is not."""
        try:
            return os.pread(self._memory, size, place)
        except OSError:
            return b""


def _message(data: bytes) -> str:
    """A message in JSON: a QMP command, unless it only asks, or an answer of the API."""
    try:
        message = json.loads(data)
    except ValueError:
        return data[:_WORDS].decode(errors="replace")
    command, arguments = message.get("execute"), message.get("arguments", {})
    if command is None:
        return "an answer"
    if command.startswith("query-") or arguments.get("command-line") == "info network":
        return ""
    return f"QMP {command} {arguments.get('id', '')}".strip()


def _kinds(data: bytes) -> list[int]:
    """The types of the netlink messages in one send."""
    found, offset = [], 0
    while offset + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        found.append(kind)
        offset += max(16, length + 3 & ~3)
    return found
