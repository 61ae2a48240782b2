"""Judges a host by what docs/design.md and docs/definitions.md promise, without evertap's planning."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import struct
import subprocess
from collections.abc import Iterator
from enum import IntEnum
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

from evertap.kernel import bpf
from evertap.kernel.rtnetlink import Rtnetlink
from evertap.model.views import NicView
from tests.faults.random_world import Made

OWN_INDEXES: Final = 1 << 20
"""evertap gives its macvlans indexes from here on."""
_PASS: Final = 0xFFFFFFFF
_STACKED: Final = {"bridge", "vlan", "bond", "macvlan", "macvtap", "vxlan"}

Raw = dict[str, Any]


class _Next(IntEnum):
    """Commands of bpf(2)."""

    PROG_GET_NEXT_ID = 11
    MAP_GET_NEXT_ID = 12


class Wish(NamedTuple):
    """What is wanted of a NIC: its definition's fields, and the running state's overrides."""

    fields: dict[str, Any]
    uplinks: list[Any] | None = None  # instead of the definition's
    disconnected: bool = False

    def get(self, field: str, default: Any) -> Any:
        """A field, or its default."""
        return self.fields.get(field, default)


class Candidate(NamedTuple):
    """An interface that a NIC may use, if nothing is `wrong` with it."""

    link: Raw
    mode: str
    wrong: str
    up: bool
    good: bool  # frames can leave by it

    @property
    def usable(self) -> bool:
        return self.good and not self.wrong


class Kernel:
    """What `ip` and bpf(2) say of the host now."""

    def __init__(self, rtnetlink: Rtnetlink) -> None:
        text = subprocess.run(["ip", "-d", "-j", "link"], check=True, capture_output=True, text=True).stdout
        self.links: list[Raw] = [link for link in json.loads(text) if link]
        self.by_index = {link["ifindex"]: link for link in self.links}
        self._rtnetlink = rtnetlink

    def named(self, name: str) -> Raw | None:
        """The interface of that name or altname."""
        return next((link for link in self.links if name in names(link)), None)

    def owned(self, nic: str) -> list[Raw]:
        """The NIC's devices."""
        return [link for link in self.links if owner(link) == nic]

    def above(self, index: int) -> list[Raw]:
        """The macvlans on an interface."""
        return [
            link for link in self.links if kind(link) in ("macvlan", "macvtap") and below(self, link) == index
        ]

    def splice(self, tap: Raw) -> tuple[int, int, bool, str] | None:
        """Of the tap's program: its map's id, and the map's target, check and MAC."""
        try:
            programs = bpf.tcx_programs(tap["ifindex"])
        except OSError:  # it went a moment ago
            return None
        for number in programs:
            info = _program(number)
            if info and info.name == bpf.TAP_PROGRAM:
                fd = bpf.map_fd_by_id(info.map_ids[0])
                try:
                    now = bpf.read_map(fd)
                finally:
                    os.close(fd)
                return info.map_ids[0], now.target, now.check, now.mac
        return None

    def filters(self, macvlan: Raw) -> list[tuple[str, tuple[int, ...]]]:
        """Name and maps of the programs at a macvlan's ingress."""
        entries = self._rtnetlink.dump_filters(macvlan["ifindex"])
        programs = [_program(entry.prog_id) for entry in entries]
        return [(info.name, info.map_ids) for info in programs if info]


def names(link: Raw) -> list[str]:
    """Its name and altnames."""
    return [link["ifname"], *link.get("altnames", [])]


def kind(link: Raw) -> str:
    """As `ip link add type` has it; taps are "tun"."""
    return str(link.get("linkinfo", {}).get("info_kind", ""))


def owner(link: Raw) -> str:
    """The NIC that evertap made it for."""
    alias = str(link.get("ifalias", ""))
    return alias.removeprefix("evertap:").split(" ")[0] if alias.startswith("evertap:") else ""


