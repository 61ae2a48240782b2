"""The difference between what is wanted and what is, as actions. Pure: daemon, dry run and tests share it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from evertap.model.actions import Action, CreateTap, SetGuestLink
from evertap.model.choice import Candidate, Wanted, candidates, choose, current
from evertap.model.links import Link
from evertap.model.observed import Observed
from evertap.model.plan_macvtap import connect_macvtap, obstacle, unplug_all
from evertap.model.plan_tap import connect_tap, renew_tap, retire_tap, tear_down_tap
from evertap.model.planning import View, is_up, remove
from evertap.model.table import STACKED_ON_UPLINK
from evertap.model.vmm import has_device

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
    owned = seen.links.owned(nic.name)
    tap = next((link for link in owned if link.kind not in STACKED_ON_UPLINK), None)
    devices = [link for link in owned if link.kind in STACKED_ON_UPLINK]
    view = View(wanted, seen, found, None, None, tap, seen.taps.get(nic.name) if tap else None, devices)
    if wanted.removed:
        reason = "the definition was removed; the tap stays until its VM has gone"
        if wanted.qmp.startswith("/") and wanted.qmp not in seen.vmms:
            return Plan("disconnected", None, reason, [], [])  # just started: its QEMU is to be told first
        actions = [*unplug_all(view), *tear_down_tap(view), *retire_tap(view)]
        return Plan("disconnected", None, reason, [], actions)
    planned = _plan_tap(view, now) if nic.backend == "tap" else _plan_macvtap(view, now)
    links = _guest_link(view, planned.state, current(wanted, seen))
    return planned._replace(actions=[*planned.actions, *links])


def _plan_tap(view: View, now: float) -> Plan:
    wanted, nic = view.wanted, view.nic
    actions = list(renew_tap(nic, view.tap, view.splicing))
    if any(isinstance(action, CreateTap) for action in actions):
        # Old macvlans have the program that leads to the old tap. They go first: no moment may leave a new
        # tap beside them.
        actions = [*(remove(device, view.seen) for device in view.devices), *actions]
        view = view._replace(tap=None, splicing=None, devices=[])
    if wanted.disconnected or wanted.idle:
        return Plan("disconnected", None, _why_not(wanted), view.found, [*actions, *tear_down_tap(view)])
    view, again_at = _with_goal(view, now)
    actions += connect_tap(view)
    return _outcome(view, actions, again_at, bool(view.splicing), "")


def _plan_macvtap(view: View, now: float) -> Plan:
    if view.wanted.disconnected or view.wanted.idle:
        actions = [*unplug_all(view), *tear_down_tap(view)]
        return Plan("disconnected", None, _why_not(view.wanted), view.found, actions)
    view, again_at = _with_goal(view, now)
    return _outcome(view, list(connect_macvtap(view)), again_at, True, obstacle(view))


def _with_goal(view: View, now: float) -> tuple[View, float]:
    on = current(view.wanted, view.seen)
    chosen, again_at = choose(view.wanted, view.found, on, view.seen, now)
    return view._replace(chosen=chosen, goal=chosen or _hope(view, on)), again_at


def _hope(view: View, on: int) -> Candidate | None:
    """Where to point a NIC that can be connected to nothing: with the carrier, its traffic flows at once.

    A lost carrier leaves the NIC where it is; else it is the first uplink that only lacks its carrier.
    """
    hopeful = [candidate for candidate in view.found if candidate.link and candidate.fit]
    stays = (candidate for candidate in hopeful if candidate.link and candidate.link.index == on)
    rising = (candidate for candidate in hopeful if is_up(view, candidate))
    return next(stays, None) or next(rising, None)


def _outcome(view: View, actions: list[Action], again_at: float, ready: bool, hindrance: str) -> Plan:
    chosen, found = view.chosen, view.found
    if chosen and chosen.link and chosen.link.index == current(view.wanted, view.seen) and ready:
        return Plan("connected", chosen.link, chosen.reason, found, actions, again_at)
    reason = hindrance if chosen and hindrance else why_waiting(found)
    return Plan("waiting", None, reason, found, actions, again_at)


def _why_not(wanted: Wanted) -> str:
    if wanted.disconnected:
        return f"disconnected by the administrator; `evertap connect {wanted.nic.name}` ends it"
    return wanted.idle


def why_waiting(found: list[Candidate]) -> str:
    """One sentence on why a NIC has no uplink."""
    if any(candidate.usable for candidate in found):
        return "about to connect"
    return "; ".join(f"{candidate.name}: {candidate.reason}" for candidate in found)


def _guest_link(view: View, state: State, on: int) -> Iterator[Action]:
    """The carrier that the guest sees, by the definition's guest_link."""
    nic, qmp = view.nic, view.wanted.qmp
    if not has_device(nic.name, view.vmm):
        return
    up = nic.guest_link != "follow" or state == "connected"
    known = view.seen.guest_links.get(nic.name)
    # What an earlier daemon set is not known, so a NIC that follows is told once; QEMU minds no repetition.
    if known != up and (known is not None or nic.guest_link == "follow"):
        yield SetGuestLink(nic=nic.name, qmp=qmp, up=up)
    if nic.guest_link == "bounce" and state == "connected" and view.seen.told.get(nic.name, on) != on:
        yield SetGuestLink(nic=nic.name, qmp=qmp, up=True, bounce=True, lower=on)
