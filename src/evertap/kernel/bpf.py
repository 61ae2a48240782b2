"""The two BPF programs that splice a tap to an uplink, their map, and bpf(2) to handle them."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from evertap.model.observed import PASS, Splicing

if TYPE_CHECKING:
    from evertap.kernel.rtnetlink import Rtnetlink

DROP: Final = 0
"""Splice target: drop every frame of the guest. The others are an ifindex and `PASS` of the model."""

TAP_PROGRAM: Final = "evertap_tap"
UPLINK_PROGRAM: Final = "evertap_uplink"
SOURCE_PROGRAM: Final = "evertap_source"

# linux/bpf.h
_SYSCALL: Final = {"x86_64": 321, "ppc64le": 361, "s390x": 351}.get(os.uname().machine, 280)
_PROG_TYPE_SCHED_CLS: Final = 3
_MAP_TYPE_ARRAY: Final = 2
_TCX_INGRESS: Final = 46
_NAME_LENGTH: Final = 15
_LOOPBACK: Final = 1
_ID_SLOTS: Final = 64
_LOG_SIZE: Final = 64 << 10

# TC_ACT_* of linux/pkt_cls.h; the same numbers serve as TCX_*
_ACT_OK: Final = 0
_ACT_SHOT: Final = 2

# struct __sk_buff
_SKB_IFINDEX: Final = 40
_SKB_DATA: Final = 76
_SKB_DATA_END: Final = 80

# the map's value; with the MAC before the check its loads are aligned, here and (NET_IP_ALIGN 2) in the frame
_VALUE: Final = struct.Struct("=I6sH")
_TARGET, _MAC, _CHECK = 0, 4, 10
_FRAME_HEADER: Final = 14
_FRAME_SOURCE: Final = 6


class _Command(IntEnum):
    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    PROG_LOAD = 5
    PROG_ATTACH = 8
    PROG_DETACH = 9
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16


class ProgramInfo(NamedTuple):
    """A loaded program: its name and the ids of the maps it uses."""

    name: str
    map_ids: tuple[int, ...]


_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _bpf(command: _Command, layout: str, *values: int | bytes) -> bytes:
    """bpf(2) with a packed union bpf_attr. Gives its result (4 bytes) and the attr as the kernel left it."""
    attr = ctypes.create_string_buffer(struct.pack(layout, *values))
    size = len(attr) - 1
    result = _libc.syscall(
        ctypes.c_long(_SYSCALL), ctypes.c_long(command), ctypes.byref(attr), ctypes.c_ulong(size)
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf {command.name}: {os.strerror(number)}")
    return struct.pack("=i", result) + attr.raw[:size]


def _fd(answer: bytes) -> int:
    # the kernel gives every BPF descriptor close-on-exec
    fd: int = struct.unpack_from("=i", answer)[0]
    return fd


def _object_name(name: str) -> bytes:
    # the kernel allows letters, digits, "_" and "." only
    return re.sub(r"[^A-Za-z0-9_.]", "_", name)[:_NAME_LENGTH].encode()


# --- the map --------------------------------------------------------------------------------------


def create_map(name: str) -> int:
    """Make a NIC's map, at `DROP`; `name` is for people. Gives its descriptor. Raises OSError."""
    layout = "=IIIIIII16s"  # type, key size, value size, entries, flags, inner map, NUMA node, name
    values = (_MAP_TYPE_ARRAY, 4, _VALUE.size, 1, 0, 0, 0, _object_name(name))
    return _fd(_bpf(_Command.MAP_CREATE, layout, *values))


def read_map(fd: int) -> Splicing:
    """What the map holds. Raises OSError."""
    key, value = ctypes.c_uint32(0), ctypes.create_string_buffer(_VALUE.size)
    _bpf(_Command.MAP_LOOKUP_ELEM, "=IxxxxQQQ", fd, ctypes.addressof(key), ctypes.addressof(value), 0)
    target, mac, check = _VALUE.unpack(value.raw)
    return Splicing(target, bool(check), mac.hex(":"))


def write_map(fd: int, splice: Splicing) -> None:
    """Let the programs act on it from the next frame on. Raises OSError."""
    key, value = ctypes.c_uint32(0), ctypes.create_string_buffer(_pack(splice), _VALUE.size)
    _bpf(_Command.MAP_UPDATE_ELEM, "=IxxxxQQQ", fd, ctypes.addressof(key), ctypes.addressof(value), 0)


