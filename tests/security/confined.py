"""Runs the daemon as evertap.service does where systemd is not there to do it: started by `confinement`.

What is left to do here, after the user, the capabilities and the file systems: the unit's system call
filter, its address families, and no memory that is written and run. Then `evertap` with the arguments that
follow.
"""

import ctypes
import json
import os
import platform
import socket
import struct
import sys

_PR_SET_MDWE = 65
_PR_SET_SECCOMP = 22
_MODE_FILTER = 2
_ALLOW, _KILL, _EAFNOSUPPORT = 0x7FFF0000, 0x80000000, 0x00050000 | 97  # SECCOMP_RET_*
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _FIRST_ARGUMENT = 0, 16  # struct seccomp_data
_SOCKET = {"x86_64": 41}.get(platform.machine(), 198)


def main() -> None:
    settings = json.loads(sys.argv[1])
    if settings["calls"] and not settings.pop("started", False):
        _prctl(_PR_SET_MDWE, 1)
        # Anew: ctypes' own loading is what could fail by it.
        settings["started"] = True
        os.execv(sys.executable, [sys.executable, __file__, json.dumps(settings), *sys.argv[2:]])
    if settings["calls"]:
        _filter(settings["calls"], settings["families"])
    from evertap import daemon
    from evertap.cli.main import main as evertap

    if settings["unchecked"]:
        vars(daemon)["check_capabilities"] = lambda: None
    del sys.argv[1]
    evertap()


def _filter(calls: list[int], families: list[str]) -> None:
    """Kill on a call that is not among these, so that none goes unnoticed."""
    code = [(_LOAD, 0, 0, _NUMBER)]
    numbers = [getattr(socket, family) for family in families]
    code += [(_EQUAL, 0, 2 * len(numbers) + 2, _SOCKET), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    for number in numbers:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    code.append((_RETURN, 0, 0, _EAFNOSUPPORT))
    for call in calls:
        code += [(_EQUAL, 0, 1, call), (_RETURN, 0, 0, _ALLOW)]
    code.append((_RETURN, 0, 0, _KILL))
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    _prctl(_PR_SET_SECCOMP, _MODE_FILTER, struct.pack("@HxxxxxxP", len(code), ctypes.addressof(program)))


def _prctl(option: int, first: int, second: bytes | None = None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    none = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(first), second or none, none, none):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


if __name__ == "__main__":
    main()