def below(kernel: Kernel, link: Raw) -> int | None:
    """Index of what a macvlan stands on; None if that is in another namespace."""
    if "link_netnsid" in link:
        return None
    if "link_index" in link:
        return int(link["link_index"])
    under = next((other for other in kernel.links if other["ifname"] == link.get("link")), None)
    return under["ifindex"] if under else None


def _mode(link: Raw) -> str:
    return str(link["linkinfo"]["info_data"]["mode"])


def candidates(nic: str, wish: Wish, kernel: Kernel) -> list[Candidate]:
    """Every interface that the wish names, in order of preference."""
    found: list[Candidate] = []
    for spec in wish.uplinks or wish.fields["uplinks"]:
        table = {"name": spec} if isinstance(spec, str) else spec
        for link in _matching(table, kernel):
            if all(link is not candidate.link for candidate in found):
                mode = table.get("mode") or wish.get("mode", "bridge")
                up = "UP" in link["flags"]
                good = up and (kind(link) == "bridge" or "LOWER_UP" in link["flags"])
                wrong = _wrong(nic, wish, table, link, mode, kernel)
                found.append(Candidate(link, mode, wrong, up, good))
    return found


def _matching(table: Raw, kernel: Kernel) -> list[Raw]:
    if mac := table.get("mac"):
        same = [link for link in kernel.links if link["address"] == mac and not owner(link)]
        return [link for link in same if kind(link) not in _STACKED] or same
    name = table.get("name") or table["bridge"]
    if set(name) & set("*?["):
        host = (link for link in kernel.links if not owner(link))
        return sorted(
            (link for link in host if any(fnmatchcase(one, name) for one in names(link))),
            key=lambda link: str(link["ifname"]),
        )
    link = kernel.named(name)
    return [link] if link else []


def _wrong(nic: str, wish: Wish, table: Raw, link: Raw, mode: str, kernel: Kernel) -> str:
    if owner(link):
        return "evertap's own"
    if link["link_type"] != "ether":
        return "no Ethernet"
    if "master" in link:
        return "a port"
    if kind(link) in ("macvlan", "macvtap"):
        return "the kernel puts what is made on it on what it stands on"
    if kind(link) == "bridge":
        return "" if wish.get("backend", "tap") == "tap" else "a bridge, which a macvtap cannot join"
    if "bridge" in table:
        return "no bridge"
    if link["address"] == wish.fields["mac"] and mode != "passthru":
        return "the NIC's own MAC"
    others = [above for above in kernel.above(link["ifindex"]) if owner(above) != nic]
    if any(_mode(above) == "passthru" for above in others):
        return "taken in mode passthru"
    if others and mode == "passthru":
        return "shared, and passthru takes it alone"
    if any(above["address"] == wish.fields["mac"] for above in others):
        return "a foreign device with the MAC"
    return ""


def judge(
    kernel: Kernel,
    wishes: dict[str, Wish],
    shown: list[NicView],
    held: set[str],
    made: dict[int, Made],
) -> list[str]:
    """Everything that is not as it should be."""
    views = {view.name: view for view in shown}
    wrong = []
    kept = {nic for nic in held if kernel.owned(nic)}
    if views.keys() != wishes.keys() | kept:
        wrong.append(f"NICs told: {sorted(views)}, right: {sorted(wishes.keys() | kept)}")
    for nic, wish in wishes.items():
        if nic in views:
            wrong += [f"{nic}: {text}" for text in _judge_nic(kernel, nic, wish, views[nic])]
    wrong += [
        f"{link['ifname']}: {text}"
        for link in kernel.links
        for text in _judge_device(kernel, link, wishes, held)
    ]
    wrong += _judge_host(kernel, wishes, made)
    return wrong