def _pack(splice: Splicing) -> bytes:
    return _VALUE.pack(splice.target, bytes.fromhex(splice.mac.replace(":", "")), splice.check)


# --- the assembler: one function an instruction (linux/bpf.h, Documentation/bpf/standardization) --

_Line = bytes | str | tuple[bytes, str]
"""An instruction, a label, or a jump that still has to learn how far it is to its label."""

_R0, _R1, _R2, _R6, _R7, _R8, _R9, _R10 = 0, 1, 2, 6, 7, 8, 9, 10
_SIZES: Final = {4: 0x00, 2: 0x08}
_MAP_LOOKUP: Final = 1  # enum bpf_func_id
_REDIRECT: Final = 23


def _insn(code: int, dst: int, src: int, offset: int, value: int) -> bytes:
    # registers are bit fields: their order within the byte follows the machine's byte order
    registers = dst | src << 4 if struct.pack("=H", 1)[0] else src | dst << 4
    return struct.pack("=BBhI", code, registers, offset, value & 0xFFFFFFFF)


def _copy(dst: int, src: int) -> bytes:
    return _insn(0xBF, dst, src, 0, 0)


def _set(dst: int, value: int) -> bytes:
    return _insn(0xB7, dst, 0, 0, value)


def _add(dst: int, value: int) -> bytes:
    return _insn(0x07, dst, 0, 0, value)


def _load(size: int, dst: int, src: int, offset: int) -> bytes:
    return _insn(0x61 | _SIZES[size], dst, src, offset, 0)


def _store_value(dst: int, offset: int, value: int) -> bytes:
    return _insn(0x62, dst, 0, offset, value)


def _load_map(dst: int, fd: int) -> bytes:
    return _insn(0x18, dst, 1, 0, fd) + _insn(0, 0, 0, 0, 0)  # BPF_PSEUDO_MAP_FD


def _call(function: int) -> bytes:
    return _insn(0x85, 0, 0, 0, function)


def _leave() -> bytes:
    return _insn(0x95, 0, 0, 0, 0)


def _if_value(comparison: str, dst: int, value: int, label: str) -> tuple[bytes, str]:
    # 32-bit comparison, so that 0xffffffff is not taken for -1 in 64 bits
    return _insn({"==": 0x16, "!=": 0x56}[comparison], dst, 0, 0, value), label


def _if_register(comparison: str, dst: int, src: int, label: str) -> tuple[bytes, str]:
    return _insn({"==": 0x1D, "!=": 0x5D, ">": 0x2D}[comparison], dst, src, 0, 0), label


def _if_null(dst: int, label: str) -> tuple[bytes, str]:
    return _insn(0x15, dst, 0, 0, 0), label


def _assemble(listing: list[_Line]) -> bytes:
    places: dict[str, int] = {}
    code: list[bytes | tuple[bytes, str]] = []
    position = 0
    for line in listing:
        if isinstance(line, str):
            places[line] = position
            continue
        code.append(line)
        position += len(line) // 8 if isinstance(line, bytes) else 1
    program = b""
    for entry in code:
        if isinstance(entry, bytes):
            program += entry
        else:
            jump, label = entry
            distance = places[label] - len(program) // 8 - 1
            program += jump[:2] + struct.pack("=h", distance) + jump[4:]
    return program


def _look_up(map_fd: int) -> list[_Line]:
    """r0: the map's value; goes to "drop" without one."""
    return [
        _store_value(_R10, -4, 0),  # key 0, on the stack
        _load_map(_R1, map_fd),
        _copy(_R2, _R10),
        _add(_R2, -4),
        _call(_MAP_LOOKUP),
        _if_null(_R0, "drop"),
    ]


def _tap_listing(map_fd: int) -> list[_Line]:
    return [
        _copy(_R6, _R1),  # r6: the frame's context, kept over calls
        *_look_up(map_fd),
        _load(4, _R9, _R0, _TARGET),  # r9: target
        _if_value("==", _R9, DROP, "drop"),
        _load(4, _R7, _R6, _SKB_DATA),  # r7: the frame
        _load(4, _R8, _R6, _SKB_DATA_END),
        _copy(_R1, _R7),
        _add(_R1, _FRAME_HEADER),
        _if_register(">", _R1, _R8, "drop"),  # shorter than an Ethernet header
        _load(2, _R1, _R0, _CHECK),
        _if_value("==", _R1, 0, "send"),
        _load(4, _R1, _R0, _MAC),
        _load(4, _R2, _R7, _FRAME_SOURCE),
        _if_register("!=", _R1, _R2, "drop"),
        _load(2, _R1, _R0, _MAC + 4),
        _load(2, _R2, _R7, _FRAME_SOURCE + 4),
        _if_register("!=", _R1, _R2, "drop"),
        "send",
        _if_value("==", _R9, PASS, "pass"),
        _copy(_R1, _R9),
        _set(_R2, 0),
        _call(_REDIRECT),  # r0: TC_ACT_REDIRECT
        _leave(),
        "pass",
        _set(_R0, _ACT_OK),
        _leave(),
        "drop",
        _set(_R0, _ACT_SHOT),
        _leave(),
    ]


