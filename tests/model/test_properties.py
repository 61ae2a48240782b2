"""Whatever happens to the host in whatever order, fold and plan agree with a fresh reading."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from evertap.model.actions import Action, BringUp
from evertap.model.choice import Wanted
from evertap.model.links import IFF_LOWER_UP, IFF_UP, Gone, Link, LinkEvent
from evertap.model.nic import Nic
from evertap.model.observed import Observed
from evertap.model.plan import Plan, plan
from tests.support.nics import nic
from tests.support.simulated import SimulatedKernel

NAMES = ("eth0", "eth1", "usb0", "br0")
UPLINKS: tuple[Any, ...] = (
    "eth0",
    "eth1",
    "usb*",
    {"bridge": "br0"},
    {"mac": "02:00:00:00:00:07"},
    {"name": "eth1", "mode": "private"},
)

changes = st.fixed_dictionaries(
    {},
    optional={
        "flags": st.sampled_from([0, IFF_UP, IFF_UP | IFF_LOWER_UP]),
        "mac": st.sampled_from(["02:00:00:00:00:07", "02:00:00:00:00:08"]),
        "mtu": st.sampled_from([1400, 1500, 9000]),
        "name": st.sampled_from(NAMES),
        "altnames": st.sampled_from([(), ("usb9",)]),
    },
)
steps = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "change", "enslave"]), st.sampled_from(NAMES), changes)
)


@st.composite
def nics(draw: st.DrawFn) -> Nic:
    uplinks = draw(st.lists(st.sampled_from(range(len(UPLINKS))), min_size=1, max_size=4, unique=True))
    if {1, 5} <= set(uplinks):
        uplinks.remove(5)
    return nic(
        "web0",
        *(UPLINKS[place] for place in uplinks),
        mode=draw(st.sampled_from(["bridge", "vepa", "private", "passthru"])),
        failover=draw(st.sampled_from(["hot", "cold"])),
        failback_delay=draw(st.sampled_from([-1, 0, 5])),
        flap_hold=draw(st.sampled_from([0, 30])),
        mtu=draw(st.sampled_from([1400, 1500])),
        bring_up=draw(st.booleans()),
    )


def step(host: SimulatedKernel, kind: str, name: str, fields: dict[str, Any]) -> None:
    """One change of the host, if it is possible there."""
    present = {link.name for link in host.links.values()}
    if kind == "add" and name not in present:
        others = {key: value for key, value in fields.items() if key != "name"}
        host.add(name, kind="bridge" if name == "br0" else "", **others)
    elif name not in present:
        return
    elif kind == "remove":
        host.remove(name)
    elif kind == "change" and fields.get("name", name) not in present - {name}:
        host.change(name, **fields)
    elif kind == "enslave" and "br0" in present - {name}:
        host.change(name, master=host.named("br0").index, port_kind="bridge")


def apply(host: SimulatedKernel, actions: list[Action]) -> None:
    for done in host.perform([actions]):
        assert done.error is None, done


def look(host: SimulatedKernel, seen: Observed, wanted: Wanted, now: float) -> Plan:
    for event in host.events():
        seen.fold(event, now)
    seen.taps = dict(host.taps)
    return plan(wanted, seen, now)


@settings(max_examples=150, deadline=None)
@given(nics(), steps, st.integers(1, 5))
def test_applying_a_plan_leaves_nothing_to_do_and_a_fresh_reading_agrees(
    definition: Nic, happenings: list[tuple[str, str, dict[str, Any]]], pace: int
) -> None:
    host, seen, wanted = SimulatedKernel(), Observed(), Wanted(definition)
    try:
        for count, happening in enumerate(happenings):
            step(host, *happening)
            if count % pace == 0:
                apply(host, look(host, seen, wanted, float(count)).actions)
        now = float(len(happenings))
        for _ in range(2):  # setting an uplink up is answered by an event, and that by a second plan
            actions = look(host, seen, wanted, now).actions
            apply(host, actions)
            if not any(isinstance(action, BringUp) for action in actions):
                break
        rested = look(host, seen, wanted, now)
        assert rested.actions == []
        later = rested.again_at if rested.again_at < float("inf") else now
        apply(host, look(host, seen, wanted, later).actions)
        assert look(host, seen, wanted, later).actions == []
        fresh = Observed()
        fresh.fold_all(host.read_links(), later)
        fresh.served = set(seen.served)
        adopted = look(host, fresh, wanted, later)
        assert adopted.actions == []
        assert adopted.uplink == look(host, seen, wanted, later).uplink
    finally:
        host.close()


def links_in_turn(
    host: SimulatedKernel, happenings: list[tuple[str, str, dict[str, Any]]]
) -> list[LinkEvent]:
    for happening in happenings:
        step(host, *happening)
    return host.events()


def interleaved(events: list[LinkEvent], shuffle: Callable[[list[int]], None]) -> list[LinkEvent]:
    """The same events with each link's own in their order, as far as names allow: one link after another."""
    by_link = {
        index: [event for event in events if event.index == index] for index in {e.index for e in events}
    }
    order = list(itertools.chain.from_iterable([index] * len(own) for index, own in by_link.items()))
    shuffle(order)
    queues = {index: iter(own) for index, own in by_link.items()}
    return [next(queues[index]) for index in order]


@settings(max_examples=150, deadline=None)
@given(nics(), steps, st.randoms(use_true_random=False))
def test_any_order_of_different_links_events_ends_in_the_same_plan(
    definition: Nic, happenings: list[tuple[str, str, dict[str, Any]]], chance: random.Random
) -> None:
    host = SimulatedKernel()
    try:
        events = links_in_turn(host, happenings)
    finally:
        host.close()
    plans = []
    for order in (events, interleaved(events, chance.shuffle)):
        seen = Observed()
        for event in order:
            seen.fold(event, 0.0)
        plans.append(plan(Wanted(msgspec.structs.replace(definition, flap_hold=0.0)), seen, 0.0))
    assert plans[0] == plans[1]


@settings(deadline=None)
@given(steps, st.integers(0, 3))
def test_a_reread_after_lost_events_gives_the_same_table(
    happenings: list[tuple[str, str, dict[str, Any]]], every: int
) -> None:
    host = SimulatedKernel()
    try:
        events = links_in_turn(host, happenings)
        complete, lossy = Observed(), Observed()
        for count, event in enumerate(events):
            complete.fold(event, 0.0)
            if count % (every + 1) == 0:
                lossy.fold(event, 0.0)
        lossy.fold_all(host.read_links(), 0.0)
        assert sorted(lossy.links, key=index) == sorted(complete.links, key=index)
        assert lossy.good_since.keys() == complete.good_since.keys()
    finally:
        host.close()


def index(link: Link | Gone) -> int:
    return link.index
