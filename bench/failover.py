"""The uplink in use loses its carrier: the time until the NIC is on the other. And what a retarget loses."""

from __future__ import annotations

import time
from contextlib import ExitStack

from bench.fleet import Fleet, FloorScene, Scene
from bench.nics import nic_mac, nic_name
from bench.observer import alone, appears, loses_carrier, usable
from bench.part import SPREAD, Figure, Part, Plot, distribution, median_p99, spread
from bench.rounds import Rounds
from evertap.lab.builtin_guest import BuiltinGuest
from evertap.lab.pinger import Pinger

TITLE = "Hot failover, and planned retarget"
FIRST, SECOND = "up0", "up1"
GOAL = 1.0
"""Milliseconds."""


def plug_in(scene: Scene) -> None:
    """Have both uplinks, up."""
    for name in (FIRST, SECOND):
        scene.plug.prepare(name)
        scene.plug.appear(name)
        scene.ear.wait(appears(name))
        scene.plug.up(name)
        scene.ear.wait(usable(name))


def round_of(scene: Scene) -> float:
    """Seconds from the notification that the carrier is lost to the map. Ends where it began."""
    scene.ear.drain()
    before = scene.eye.targets()
    scene.plug.carrier(FIRST, False)
    started = scene.ear.wait(loses_carrier(FIRST))
    ended = scene.eye.wait(before)
    between = scene.eye.targets()
    scene.plug.carrier(FIRST, True)
    scene.eye.wait(between)
    time.sleep(0.1)
    return started.until(ended)


def pings_lost(fleet: Fleet, retargets: int) -> tuple[int, int]:
    """Pings lost of those sent, one every 10 ms, while the NIC is moved there and back."""
    guest = BuiltinGuest(fleet.lab.host, nic_name(0), nic_mac(0))
    with guest, Pinger(fleet.lab.wire, interval=0.01) as pinger:
        guest.boot()
        pinger.wait_reply(5)
        since = time.monotonic()
        for number in range(retargets):
            fleet.trial.run("retarget", nic_name(0), (SECOND, FIRST)[number % 2])
            time.sleep(0.1)
        until = time.monotonic()
        time.sleep(0.6)
        return pinger.lost(since, until), round((until - since) / 0.01)


def run(quick: bool) -> Part:
    """Measure and judge."""
    count, retargets = (4, 6) if quick else (40, 40)
    with ExitStack() as stack:
        stack.enter_context(alone())
        ours = stack.enter_context(Fleet([FIRST, SECOND], "failback_delay = 0.05\nflap_hold = 0\n"))
        plug_in(ours)
        ours.grow(1)
        ours.wait_settled("connected")
        floor = stack.enter_context(FloorScene("failover", [FIRST, SECOND], 1))
        plug_in(floor)
        floor.start()
        rounds = Rounds({"evertap": lambda: round_of(ours), "floor": lambda: round_of(floor)})
        rounds.run(count)
        lost, sent = pings_lost(ours, retargets)
    times = rounds.times
    part = Part("failover", TITLE, ("carrier lost until connected elsewhere", *SPREAD))
    for name, values in times.items():
        part.rows.append((name, *spread(values)))
    mine, base = median_p99(times["evertap"])[0], median_p99(times["floor"])[0]
    goal = f"at most {GOAL:g} ms"
    part.figures = [
        Figure("hot failover: median", mine, "ms", "floor", base, goal, mine <= GOAL),
        Figure(f"pings lost in {retargets} retargets", lost, f"of {sent}", goal="none", reached=lost == 0),
    ]
    lines = {name: distribution(values) for name, values in times.items()}
    part.plots.append(Plot("failover", TITLE, "ms", "% of the rounds", lines))
    part.notes += [
        "From the kernel's notification of the lost carrier, of which the kernel tells up to a second late.",
        rounds.note,
    ]
    return part