def _uplink_listing(map_fd: int, tap_index: int) -> list[_Line]:
    return [
        _copy(_R6, _R1),
        *_look_up(map_fd),
        _load(4, _R1, _R0, _TARGET),
        _load(4, _R2, _R6, _SKB_IFINDEX),
        _if_register("!=", _R1, _R2, "drop"),  # this macvlan only stands by
        _set(_R1, tap_index),
        _set(_R2, 0),
        _call(_REDIRECT),
        _leave(),
        "drop",
        _set(_R0, _ACT_SHOT),
        _leave(),
    ]


def _source_listing(mac: str) -> list[_Line]:
    """For a macvtap's egress: drop what has another source than `mac`; with none, drop nothing."""
    if not mac:
        return [_set(_R0, _ACT_OK), _leave()]
    high, low = struct.unpack("=IH", bytes.fromhex(mac.replace(":", "")))
    return [
        _load(4, _R7, _R1, _SKB_DATA),
        _load(4, _R8, _R1, _SKB_DATA_END),
        _copy(_R2, _R7),
        _add(_R2, _FRAME_HEADER),
        _if_register(">", _R2, _R8, "drop"),
        _load(4, _R2, _R7, _FRAME_SOURCE),
        _if_value("!=", _R2, high, "drop"),
        _load(2, _R2, _R7, _FRAME_SOURCE + 4),
        _if_value("!=", _R2, low, "drop"),
        _set(_R0, _ACT_OK),
        _leave(),
        "drop",
        _set(_R0, _ACT_SHOT),
        _leave(),
    ]


# --- programs -------------------------------------------------------------------------------------


def load_tap_program(map_fd: int) -> int:
    """Load the program for a tap's ingress, that is for what the guest sends. Gives its descriptor.

    It drops while the map says `DROP`, drops frames of a foreign source if the map says to check, else
    redirects to the target or lets pass. Raises OSError, with what the verifier said.
    """
    return _load_program(TAP_PROGRAM, _tap_listing(map_fd))


def load_uplink_program(map_fd: int, tap_index: int) -> int:
    """Load the program for the ingress of a NIC's macvlans. Gives its descriptor. Raises OSError.

    Frames go to the tap while the map names the macvlan that received them, and are dropped otherwise.
    """
    return _load_program(UPLINK_PROGRAM, _uplink_listing(map_fd, tap_index))


def load_source_program(mac: str) -> int:
    """Load the program for a macvtap's egress, that is for what the guest sends. Gives its descriptor.

    It drops frames of another source than `mac`; with an empty one, none. Raises OSError.
    """
    return _load_program(SOURCE_PROGRAM, _source_listing(mac))


def _load_program(name: str, listing: list[_Line]) -> int:
    code = ctypes.create_string_buffer(_assemble(listing))
    licence = ctypes.create_string_buffer(b"Apache-2.0")  # neither helper is for GPL programs only
    log = ctypes.create_string_buffer(_LOG_SIZE)

    def load(log_size: int) -> int:
        # type, instructions, their address, licence, log level, size, address, kernel version, flags, name
        layout = "=IIQQIIQII16s"
        count = (len(code) - 1) // 8
        logging = (1, log_size, ctypes.addressof(log)) if log_size else (0, 0, 0)
        places = (ctypes.addressof(code), ctypes.addressof(licence))
        values = (_PROG_TYPE_SCHED_CLS, count, *places, *logging, 0, 0, _object_name(name))
        return _fd(_bpf(_Command.PROG_LOAD, layout, *values))

    try:
        return load(0)
    except OSError as error:
        # the verifier's own refusal is EACCES, which Python calls PermissionError as well
        if error.errno == errno.EPERM:
            problem = f"{error.strerror}; loading {name} takes CAP_BPF and CAP_NET_ADMIN"
            raise PermissionError(error.errno, problem) from None
        # the log costs time, so it is asked for only once something is wrong
        try:
            return load(_LOG_SIZE)
        except OSError as error:
            tail = " / ".join(log.value.decode(errors="replace").strip().splitlines()[-4:])
            problem = f"{error.strerror}; loading {name}: {tail or 'no verifier log'}"
            raise OSError(error.errno, problem) from None


