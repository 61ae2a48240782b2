"""Which interfaces a NIC could use, why each is or is not usable, and which one it is to use."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

import msgspec

from evertap.model.links import ARPHRD_ETHER, Link
from evertap.model.nic import GLOB, Mode, Nic, UplinkSpec
from evertap.model.observed import PASS, Observed, is_good
from evertap.model.table import STACKED_ON_UPLINK
from evertap.model.vmm import Vmm, is_plugged

_STACKED = {"bridge", "vlan", "bond", "team", "macvlan", "macvtap", "ipvlan", "macsec", "vxlan"}


class Wanted(msgspec.Struct, frozen=True):
    """One NIC as it is wanted now."""

    nic: Nic
    since: float = float(
        "-inf"
    )  # when this became the wish: an uplink good since before needs no failback delay
    disconnected: bool = False  # by the administrator
    removed: bool = False  # the definition is gone; the tap stays while a VM holds it
    idle: str = ""  # why only its tap is wanted yet
    qmp: str = ""  # the QMP socket of the VM, if there is one for us


class Candidate(NamedTuple):
    """An interface (or the lack of one) that a definition's uplink stands for."""

    spec: UplinkSpec
    link: Link | None
    mode: Mode
    fit: bool = False  # nothing stands against a macvlan on it (or against joining it)
    usable: bool = False
    held_until: float = 0.0  # avoided while another is usable
    reason: str = ""  # why not usable, or a warning

    @property
    def name(self) -> str:
        """The interface's name, or what was asked for."""
        return self.link.name if self.link else str(self.spec)

    @property
    def is_bridge(self) -> bool:
        """Whether the tap joins it instead of having a macvlan on it."""
        return self.link is not None and self.link.kind == "bridge"


def candidates(nic: Nic, seen: Observed, now: float) -> list[Candidate]:
    """Every interface that the NIC's uplinks stand for, in order of preference; missing ones too."""
    found: list[Candidate] = []
    taken: set[int] = set()
    for spec in nic.uplinks:
        matches = [link for link in matching(spec, seen) if link.index not in taken]
        taken.update(link.index for link in matches)
        found.extend(_judge(nic, spec, link, seen, now) for link in matches)
        if not matches:
            found.append(Candidate(spec, None, nic.mode_on(spec), reason="no such interface"))
    return found


def matching(spec: UplinkSpec, seen: Observed) -> Iterator[Link]:
    """The interfaces that a definition's uplink names now, best first."""
    key, value = spec.target
    links = seen.links
    if key == "mac":
        # A VLAN, bond or bridge bears the MAC of what it stands on: the interface itself is meant.
        same = [link for link in links.with_mac(value) if not link.owner]
        below = [link for link in same if link.kind not in _STACKED]
        burnt_in = [link for link in below if link.perm_mac == value]
        yield from burnt_in or below or same
    elif key == "path":
        yield from (link for link in links.host() if f"{link.parent_bus}-{link.parent_dev}" == value)
    elif GLOB.search(value):
        named = (link for link in links.host() if any(fnmatchcase(name, value) for name in link.names))
        yield from sorted(named, key=lambda link: link.name)
    elif link := links.named(value):
        yield link


def _judge(nic: Nic, spec: UplinkSpec, link: Link, seen: Observed, now: float) -> Candidate:
    mode = nic.mode_on(spec)
    obstacle = _obstacle(nic, spec, link, mode, seen)
    if obstacle:
        return Candidate(spec, link, mode, reason=obstacle)
    if not is_good(link):
        reason = "has no carrier" if link.up else "is down"
        return Candidate(spec, link, mode, fit=True, reason=reason)
    held_until = seen.held_until(link.name, nic.flap_hold) if nic.flap_hold else 0.0
    if held_until > now:
        reason = f"failed 5 times within 60 s; avoided for {nic.flap_hold:g} s while another is usable"
        return Candidate(spec, link, mode, True, True, held_until, reason)
    warning = f"MTU {link.mtu} is smaller than the NIC's {nic.mtu}" if link.mtu < nic.mtu else ""
    return Candidate(spec, link, mode, True, True, reason=warning)


