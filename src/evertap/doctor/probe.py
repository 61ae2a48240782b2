"""Tries what evertap asks of the kernel, in a network namespace of this process's own, which ends with it.

`python -m evertap.doctor.probe` prints a JSON object: the error text of each trial, empty for one that went
well. What was not tried since something before it failed is left out. "namespace" is why none could be made.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from evertap.kernel import bpf, codec, tun
from evertap.kernel.codec import Message
from evertap.kernel.rtnetlink import Rtnetlink
from evertap.model.observed import Splicing

_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_SOL_NETLINK: Final = 270
_NETLINK_GET_STRICT_CHK: Final = 12
_MAC: Final = "02:00:00:00:00:01"
_TAP, _MACVLAN, _MACVTAP = "probe-tap", "probe-macvlan", "probe-macvtap"


class _Trials:
    """Each method is one trial; it raises what the kernel said."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}
        self._rtnetlink = Rtnetlink()
        # Far from what a host numbers its interfaces with: /dev/tapINDEX is seen outside of the namespace.
        self._index = random.randrange(1 << 28, 1 << 29)
        self._lower = self._tap = self._map = self._program = 0

    def run(self) -> None:
        """All trials; what rests on a failed one is left out."""
        self._try("dump", self._dump)
        self._try("strict", self._strict)
        tap = self._try("tun", self._make_tap)
        self._try("veth", self._make_veth)
        macvlan = self._try("macvlan", self._make_macvlan) if self._lower else False
        if self._lower:
            self._try("macvtap", self._make_macvtap)
        clsact = macvlan and self._try("clsact", lambda: self._ask(codec.add_clsact(self._index)))
        program = self._try("bpf", self._load)
        if clsact and program:
            self._try("cls_bpf", self._attach_filter)
        if tap and program and self._try("tcx", self._attach_tcx):
            self._try("read_back", self._read_back)

    def _try(self, name: str, trial: Callable[[], None]) -> bool:
        try:
            trial()
        except Exception as error:  # whatever it is, it is the answer
            self.said[name] = str(error) or repr(error)
        else:
            self.said[name] = ""
        return not self.said[name]

    def _ask(self, message: Message) -> None:
        (refusal,) = self._rtnetlink.request([[message]])
        if refusal:
            raise refusal

    def _dump(self) -> None:
        self._rtnetlink.dump_links()

    def _strict(self) -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            sock.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)

    def _make_tap(self) -> None:
        tun.create_tap(_TAP)  # lives as long as this process
        self._tap = self._lower = socket.if_nametoindex(_TAP)

    def _make_veth(self) -> None:
        """Another interface for a macvlan to stand on: where taps are missing, or macvlans on taps."""
        kind = struct.pack("=HH4s", 8, 1, b"veth")  # IFLA_INFO_KIND
        info = struct.pack("=HH", 4 + len(kind), 18) + kind  # IFLA_LINKINFO
        body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + info
        self._ask(Message(codec.RTM_NEWLINK, codec.NLM_F_CREATE | codec.NLM_F_EXCL, body))
        self._lower = next(link.index for link in self._rtnetlink.dump_links() if link.kind == "veth")

    def _make_macvlan(self) -> None:
        self._ask(codec.new_macvlan(self._index, _MACVLAN, self._lower, _MAC, "bridge"))

    def _make_macvtap(self) -> None:
        mac = _MAC[:-1] + "2"
        self._ask(codec.new_macvlan(self._index + 1, _MACVTAP, self._lower, mac, "bridge", kind="macvtap"))

    def _load(self) -> None:
        self._map = bpf.create_map("probe")
        bpf.write_map(self._map, Splicing(bpf.DROP, True, _MAC))
        bpf.load_tap_program(self._map)
        bpf.load_source_program(_MAC)
        self._program = bpf.load_uplink_program(self._map, self._lower)

    def _attach_filter(self) -> None:
        self._ask(codec.add_bpf_filter(self._index, self._program, bpf.UPLINK_PROGRAM))

    def _attach_tcx(self) -> None:
        bpf.attach_tcx(self._tap, bpf.load_tap_program(self._map))

    def _read_back(self) -> None:
        if bpf.find_splice(self._tap, self._rtnetlink) is None:
            raise LookupError("the program that was attached is not found")


def _enter() -> str:
    """Leave the host's network; why that is not possible."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWNET) == 0:
        return ""
    number = ctypes.get_errno()
    # A user may where user namespaces are his; there he is root of a network that nobody is in.
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
        with suppress(OSError):
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        return ""
    return os.strerror(number)


def main() -> None:
    """The child's work."""
    if reason := _enter():
        said = {"namespace": reason}
    else:
        trials = _Trials()
        trials.run()
        said = trials.said
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