def prog_fd_by_id(prog_id: int) -> int:
    """A descriptor of a loaded program. Takes CAP_SYS_ADMIN. Raises OSError: ENOENT if it is gone."""
    return _fd(_bpf(_Command.PROG_GET_FD_BY_ID, "=III", prog_id, 0, 0))


def map_fd_by_id(map_id: int) -> int:
    """A descriptor of a map. Takes CAP_SYS_ADMIN. Raises OSError: ENOENT if it is gone."""
    return _fd(_bpf(_Command.MAP_GET_FD_BY_ID, "=III", map_id, 0, 0))


def prog_info(fd: int) -> ProgramInfo:
    """Name and maps of a program. Raises OSError."""
    ids = (ctypes.c_uint32 * _ID_SLOTS)()
    layout = struct.Struct("=52xIQ16s")  # struct bpf_prog_info as far as its name
    info = ctypes.create_string_buffer(layout.pack(_ID_SLOTS, ctypes.addressof(ids), b""), layout.size)
    _bpf(_Command.OBJ_GET_INFO_BY_FD, "=IIQ", fd, layout.size, ctypes.addressof(info))
    count, _, name = layout.unpack(info.raw)
    return ProgramInfo(name.rstrip(b"\0").decode(), tuple(ids[: min(count, _ID_SLOTS)]))


# --- tcx (Linux 6.6) ------------------------------------------------------------------------------


def attach_tcx(ifindex: int, prog_fd: int) -> None:
    """Run a program on every frame that an interface receives, until detached or the interface is gone.

    It outlives this process. Takes 8 to 16 ms, for the kernel waits for RCU. Raises FileExistsError if the
    very same program is attached already, OSError (ENODEV; EINVAL without tcx).
    """
    _bpf(_Command.PROG_ATTACH, "=IIIIIIQ", ifindex, prog_fd, _TCX_INGRESS, 0, 0, 0, 0)


def detach_tcx(ifindex: int, prog_fd: int) -> None:
    """Take a program off again. Raises FileNotFoundError if it is not attached, OSError."""
    _bpf(_Command.PROG_DETACH, "=IIIIIIQ", ifindex, prog_fd, _TCX_INGRESS, 0, 0, 0, 0)


def tcx_programs(ifindex: int) -> list[int]:
    """The ids of the programs at an interface's tcx ingress, in the order they run. Raises OSError."""
    ids = (ctypes.c_uint32 * _ID_SLOTS)()
    # interface, type, flags (2), address of the ids, their count, padding; flags and links (3); revision
    layout = "=IIIIQIIQQQQ"
    values = (ifindex, _TCX_INGRESS, 0, 0, ctypes.addressof(ids), _ID_SLOTS, 0, 0, 0, 0, 0)
    answer = _bpf(_Command.PROG_QUERY, layout, *values)
    count: int = struct.unpack_from("=I", answer, 4 + 24)[0]
    return list(ids[:count])


def tcx_supported() -> bool:
    """Whether this kernel has tcx. Raises PermissionError without CAP_NET_ADMIN, OSError."""
    try:
        tcx_programs(_LOOPBACK)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def find_splice(ifindex: int, rtnetlink: Rtnetlink) -> tuple[int, Splicing] | None:
    """The map of a tap's program, as a new descriptor for the caller to close, and what it holds. Or None.

    Looks at tcx first, then at the clsact filters. Raises OSError, KernelRefusal.
    """
    for prog_id in _programs(ifindex, rtnetlink):
        try:
            prog_fd = prog_fd_by_id(prog_id)
        except FileNotFoundError:  # detached a moment ago
            continue
        try:
            info = prog_info(prog_fd)
            if info.name == TAP_PROGRAM and info.map_ids:
                map_fd = map_fd_by_id(info.map_ids[0])
                try:
                    return map_fd, read_map(map_fd)
                except BaseException:
                    os.close(map_fd)
                    raise
        finally:
            os.close(prog_fd)
    return None


def _programs(ifindex: int, rtnetlink: Rtnetlink) -> list[int]:
    try:
        attached = tcx_programs(ifindex)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel without tcx
            raise
        attached = []
    return attached + [entry.prog_id for entry in rtnetlink.dump_filters(ifindex) if entry.prog_id]