def _obstacle(nic: Nic, spec: UplinkSpec, link: Link, mode: Mode, seen: Observed) -> str:
    """What forbids this interface to this NIC, as long as nobody changes it; empty if nothing."""
    if link.owner:
        return f'is evertap\'s own device, of NIC "{link.owner}"'
    if link.type != ARPHRD_ETHER:
        return "is not an Ethernet interface"
    if link.master:
        master = seen.links.get(link.master)
        name = master.name if master else f"interface {link.master}"
        if link.port_kind == "bridge":
            return f'is a port of bridge {name}; use {{ bridge = "{name}" }}'
        return f'belongs to {name}; use "{name}"'
    if link.kind in STACKED_ON_UPLINK:
        below = seen.links.get(link.below)
        return f"is a {link.kind}, and none can stand on it" + (f'; use "{below.name}"' if below else "")
    if link.kind == "bridge":
        return "" if nic.backend == "tap" else 'is a bridge, which backend "macvtap" cannot join; use "tap"'
    if spec.bridge:
        return "is not a bridge; write the name alone for a macvlan on it"
    return _taken(nic, link, mode, seen)


def _taken(nic: Nic, link: Link, mode: Mode, seen: Observed) -> str:
    if link.mac == nic.mac and mode != "passthru":
        return "has this NIC's own MAC address; give one of them another"
    # Thousands may stand on one uplink. One in mode passthru stands there alone: the first tells of all.
    for above in seen.links.above(link.index):
        if above.owner != nic.name:
            user = f'NIC "{above.owner}"' if above.owner else f"{above.kind} {above.name}"
            if above.mode == "passthru":
                return f"is taken by {user} in mode passthru"
            if mode == "passthru":
                return f"is used by {user}, and mode passthru needs it alone"
        if mode != "passthru":
            break
    for same in seen.links.with_mac(nic.mac):
        if same.kind in STACKED_ON_UPLINK and same.below == link.index and same.owner != nic.name:
            return (
                f"has a foreign {same.kind} {same.name} with this NIC's MAC; "
                f"remove it: ip link del {same.name}"
            )
    return ""


def current(wanted: Wanted, seen: Observed) -> int:
    """Index of the uplink that the NIC is on now; 0 if none, or if it has gone."""
    if wanted.nic.backend == "macvtap":
        return _current_macvtap(wanted, seen)
    name = wanted.nic.name
    splicing = seen.taps.get(name)
    if splicing is None or not splicing.target:
        return 0
    if splicing.target == PASS:
        return next((link.master for link in seen.links.owned(name) if link.kind not in STACKED_ON_UPLINK), 0)
    macvlan = seen.links.get(splicing.target)
    return macvlan.below if macvlan and macvlan.owner == name else 0


def _current_macvtap(wanted: Wanted, seen: Observed) -> int:
    name, vmm = wanted.nic.name, seen.vmms.get(wanted.qmp, Vmm())
    for link in seen.links.owned(name):
        if link.kind == "macvtap" and is_plugged(name, link.index, vmm):
            return link.below
    return 0


class Choice(NamedTuple):
    """The candidate to use, and when to choose anew although nothing happens (inf: never)."""

    candidate: Candidate | None
    again_at: float = float("inf")


def choose(wanted: Wanted, found: list[Candidate], on: int, seen: Observed, now: float) -> Choice:
    """Choose among the candidates for a NIC that is on uplink `on` (index; 0: none)."""
    usable = [candidate for candidate in found if candidate.usable]
    if not usable:
        return Choice(None)
    free = [candidate for candidate in usable if candidate.held_until <= now]
    holds = [candidate.held_until for candidate in usable if candidate.held_until > now]
    again_at = min(holds, default=float("inf"))
    for candidate in free or usable:
        link = candidate.link
        assert link is not None
        if link.index == on or not any(other.link and other.link.index == on for other in free or usable):
            return Choice(candidate, again_at)
        # Preferred to the one in use: return to it once it has been good for long enough.
        good_since = seen.good_since.get(link.index, now)
        if good_since <= wanted.since:
            return Choice(candidate, again_at)
        if wanted.nic.failback_delay >= 0:
            due = good_since + wanted.nic.failback_delay
            if due <= now:
                return Choice(candidate, again_at)
            again_at = min(again_at, due)
    raise AssertionError("the uplink in use is among the usable ones")
