"""An uplink appears: the time until the NIC's map names it, against the floor and others who do the like."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from bench.fleet import Fleet, FloorScene, Scene
from bench.networkd import PROGRAM, Networkd
from bench.observer import Event, alone, appears, enslaved, usable
from bench.part import SPREAD, Figure, Part, Plot, distribution, median_p99, spread
from bench.rounds import Rounds

UPLINK = "up0"
TITLE = "An uplink returns: one NIC is connected"
WARM_UP = 3
POLLS_EVERY = 10
NOTES = (
    "**set up by others**: the clock starts with the kernel's notification that the uplink is up with a "
    "carrier (RTM_NEWLINK with IFF_UP and IFF_LOWER_UP); evertap has bring_up = false. **sets it up**: it "
    "starts with the notification that the uplink is there, down, and the program sets it up itself.",
    "The clock starts when a socket of its own sees the notification, and stops when a bpf(2) look-up of its "
    "own finds the new macvlan in the NIC's map. Both spin on a processor that evertap and the floor leave.",
    "The floor is evertap's own netlink messages and map update, prepared beforehand, sent at once by a loop "
    "that does nothing else. It does not wait for the kernel's answers.",
    "networkd's clock starts when the uplink is there, down, and stops when it is a port of the bridge, or "
    "when it also has its carrier.",
    "libvirt as it is never connects again: a guest whose type='direct' interface was lost stays cut off.",
)


def round_of(scene: Scene, *, set_up: bool) -> float:
    """Seconds from the notification to the map. Leaves the scene without uplink, at rest."""
    with plugged(scene):
        before = scene.eye.targets()
        scene.plug.appear(UPLINK)
        started = scene.ear.wait(appears(UPLINK))
        if set_up:
            scene.plug.up(UPLINK)
            started = scene.ear.wait(usable(UPLINK))
        return started.until(scene.eye.wait(before))


def networkd_round(scene: Scene, end: Event) -> float:
    """Seconds from the notification that the uplink is there to the one that tells of the end."""
    with plugged(scene):
        scene.plug.appear(UPLINK)
        started = scene.ear.wait(appears(UPLINK))
        return started.until(scene.ear.wait(end).at)


@contextmanager
def plugged(scene: Scene) -> Iterator[None]:
    """Inside, the uplink may be made to appear; afterwards it is removed, and all rests."""
    scene.plug.prepare(UPLINK)
    time.sleep(0.02)
    scene.ear.drain()
    try:
        yield
    finally:
        time.sleep(0.03)
        scene.plug.remove(UPLINK)
        time.sleep(0.05)
        scene.wait_clear()


def measure(count: int) -> Rounds:
    """All systems, so often."""
    with ExitStack() as stack:
        stack.enter_context(alone())
        ours = stack.enter_context(Fleet([UPLINK], "bring_up = false\n"))
        ours.grow(1)
        ours_up = stack.enter_context(Fleet([UPLINK]))
        ours_up.grow(1)
        floors = {}
        for kind in ("connect", "bring-up", "poll"):
            floors[kind] = stack.enter_context(FloorScene(kind, [UPLINK], 1))
            floors[kind].start()
        systems: dict[str, Callable[[], float]] = {
            "evertap, set up by others": lambda: round_of(ours, set_up=True),
            "floor, set up by others": lambda: round_of(floors["connect"], set_up=True),
            "evertap, sets it up": lambda: round_of(ours_up, set_up=False),
            "floor, sets it up": lambda: round_of(floors["bring-up"], set_up=False),
        }
        if PROGRAM.exists():
            networkd = stack.enter_context(Networkd(UPLINK))
            port, carrier = enslaved(UPLINK), usable(UPLINK)
            systems["networkd, port of a bridge"] = lambda: networkd_round(networkd, port)
            systems["networkd, port with carrier"] = lambda: networkd_round(
                networkd, lambda event: port(event) and carrier(event)
            )
        rounds = Rounds(systems)
        polled = Rounds({"polling once a second (2010)": lambda: round_of(floors["poll"], set_up=True)})
        rounds.run(0, warm_up=WARM_UP)
        for _ in range(0, count, POLLS_EVERY):
            rounds.run(POLLS_EVERY)
            polled.run(1)
        rounds.times |= polled.times
        return rounds


def run(quick: bool) -> Part:
    """Measure and judge."""
    rounds = measure(10 if quick else 100)
    times = rounds.times
    part = Part("connect", TITLE, ("from the notification to connected", *SPREAD))
    part.notes += [*NOTES, rounds.note]
    for name, values in times.items():
        part.rows.append((name, *spread(values)))
    for how in ("set up by others", "sets it up"):
        ours, floor = median_p99(times[f"evertap, {how}"]), median_p99(times[f"floor, {how}"])
        for what, mine, base, times_floor in (
            ("median", ours[0], floor[0], 2),
            ("p99", ours[1], floor[1], 5),
        ):
            reached = mine <= times_floor * base
            goal = f"at most {times_floor} times the floor"
            part.figures.append(Figure(f"{how}: {what}", mine, "ms", "floor", base, goal, reached))
    for how, end in (("set up by others", "port of a bridge"), ("sets it up", "port with carrier")):
        if f"networkd, {end}" in times:
            mine, theirs = median_p99(times[f"evertap, {how}"])[0], median_p99(times[f"networkd, {end}"])[0]
            name = f"{how}: median"
            part.figures.append(Figure(name, mine, "ms", f"networkd, {end}", theirs, "ahead", mine < theirs))
    lines = {name: distribution(values) for name, values in times.items() if "polling" not in name}
    part.plots.append(Plot("connect", TITLE, "ms", "% of the rounds", lines, log_x=True))
    return part
