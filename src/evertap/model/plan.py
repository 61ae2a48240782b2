"""The difference between what is wanted and what is, as actions. Pure: daemon, dry run and tests share it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from evertap.model.actions import (
    Action,
    Announce,
    BringUp,
    CreateMacvlan,
    CreateTap,
    JoinBridge,
    LeaveBridge,
    RemoveMacvlan,
    RemoveTap,
    SetMtu,
    Splice,
)
from evertap.model.choice import Candidate, Wanted, candidates, choose, current
from evertap.model.links import MARK, Link
from evertap.model.nic import Nic
from evertap.model.observed import PASS, Observed, Splicing
from evertap.model.table import STACKED_ON_UPLINK

State = Literal["connected", "waiting", "disconnected", "failed"]


class Plan(NamedTuple):
    """What one NIC is, what to do for it, and when to plan again although nothing happens (inf: never)."""

    state: State
    uplink: Link | None  # the one that it is connected to
    reason: str
    found: list[Candidate]
    actions: list[Action]
    again_at: float = float("inf")


def plan(wanted: Wanted, seen: Observed, now: float) -> Plan:
    """Plan one NIC."""
    nic = wanted.nic
    named = seen.links.named(nic.name)
    if named and named.owner != nic.name:
        reason = (
            f'an interface named "{nic.name}" exists that evertap did not make; it is left alone. '
            "Rename it, or give the NIC another name"
        )
        return Plan("failed", None, reason, [], [])
    found = candidates(nic, seen, now)
    on = current(nic.name, seen)
    tap, splicing = (named, seen.taps.get(nic.name)) if named else (None, None)
    if wanted.removed:
        view = _View(nic, seen, found, None, None, tap, splicing)
        reason = "the definition was removed; the tap stays until its VM has gone"
        return Plan("disconnected", None, reason, [], [*_tear_down(view), *_retire(view)])
    if nic.backend != "tap":
        reason = 'backend "macvtap" is not in this version; set backend = "tap"'
        return Plan("failed", None, reason, found, [])
    renewal = list(_renew_tap(nic, tap, splicing))
    if any(isinstance(action, CreateTap) for action in renewal):
        tap, splicing = None, None
    if wanted.disconnected:
        view = _View(nic, seen, found, None, None, tap, splicing)
        reason = f"disconnected by the administrator; `evertap connect {nic.name}` ends it"
        return Plan("disconnected", None, reason, found, [*renewal, *_tear_down(view)])
    chosen, again_at = choose(wanted, found, on, seen, now)
    # A lost carrier leaves the NIC where it is: when it returns, so does the traffic, at once.
    stays = next((c for c in found if c.fit and c.link and c.link.index == on), None)
    view = _View(nic, seen, found, chosen, chosen or stays, tap, splicing)
    actions = [*renewal, *_connect(view)]
    if chosen and chosen.link and chosen.link.index == on and splicing:
        return Plan("connected", chosen.link, chosen.reason, found, actions, again_at)
    return Plan("waiting", None, why_waiting(found), found, actions, again_at)


class _View(NamedTuple):
    """All that the planning of one NIC looks at."""

    nic: Nic
    seen: Observed
    found: list[Candidate]
    chosen: Candidate | None  # the one to be connected to
    goal: Candidate | None  # the one to point at: the chosen one, or the present one if it may recover
    tap: Link | None
    splicing: Splicing | None


def why_waiting(found: list[Candidate]) -> str:
    """One sentence on why a NIC has no uplink."""
    if any(candidate.usable for candidate in found):
        return "about to connect"
    return "; ".join(f"{candidate.name}: {candidate.reason}" for candidate in found)


def _renew_tap(nic: Nic, tap: Link | None, splicing: Splicing | None) -> Iterator[Action]:
    if tap and tap.alias != tap_alias(nic) and not tap.carrier:
        yield RemoveTap(nic=nic.name, queues=tap_queues(tap))
        yield CreateTap(nic=nic.name, definition=nic)
    elif tap is None or splicing is None:
        yield CreateTap(nic=nic.name, definition=nic)
    elif tap.mtu != nic.mtu:
        yield SetMtu(nic=nic.name, index=tap.index, device=tap.name, mtu=nic.mtu)


def _connect(view: _View) -> Iterator[Action]:
    nic, seen = view.nic, view.seen
    yield from _bring_up(view)
    have = {link.lower: link for link in _macvlans(view)}
    keep = {c.link.index: c for c in view.found if c.link and _keeps_macvlan(view, c, c.link.index in have)}
    ready: dict[int, int] = {}
    for lower, candidate in keep.items():
        old, uplink = have.get(lower), candidate.link
        assert uplink is not None
        mtu = min(nic.mtu, uplink.mtu)
        # In passthru a macvlan bears its uplink's MAC.
        same_mac = old and (candidate.mode == "passthru" or old.mac == nic.mac)
        # One that is down is repaired only on a sound uplink: else it may be on its way out with it.
        if old and same_mac and old.mode == candidate.mode and (old.up or not candidate.usable):
            ready[lower] = old.index
            if old.mtu != mtu:
                yield SetMtu(nic=nic.name, index=old.index, device=old.name, mtu=mtu)
            continue
        if old:
            yield _remove(old, seen)
        yield CreateMacvlan(
            nic=nic.name, lower=lower, uplink=uplink.name, mac=nic.mac, mode=candidate.mode, mtu=mtu
        )
    yield from _point(view, ready)
    for lower, old in have.items():
        if lower not in keep:
            yield _remove(old, seen)


def _keeps_macvlan(view: _View, candidate: Candidate, has: bool) -> bool:
    """Hot failover has one on every usable uplink, and leaves it there through a loss of carrier."""
    if not candidate.fit or candidate.is_bridge:
        return False
    return candidate is view.goal or (view.nic.failover == "hot" and (candidate.usable or has))


def _bring_up(view: _View) -> Iterator[Action]:
    for candidate in view.found if view.nic.bring_up else ():
        link = candidate.link
        if link and candidate.fit and not link.up and link.index not in view.seen.served:
            yield BringUp(nic=view.nic.name, index=link.index, uplink=link.name)


def _point(view: _View, ready: dict[int, int]) -> Iterator[Action]:
    """The map's change; the tap's bridge around it, joined before and left after, so that nothing is lost."""
    nic, goal, splicing = view.nic, view.goal, view.splicing
    link = goal.link if goal else None
    lower = link.index if link else 0
    uplink = link.name if link else ""
    bridge = bool(goal and goal.is_bridge)
    target = (PASS if bridge else ready.get(lower)) if lower else 0
    master = view.tap.master if view.tap else 0
    if bridge and master != lower:
        yield JoinBridge(nic=nic.name, bridge=lower, uplink=uplink, mac=nic.mac)
    now = splicing or Splicing()
    if (now.target, now.check, now.mac) != (target, nic.spoof_check, nic.mac) and (splicing or lower):
        yield Splice(
            nic=nic.name, lower=lower, uplink=uplink, target=target, mac=nic.mac, check=nic.spoof_check
        )
    if nic.announce and lower and (now.target != target or (bridge and master != lower)):
        yield Announce(nic=nic.name, lower=lower, uplink=uplink, bridge=bridge, mac=nic.mac)
    if master and not bridge:
        yield LeaveBridge(nic=nic.name)


def _tear_down(view: _View) -> Iterator[Action]:
    """The backend goes; the tap, which the VMM holds, stays."""
    if view.splicing and view.splicing.target:
        mac, check = view.splicing.mac, view.splicing.check
        yield Splice(nic=view.nic.name, lower=0, uplink="", target=0, mac=mac, check=check)
    for macvlan in _macvlans(view):
        yield _remove(macvlan, view.seen)
    if view.tap and view.tap.master:
        yield LeaveBridge(nic=view.nic.name)


def _retire(view: _View) -> Iterator[Action]:
    if view.tap and not view.tap.carrier:  # a tap has carrier while somebody holds it open
        yield RemoveTap(nic=view.nic.name, queues=tap_queues(view.tap))


def _macvlans(view: _View) -> list[Link]:
    return [link for link in view.seen.links.owned(view.nic.name) if link.kind in STACKED_ON_UPLINK]


def _remove(macvlan: Link, seen: Observed) -> RemoveMacvlan:
    lower = seen.links.get(macvlan.lower)
    return RemoveMacvlan(
        nic=macvlan.owner, index=macvlan.index, device=macvlan.name, uplink=lower.name if lower else ""
    )


def tap_alias(nic: Nic) -> str:
    """The mark on the NIC's tap: whose it is, and what a living tap cannot change."""
    return f"{MARK}{nic.name} queues={nic.queues}" + (f" owner={nic.owner}" if nic.owner else "")


def tap_queues(tap: Link) -> int:
    """Number of queues that the tap was made for, from its mark."""
    for word in tap.alias.split():
        if word.startswith("queues="):
            return int(word.removeprefix("queues="))
    return 1
