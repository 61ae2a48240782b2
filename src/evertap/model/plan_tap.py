"""The plan of a NIC with backend tap: tap, and the map entry that splices them."""

from __future__ import annotations

from collections.abc import Iterator

from evertap.model.actions import (
    Action,
    BringUp,
    CreateMacvlan,
    CreateTap,
    JoinBridge,
    LeaveBridge,
    RemoveTap,
    RenameTap,
    SetMtu,
    Splice,
)
from evertap.model.choice import Candidate
from evertap.model.links import MARK, Link
from evertap.model.nic import Nic
from evertap.model.observed import PASS, Splicing
from evertap.model.planning import View, announce, bring_up, fits, is_up, remove, tune


def renew_tap(nic: Nic, tap: Link | None, splicing: Splicing | None) -> Iterator[Action]:
    """Have a tap as the definition wants it; one that a VM holds is left as it is."""
    if tap and tap.up and tap.alias != tap_alias(nic) and not tap.carrier:
        yield RemoveTap(nic=nic.name, queues=tap_queues(tap))
        yield CreateTap(nic=nic.name, definition=nic)
    elif tap is None or splicing is None:
        yield CreateTap(nic=nic.name, definition=nic)
    else:
        if tap.name != nic.name:
            yield RenameTap(nic=nic.name, index=tap.index, found=tap.name)
        if not tap.up:
            yield BringUp(nic=nic.name, index=tap.index, uplink=tap.name)
        if tap.mtu != nic.mtu:
            yield SetMtu(nic=nic.name, index=tap.index, device=tap.name, mtu=nic.mtu)


def connect_tap(view: View) -> Iterator[Action]:
    """Have a macvlan where one is needed, and point the NIC at the goal."""
    nic, seen = view.nic, view.seen
    yield from bring_up(view)
    have = {link.below: link for link in view.devices}
    keep = {c.link.index: c for c in view.found if c.link and _keeps_macvlan(view, c, c.link.index in have)}
    ready: dict[int, int] = {}
    for lower, candidate in keep.items():
        old, uplink = have.get(lower), candidate.link
        assert uplink is not None
        if old and fits(old, candidate, "macvlan"):
            ready[lower] = old.index
            yield from tune(view, old, candidate)
            continue
        if old:
            yield remove(old, seen)
        mtu = min(nic.mtu, uplink.mtu)
        yield CreateMacvlan(
            nic=nic.name, lower=lower, uplink=uplink.name, mac=view.mac, mode=candidate.mode, mtu=mtu
        )
    yield from _point(view, ready)
    for lower, old in have.items():
        if lower not in keep:
            yield remove(old, seen)


def _keeps_macvlan(view: View, candidate: Candidate, has: bool) -> bool:
    """Hot failover has one on every uplink that is up: with the carrier, the NIC is connected at once."""
    if not candidate.fit or candidate.is_bridge:
        return False
    if candidate is view.goal:
        return True
    return view.nic.failover == "hot" and (has or is_up(view, candidate))


def _point(view: View, ready: dict[int, int]) -> Iterator[Action]:
    """The map's change; the tap's bridge around it, joined before and left after, so that nothing is lost."""
    nic, goal, splicing = view.nic, view.goal, view.splicing
    link = goal.link if goal else None
    lower = link.index if link else 0
    uplink = link.name if link else ""
    bridge = bool(goal and goal.is_bridge)
    target = (PASS if bridge else ready.get(lower)) if lower else 0
    master = view.tap.master if view.tap else 0
    if bridge and master != lower:
        yield JoinBridge(nic=nic.name, bridge=lower, uplink=uplink, mac=view.mac)
    now = splicing or Splicing()
    if (now.target, now.check, now.mac) != (target, nic.spoof_check, nic.mac) and (splicing or lower):
        yield Splice(
            nic=nic.name, lower=lower, uplink=uplink, target=target, mac=nic.mac, check=nic.spoof_check
        )
    yield from announce(view, now.target != target or (bridge and master != lower))
    if master and not bridge:
        yield LeaveBridge(nic=nic.name)


def tear_down_tap(view: View) -> Iterator[Action]:
    """The backend goes; a tap, which the VMM may hold, stays."""
    if view.splicing and view.splicing.target:
        mac, check = view.splicing.mac, view.splicing.check
        yield Splice(nic=view.nic.name, lower=0, uplink="", target=0, mac=mac, check=check)
    for macvlan in view.devices:
        yield remove(macvlan, view.seen)
    if view.tap and view.tap.master:
        yield LeaveBridge(nic=view.nic.name)


def retire_tap(view: View) -> Iterator[Action]:
    """Delete the tap, unless a VM holds it."""
    if view.tap and not view.tap.up:  # only one that is up shows by its carrier whether it is held
        yield BringUp(nic=view.nic.name, index=view.tap.index, uplink=view.tap.name)
    elif view.tap and not view.tap.carrier:  # a tap has carrier while somebody holds it open
        yield RemoveTap(nic=view.nic.name, queues=tap_queues(view.tap))


def tap_alias(nic: Nic) -> str:
    """The mark on the NIC's tap: whose it is, and what a living tap cannot change."""
    return f"{MARK}{nic.name} queues={nic.queues}" + (f" owner={nic.owner}" if nic.owner else "")


def tap_queues(tap: Link) -> int:
    """Number of queues that the tap was made for, from its mark."""
    for word in tap.alias.split():
        if word.startswith("queues="):
            return int(word.removeprefix("queues="))
    return 1
