"""Follows a process and kills it before or after one of its changes of the world. See `main`."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from tests.faults.kill_calls import Calls

# linux/ptrace.h
_SYSCALL, _SEIZE, _INTERRUPT, _GET_SYSCALL_INFO = 24, 0x4206, 0x4207, 0x420E
_OPTIONS: Final = 0x01 | 0x08  # a system call's stop is marked; new threads are followed
_SYSCALL_STOP: Final = signal.SIGTRAP | 0x80
_ENTRY, _EXIT = 1, 2
_INFO: Final = struct.Struct("=B7xQQQ6Q")  # operation, pointers, the call's number and arguments
_INFO_SIZE: Final = 88
_RESTARTS: Final = {2**64 - number for number in (512, 513, 514, 516)}  # ERESTART..., as an unsigned result
_WALL: Final = 0x40000000

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def _ptrace(request: int, thread: int, address: int = 0, data: int = 0) -> int:
    """ptrace(2); 0 if the thread has just been killed."""
    result = int(_libc.ptrace(request, thread, address, data))
    if result < 0:
        number = ctypes.get_errno()
        if number != 3:  # ESRCH
            raise OSError(number, f"ptrace {request:#x}: {os.strerror(number)}")
        return 0
    return result


class Tracer:
    """Stops a process at each system call; `kill_at`: the change, which time, and when of it."""

    def __init__(self, pid: int, kill_at: tuple[str, int, str] | None) -> None:
        self._pid = pid
        self._calls = Calls(pid)
        self._kill_at = kill_at
        self._times = Counter[str]()
        self._under_way: dict[int, str] = {}  # changes by thread
        self._info = ctypes.create_string_buffer(_INFO_SIZE)

    def seize(self) -> None:
        """Follow all threads; each stops for a moment."""
        seized = set[int]()
        while fresh := {int(path.name) for path in Path(f"/proc/{self._pid}/task").iterdir()} - seized:
            for thread in fresh:
                _ptrace(_SEIZE, thread, 0, _OPTIONS)
                _ptrace(_INTERRUPT, thread)
            seized |= fresh

    def follow(self) -> None:
        """Until the process has ended."""
        while True:
            try:
                thread, status = os.waitpid(-1, _WALL)
            except ChildProcessError:
                return
            if not os.WIFSTOPPED(status):
                self._under_way.pop(thread, None)
                continue
            stop = os.WSTOPSIG(status)
            if stop == _SYSCALL_STOP:
                self._at_call(thread)
                stop = 0
            elif status >> 16:  # of ptrace's own
                stop = 0
            _ptrace(_SYSCALL, thread, 0, stop)

    def _at_call(self, thread: int) -> None:
        size = _ptrace(_GET_SYSCALL_INFO, thread, _INFO_SIZE, ctypes.addressof(self._info))
        if size <= 0:
            return
        operation, _, _, number, *arguments = _INFO.unpack_from(self._info)
        if operation == _EXIT:
            # A call is begun anew while somebody else holds a lock that it needs: it is one change.
            if number not in _RESTARTS:  # in place of the number: the result
                self._kill_if("after", self._under_way.pop(thread, ""))
        elif operation == _ENTRY and (what := self._calls.change(number, arguments)):
            if self._under_way.get(thread) == what:
                return
            self._times[what] += 1
            self._under_way[thread] = what
            print(json.dumps(what), flush=True)
            self._kill_if("before", what)

    def _kill_if(self, when: str, what: str) -> None:
        if what and (what, self._times[what], when) == self._kill_at:
            # A call at whose entry the thread is killed is not carried out (syscall_trace_enter).
            os.kill(self._pid, signal.SIGKILL)


def main() -> None:
    """PID [CHANGE TIME before|after]: prints "ready" and then each change, as JSON; ends with the process.

    Runs in a process of its own: whoever waits for a traced process's end would see its stops.
    """
    pid, *point = sys.argv[1:]
    tracer = Tracer(int(pid), (point[0], int(point[1]), point[2]) if point else None)
    tracer.seize()
    print('"ready"', flush=True)
    tracer.follow()


if __name__ == "__main__":
    main()
