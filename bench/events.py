"""Thousands of events of interfaces that concern no NIC: the daemon's processor time for each."""

from __future__ import annotations

import time
from itertools import cycle, islice
from pathlib import Path

from bench.fleet import Fleet, connected_fleet
from bench.part import Figure, Part
from evertap.kernel import codec
from evertap.kernel.codec import Message
from evertap.kernel.rtnetlink import Rtnetlink

TITLE = "Events of unrelated interfaces"
GOAL = 50
"""Microseconds each."""
LINKS = 10
BATCH = 100
PAUSE = 0.02
"""Seconds between batches: some 4,000 events a second."""
SINGLE_PAUSE = 0.001

_DROPPED = "the kernel dropped notifications"


def run(quick: bool) -> Part:
    """Measure and judge."""
    count, wanted = (100, 4000) if quick else (1000, 20_000)
    fleet = connected_fleet(count)
    fleet.lab.host.ip_batch(
        f"link add noise{number} type veth peer name other{number}" for number in range(LINKS)
    )
    part = Part("events", TITLE, ("run", "events", "µs of the daemon each", "floor µs each", "rereads"))
    try:
        paced = storm(fleet, wanted, BATCH, PAUSE)
        flood = storm(fleet, wanted, BATCH, 0)
        single = storm(fleet, wanted // 10, 1, SINGLE_PAUSE)
    finally:
        for number in range(LINKS):
            fleet.lab.remove(f"noise{number}")
    runs = {"bursts of 100": paced, "as fast as possible": flood, "one by one": single}
    for name, (events, cost, floor, rereads) in runs.items():
        part.rows.append((name, f"{events}", f"{cost:.1f}", f"{floor:.1f}", f"{rereads}"))
    events, cost, floor, rereads = paced
    part.figures = [
        Figure("processor time an event", cost, "µs", "floor", floor, f"at most {GOAL} µs", cost <= GOAL),
        Figure("rereads for lost events, in bursts", rereads, "", goal="none", reached=rereads == 0),
    ]
    part.notes += [
        f"{count} NICs are connected. Aliases and MTUs of {LINKS} veth pairs change, and they are set up and "
        "down; the events are counted by a socket of our own.",
        "The floor receives the same events and throws them away. A flood is answered by one reading of all "
        "interfaces whenever the kernel had to drop some.",
    ]
    return part


def storm(fleet: Fleet, wanted: int, batch: int, pause: float) -> tuple[int, float, float, int]:
    """Events that came, microseconds of the daemon and of the floor for each, and rereads."""
    pid, rereads = fleet.trial.pid, fleet.trial.log.count(_DROPPED)
    with fleet.lab.host.enter(), Rtnetlink() as rtnetlink:
        links = [link.index for link in rtnetlink.dump_links() if link.name.startswith("noise")]
        messages = cycle(change for turn in range(50) for index in links for change in changes(index, turn))
        fleet.ear.drain()
        before, events, spent = at_rest(pid), 0, 0.0
        while events < wanted:
            rtnetlink.request([list(islice(messages, batch))])
            drained = time.process_time()
            events += fleet.ear.drain()
            spent += time.process_time() - drained
            time.sleep(pause)
    cost = at_rest(pid) - before
    return events, 1e6 * cost / events, 1e6 * spent / events, fleet.trial.log.count(_DROPPED) - rereads


def changes(index: int, turn: int) -> list[Message]:
    """What is changed of one interface in one turn."""
    return [
        codec.set_link(index, alias=f"turn {turn}"),
        codec.set_link(index, mtu=1400 + turn),
        codec.set_link(index, up=turn % 2 == 0),
    ]


def cpu_time(pid: int) -> float:
    """Seconds that all threads of a process have run, in the kernel and outside of it."""
    ran = [(task / "schedstat").read_text().split()[0] for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(map(int, ran)) / 1e9


def at_rest(pid: int) -> float:
    """The same once the process has nothing more to do."""
    now = cpu_time(pid)
    while True:
        before = now
        time.sleep(0.1)
        now = cpu_time(pid)
        if now == before:
            return now
