"""The daemon is killed and started anew under many NICs: until it is ready, and what is lost meanwhile."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from bench.fleet import Fleet, connected_fleet
from bench.nics import nic_mac, nic_name
from bench.part import Figure, Part
from evertap.kernel import bpf
from evertap.kernel.rtnetlink import Rtnetlink
from evertap.lab.builtin_guest import BuiltinGuest
from evertap.lab.errors import LabError
from evertap.lab.pinger import Pinger

TITLE = "The daemon starts anew under NICs that are connected"
GOAL = 3.0
"""Seconds."""


def run(quick: bool) -> Part:
    """Measure and judge."""
    count, rounds = (100, 2) if quick else (1000, 5)
    fleet = connected_fleet(count)
    ready: list[float] = []
    listed: list[float] = []
    floor: list[float] = []
    lost = sent = 0
    guest = BuiltinGuest(fleet.lab.host, nic_name(0), nic_mac(0))
    with guest, Pinger(fleet.lab.wire, interval=0.01) as pinger:
        guest.boot()
        pinger.wait_reply(5)
        for _ in range(rounds):
            since = time.monotonic()
            fleet.trial.kill()
            floor.append(read_all(fleet, count))
            with notified() as told:
                started = time.monotonic()
                fleet.trial.start()
                listed.append(time.monotonic() - started)
            ready.append(told[0] - started)
            if not fleet.settled() or fleet.nics()[0].state != "connected":
                raise LabError(
                    f"the new daemon does not see {count} connected NICs:\n{fleet.trial.log[-2000:]}"
                )
            until = time.monotonic()
            time.sleep(0.6)
            lost += pinger.lost(since, until)
            sent += round((until - since) / 0.01)
    part = Part("start", TITLE, ("step", "median s", "longest s"))
    for name, values in (
        ("until READY=1 (sd_notify)", ready),
        ("until an `evertap list` has answered", listed),
        ("floor: reading all interfaces and maps", floor),
    ):
        part.rows.append((name, f"{median(values):.2f}", f"{max(values):.2f}"))
    mine, goal = median(listed), f"at most {GOAL:g} s"
    part.figures = [
        Figure(f"start with {count} NICs", mine, "s", "floor", median(floor), goal, mine <= GOAL),
        Figure(
            f"pings lost in {rounds} kills and starts", lost, f"of {sent}", goal="none", reached=lost == 0
        ),
    ]
    return part


def read_all(fleet: Fleet, count: int) -> float:
    """Seconds that reading takes, with evertap's own means and nothing else."""
    started = time.monotonic()
    found = 0
    with fleet.lab.host.enter(), Rtnetlink() as rtnetlink:
        for link in rtnetlink.dump_links():
            if link.kind == "tun" and (splice := bpf.find_splice(link.index, rtnetlink)):
                os.close(splice[0])
                found += 1
    if found != count:
        raise LabError(f"of {count} taps, {found} have a map")
    return time.monotonic() - started


@contextmanager
def notified() -> Iterator[list[float]]:
    """Inside, NOTIFY_SOCKET is set; gives when READY=1 came."""
    moments: list[float] = []
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        path = Path(folder) / "notify"
        sock.bind(str(path))
        sock.settimeout(30)

        def wait() -> None:
            while not sock.recv(1000).startswith(b"READY=1"):
                continue
            moments.append(time.monotonic())

        waiter = threading.Thread(target=wait)
        waiter.start()
        os.environ["NOTIFY_SOCKET"] = str(path)
        try:
            yield moments
        finally:
            del os.environ["NOTIFY_SOCKET"]
            waiter.join()
