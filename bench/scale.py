"""Many NICs on one uplink that goes and returns; until all of their maps name it."""

from __future__ import annotations

import time
from contextlib import ExitStack
from statistics import median

from bench.fleet import Fleet, FloorScene, Scene
from bench.nics import raise_file_limit
from bench.observer import alone, appears, usable
from bench.part import Figure, Part, Plot
from bench.rounds import Rounds

UPLINK = "up0"
TITLE = "Many NICs on one uplink that goes and returns"
GOAL = 2.0
GOAL_AT = 1000
LINEAR_FROM = 100
LINEAR = 1.5


def round_of(scene: Scene) -> float:
    """Seconds from the notification to the last map. Leaves the scene without uplink, at rest."""
    scene.plug.prepare(UPLINK)
    time.sleep(0.05)
    scene.ear.drain()
    before = scene.eye.targets()
    scene.plug.appear(UPLINK)
    scene.ear.wait(appears(UPLINK))
    scene.plug.up(UPLINK)
    started = scene.ear.wait(usable(UPLINK))
    ended = scene.eye.wait(before, timeout=60)
    time.sleep(0.1)
    scene.plug.remove(UPLINK)
    scene.wait_clear()
    time.sleep(0.2)
    return started.until(ended)


def measure(ours: Fleet, count: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of evertap and of the floor with as many NICs."""
    with FloorScene("connect", [UPLINK], count) as floor:
        floor.start()
        taken = Rounds({"evertap": lambda: round_of(ours), "floor": lambda: round_of(floor)})
        taken.run(rounds, warm_up=1)
        return {name: median(values) for name, values in taken.times.items()}


def run(quick: bool) -> Part:
    """Measure and judge."""
    counts = (10, 100) if quick else (10, 100, 1000, 4000)
    raise_file_limit()
    columns = (
        "NICs",
        "evertap ms",
        "floor ms",
        "ratio",
        "evertap ms a NIC",
        "floor ms a NIC",
        "taps made in",
    )
    part = Part("scale", TITLE, columns)
    found: dict[int, dict[str, float]] = {}
    with ExitStack() as stack:
        stack.enter_context(alone())
        ours = stack.enter_context(Fleet([UPLINK], "bring_up = false\n"))
        for count in counts:
            made = ours.grow(count)
            found[count] = measure(ours, count, 5 if count < 4000 else 3)
            mine, base = found[count]["evertap"], found[count]["floor"]
            times = (
                f"{mine:.1f}",
                f"{base:.1f}",
                f"{mine / base:.2f}",
                f"{mine / count:.3f}",
                f"{base / count:.3f}",
            )
            part.rows.append((str(count), *times, f"{made:.0f} s"))
    part.figures = [figure(count, both["evertap"], both["floor"]) for count, both in found.items()]
    part.figures.append(growth(found, max(counts)))
    lines = {
        name: [(float(count), both[name]) for count, both in found.items()] for name in ("evertap", "floor")
    }
    part.plots.append(Plot("scale", TITLE, "NICs", "ms", lines, log_x=True, log_y=True))
    part.notes.append(
        "From the kernel's notification that the uplink is up with a carrier until all maps name it. The "
        "floor sends evertap's own messages in batches of 50. Making a tap takes the kernel some 20 ms, once."
    )
    return part


def figure(count: int, mine: float, base: float) -> Figure:
    """Judged at one size only."""
    name = f"{count} NICs connected"
    if count != GOAL_AT:
        return Figure(name, mine, "ms", "floor", base)
    return Figure(name, mine, "ms", "floor", base, f"at most {GOAL:g} times the floor", mine <= GOAL * base)


def growth(found: dict[int, dict[str, float]], most: int) -> Figure:
    """Whether the time is linear in the number of NICs."""
    mine, base = found[most]["evertap"] / most, found[LINEAR_FROM]["evertap"] / LINEAR_FROM
    goal = f"linear: at most {LINEAR:g} times the latter"
    return Figure(
        f"ms a NIC with {most}", mine, "ms", f"with {LINEAR_FROM}", base, goal, mine <= LINEAR * base
    )