def _judge_nic(kernel: Kernel, nic: str, wish: Wish, view: NicView) -> Iterator[str]:
    namesake = kernel.named(nic)
    if namesake and owner(namesake) != nic:
        if (view.state, view.uplink, view.tap) != ("failed", None, None):
            yield f"its name is taken, and it is {view.state} on {view.uplink}, tap {view.tap}"
        return
    devices = kernel.owned(nic)
    macvlans = [link for link in devices if kind(link) in ("macvlan", "macvtap")]
    found = candidates(nic, wish, kernel)
    if wish.get("backend", "tap") == "macvtap":  # without a VM, there is nothing to do
        right = "disconnected" if wish.disconnected else "waiting"
        if view.state != right or view.uplink or macvlans:
            yield f"{view.state} on {view.uplink} with {len(macvlans)} devices, right: {right}, with none"
        return
    taps = [link for link in devices if link not in macvlans]
    if [link["ifname"] for link in taps] != [nic] or view.tap != nic:
        yield f"its taps are {[link['ifname'] for link in taps]}, told: {view.tap}"
        return
    (tap,) = taps
    splice = kernel.splice(tap)
    if splice is None:
        yield "its tap has no program"
        return
    map_id, target, check, mac = splice
    if (mac, check) != (wish.fields["mac"], wish.get("spoof_check", True)) and not wish.disconnected:
        yield f"its map checks {check} for {mac}"
    if "UP" not in tap["flags"] or tap["mtu"] != wish.get("mtu", 1500):
        yield f"its tap has flags {tap['flags']} and MTU {tap['mtu']}"
    yield from _judge_macvlans(kernel, wish, macvlans, found, map_id)
    yield from _judge_target(kernel, wish, view, tap, target, macvlans, found)


def _judge_target(
    kernel: Kernel,
    wish: Wish,
    view: NicView,
    tap: Raw,
    target: int,
    macvlans: list[Raw],
    found: list[Candidate],
) -> Iterator[str]:
    if target == _PASS:
        on = kernel.named(tap["master"]) if "master" in tap else None
    else:
        on = next(
            (kernel.by_index.get(below(kernel, m) or 0) for m in macvlans if m["ifindex"] == target), None
        )
    name = on["ifname"] if on else None
    if "master" in tap and target != _PASS:
        yield f"its tap is a port of {tap['master']}, and its map says {target}"
    if target and not on:
        yield f"its map says {target}, which leads nowhere"
    if wish.disconnected:
        if target or view.state != "disconnected" or view.uplink:
            yield f"disconnected by command, and {view.state} on {name}"
        return
    usable = [candidate.link for candidate in found if candidate.usable]
    if not usable:
        # A lost carrier with no alternative leaves the splice where it is, or lets it wait for the first.
        fit, first = _fit(found), next((c.link for c in found if c.up and not c.wrong), None)
        if view.state != "waiting" or view.uplink or (on and on not in fit) or (first and not on):
            yield f"nothing is usable, and it is {view.state}, told {view.uplink}, on {name}"
        return
    right = usable[:1] if not wish.get("failback_delay", 5) and not wish.get("flap_hold", 30) else usable
    if on not in right or (view.state, view.uplink) != ("connected", name):
        expected = [link["ifname"] for link in right]
        yield f"{view.state}, told {view.uplink}, on {name}; right is {expected}"


def _fit(found: list[Candidate]) -> list[Raw]:
    return [candidate.link for candidate in found if not candidate.wrong]


def _judge_macvlans(
    kernel: Kernel, wish: Wish, macvlans: list[Raw], found: list[Candidate], map_id: int
) -> Iterator[str]:
    on = [below(kernel, macvlan) for macvlan in macvlans]
    fit = {c.link["ifindex"]: c for c in found if not c.wrong and kind(c.link) != "bridge"}
    if wish.disconnected:
        fit = {}
    if len(set(on)) != len(on) or not set(on) <= fit.keys():
        yield f"it has macvlans on {on}, and may have them on {sorted(fit)}"
        return
    up = {index for index, candidate in fit.items() if candidate.up}
    if wish.get("failover", "hot") == "hot" and not up <= set(on):
        yield f"it has macvlans on {on}, and lacks some on {sorted(up)}"
    if wish.get("failover", "hot") == "cold" and len(on) > 1:
        yield f"it has macvlans on {on}, and one is enough"
    for macvlan, index in zip(macvlans, on, strict=True):
        candidate = fit[index or 0]
        mtu = min(wish.get("mtu", 1500), candidate.link["mtu"])
        mac = candidate.link["address"] if candidate.mode == "passthru" else wish.fields["mac"]
        are = kind(macvlan), _mode(macvlan), macvlan["mtu"], macvlan["address"]
        if are != ("macvlan", candidate.mode, mtu, mac):
            yield f"{macvlan['ifname']} is {are}, right: {candidate.mode}, {mtu}, {mac}"
        missing = {"UP", "NOARP", "ALLMULTI"} - set(macvlan["flags"])
        if missing - ({"UP"} if not candidate.usable else set()):
            yield f"{macvlan['ifname']} lacks {missing}"
        if kernel.filters(macvlan) != [(bpf.UPLINK_PROGRAM, (map_id,))]:
            yield f"{macvlan['ifname']} has the programs {kernel.filters(macvlan)}, and the map is {map_id}"


