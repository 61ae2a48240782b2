"""Everything of a laboratory's host in which a killed daemon could leave a trace, as lines to compare."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from evertap.kernel import bpf
from evertap.kernel.rtnetlink import Rtnetlink
from evertap.lab.netns import Namespace
from evertap.model.links import Link
from evertap.model.observed import PASS

_BPF: Final = 321  # bpf(2) on x86-64
_PROG_GET_NEXT_ID: Final = 11
_libc: Final = ctypes.CDLL(None)
_SHOWN: Final = ("link", "master", "mtu", "address", "promiscuity", "allmulti", "txqlen", "num_tx_queues")
_OWN_NAME: Final = re.compile(r"\bev\d{7,}\b")


class Host:
    """The devices, programs and maps in a namespace; `macs`: of its NICs, which no other namespace has."""

    def __init__(self, namespace: Namespace, macs: set[str]) -> None:
        self._namespace = namespace
        self._macs = macs
        with namespace.enter():
            self._rtnetlink = Rtnetlink()

    def close(self) -> None:
        """Give the socket back."""
        self._rtnetlink.close()

    def lines(self, daemon: int) -> list[str]:
        """What is there; `daemon`: the process whose descriptors may hold programs."""
        while True:
            try:
                return self._lines(daemon)
            except OSError as error:  # a device went while it was looked at
                if error.errno not in (errno.ENODEV, errno.ENOENT):
                    raise

    def _lines(self, daemon: int) -> list[str]:
        with self._namespace.enter():
            links = self._rtnetlink.dump_links()
            shown = {each["ifindex"]: each for each in _run("ip", "-d", "-j", "link", "show")}
            neighbours = _run("bridge", "-j", "fdb", "show")
            qdiscs = _run("tc", "-j", "qdisc", "show")
            attached = {link.index: self._attached(link) for link in links if link.owner}
            splices = {link.index: self._splice(link, links) for link in links if link.kind == "tun"}
        names = {link.name for link in links if link.owner}
        found = [_link(link, shown.get(link.index, {})) for link in links]
        for link in links:
            found += [f"program {text} on {link.name}" for _, text in attached.get(link.index, [])]
        found += [f"splice {text}" for text in splices.values()]
        found += [f"qdisc {q['kind']} on {q['dev']}" for q in qdiscs if q["dev"] in names]
        found += [
            f"neighbour {n['mac']} on {n['ifname']} {n.get('flags')} {n.get('state')} {n.get('master', '')}"
            for n in neighbours
            if n["ifname"] in names and n.get("state") in ("permanent", "static")
        ]
        known = {ident for programs in attached.values() for ident, _ in programs} | _held(daemon)
        found += [f"stray program {ident}" for ident in _programs(self._macs) - known]
        return [_OWN_NAME.sub("ev#", line) for line in found]

    def _attached(self, link: Link) -> list[tuple[int, str]]:
        """Ids and descriptions of the programs on a device."""
        found = [(ident, "tcx") for ident in bpf.tcx_programs(link.index)]
        for ingress in (True, False):
            where = "ingress" if ingress else "egress"
            for entry in self._rtnetlink.dump_filters(link.index, ingress=ingress):
                found.append((entry.prog_id, where))  # noqa: PERF401
        return [(ident, f"{_name(ident)} at {where}") for ident, where in found]

    def _splice(self, tap: Link, links: list[Link]) -> str:
        found = bpf.find_splice(tap.index, self._rtnetlink)
        if found is None:
            return f"{tap.name}: none"
        os.close(found[0])
        splicing = found[1]
        lower = next((link.lower for link in links if link.index == splicing.target), 0)
        uplink = next((link.name for link in links if link.index == lower), "")
        target = uplink or {0: "drop", PASS: "pass"}.get(splicing.target, str(splicing.target))
        return f"{tap.name}: {target} {splicing.check} {splicing.mac}"


def descriptors(pid: int) -> Counter[str]:
    """A process's descriptors by kind."""
    found = Counter[str]()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found[re.sub(r"\d+", "#", str(path.readlink()))] += 1
    return found


def files(folder: Path) -> list[str]:
    """The regular files in a trial's folders, with what is in them."""
    return [
        f"file {path.relative_to(folder)}: {path.read_text()!r}"
        for kind in ("config", "state", "runtime")
        for path in sorted((folder / kind).rglob("*"))
        # The history tells of the kill, and is SQLite's.
        if path.is_file() and not path.name.startswith("history.db")
    ]


def _run(*command: str) -> list[dict[str, Any]]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return [each for each in json.loads(done.stdout or "[]") if each]


def _link(link: Link, shown: dict[str, Any]) -> str:
    parts = [f"{key}={shown[key]}" for key in _SHOWN if key in shown]
    # NO-CARRIER follows LOWER_UP in the kernel's own time, and hangs on what the device has been through.
    flags = " ".join(sorted({*shown.get("flags", [])} - {"NO-CARRIER"}))
    mode = f"{link.kind} {link.mode}".strip()
    return f"link {link.name} ({mode}) alias={link.alias!r} {' '.join(parts)} <{flags}>"


def _name(ident: int) -> str:
    with suppress(FileNotFoundError):
        descriptor = bpf.prog_fd_by_id(ident)
        try:
            return bpf.prog_info(descriptor).name
        finally:
            os.close(descriptor)
    return "gone"


def _held(pid: int) -> set[int]:
    """The ids of the programs that a process has descriptors of."""
    found = set[int]()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(OSError):
            found |= {
                int(ident) for ident in re.findall(r"^prog_id:\s+(\d+)", path.read_text(), re.MULTILINE)
            }
    return found


def _programs(macs: set[str]) -> set[int]:
    """The programs in this machine whose map has one of the MACs, whoever holds them."""
    found = set[int]()
    for ident in _all_programs():
        with suppress(FileNotFoundError):  # it has just gone
            if not macs.isdisjoint(_macs(ident)):
                found.add(ident)
    return found


def _macs(program: int) -> Iterator[str]:
    descriptor = bpf.prog_fd_by_id(program)
    try:
        name, maps = bpf.prog_info(descriptor)
    finally:
        os.close(descriptor)
    for ident in maps if name in (bpf.TAP_PROGRAM, bpf.UPLINK_PROGRAM) else ():
        held = bpf.map_fd_by_id(ident)
        try:
            yield bpf.read_map(held).mac
        finally:
            os.close(held)


def _all_programs() -> Iterator[int]:
    ident = 0
    while True:
        attr = (ctypes.c_uint32 * 3)(ident)  # start, next, flags
        command, size = ctypes.c_long(_PROG_GET_NEXT_ID), ctypes.c_ulong(ctypes.sizeof(attr))
        if _libc.syscall(ctypes.c_long(_BPF), command, attr, size):
            return
        ident = attr[1]
        yield ident