def _judge_device(kernel: Kernel, link: Raw, wishes: dict[str, Wish], held: set[str]) -> Iterator[str]:
    nic = owner(link)
    if not nic and link["ifindex"] >= OWN_INDEXES:
        yield "is half made: it has no mark"
    if nic and nic not in wishes:
        splice = kernel.splice(link) if kind(link) == "tun" else None
        if nic not in held or splice is None or splice[1] or "master" in link:
            yield f"is left over, with {splice}"


def _judge_host(kernel: Kernel, wishes: dict[str, Wish], made: dict[int, Made]) -> Iterator[str]:
    wanted: set[int] = set()
    for nic, wish in wishes.items():
        taken = kernel.named(nic)
        if wish.get("bring_up", True) and not wish.disconnected and (not taken or owner(taken)):
            wanted |= {link["ifindex"] for link in _fit(candidates(nic, wish, kernel))}
    for index, should in made.items():
        link = kernel.by_index.get(index)
        if link is None:
            if should.kind != "macvlan":  # which goes with what it stands on
                yield f"{should.name} is gone"
            continue
        are = (link["ifname"], link["address"], link["mtu"])
        if should.kind == "veth" and are != (should.name, should.mac, should.mtu):
            yield f"{should.name} is {are}, and was made {should}"
        up = "UP" in link["flags"]
        if index in wanted and not up and not should.set_down:
            yield f"{should.name} has not been set up"
        if up and should.keep_down:
            yield f"{should.name} was set down by the administrator, and is up"


def bpf_objects(prefix: str) -> list[str]:
    """The BPF maps of NICs whose names start so, and the programs that use them; of all namespaces."""
    found: list[str] = []
    maps: set[int] = set()
    for number in _ids(_Next.MAP_GET_NEXT_ID):
        if name := _map_name(number, prefix):
            maps.add(number)
            found.append(f"map {number} {name}")
    for number in _ids(_Next.PROG_GET_NEXT_ID):
        info = _program(number)
        if info and maps & set(info.map_ids):
            found.append(f"program {number} {info.name}")
    return found


def _ids(command: _Next) -> Iterator[int]:
    number = 0
    while True:
        try:
            answer = bpf._bpf(command, "=III", number, 0, 0)  # type: ignore[arg-type]
        except FileNotFoundError:
            return
        (number,) = struct.unpack_from("=I", answer, 8)
        yield number


def _map_name(number: int, prefix: str) -> str:
    """The map's name, if it starts so."""
    with contextlib.suppress(FileNotFoundError):
        fd = bpf.map_fd_by_id(number)
        try:
            info = ctypes.create_string_buffer(40)  # struct bpf_map_info as far as its name
            bpf._bpf(bpf._Command.OBJ_GET_INFO_BY_FD, "=IIQ", fd, 40, ctypes.addressof(info))
        finally:
            os.close(fd)
        name = info.raw[24:].rstrip(b"\0").decode()
        return name if name.startswith(prefix) else ""
    return ""


def _program(number: int) -> bpf.ProgramInfo | None:
    try:
        fd = bpf.prog_fd_by_id(number)
    except FileNotFoundError:
        return None
    try:
        return bpf.prog_info(fd)
    finally:
        os.close(fd)
