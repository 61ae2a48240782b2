"""Lost notifications and interrupted dumps: all is read anew, nothing is missed, and both are counted."""

from __future__ import annotations

import http.client
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from evertap.kernel import codec
from evertap.kernel.rtnetlink import Rtnetlink
from evertap.lab.netns import Namespace
from evertap.lab.trial import Trial
from tests.faults.random_run import Run

EVENTS = 20_000
PORT = 9100
SMALL = 64 << 10  # bytes of the receive buffer

# The same daemon, but its monitor has a small buffer from the beginning.
LAUNCHER = f"""
import evertap.kernel.rtnetlink as rtnetlink
rtnetlink.LinkMonitor.__init__.__defaults__ = ({SMALL},)
from evertap.cli.main import main
main()
"""


class DeafTrial(Trial):
    """A daemon that loses notifications easily, and serves metrics."""

    @property
    def daemon_command(self) -> list[str]:
        """Its command."""
        command = super().daemon_command
        place = command.index("-m")
        return [*command[:place], "-c", LAUNCHER, *command[place + 2 :], "--metrics", f"127.0.0.1:{PORT}"]


class Flood:
    """Changes of an interface that concerns no NIC."""

    def __init__(self, rtnetlink: Rtnetlink, index: int) -> None:
        self._rtnetlink = rtnetlink
        self._index = index

    def rise(self, events: int) -> None:
        """Make so many events."""
        changes = [codec.set_link(self._index, mtu=1499 + number % 2) for number in range(events)]
        assert self._rtnetlink.request([changes]) == [None]


def resyncs() -> float:
    """What the metrics tell."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    (number,) = re.findall(r"^evertap_resyncs_total (\S+)$", text, re.MULTILINE)
    return float(number)


@pytest.fixture
def run(namespaces: None) -> Iterator[Run]:
    """NICs on u1 and u2, and on what is still to come."""
    with Run(trial=DeafTrial) as made:
        for number, name in enumerate(("u1", "u2", "u3", "noise")):
            made.do("add", name, 100 + number, True, "", 1500)
        made.do("bridge", "br0", True)
        for number, uplinks in enumerate((["u1"], ["u2", "u1"], ["new", "u3"], [{"bridge": "br0"}, "u3"])):
            fields = {"mac": f"52:54:00:00:00:{number:02x}", "failback_delay": 0, "flap_hold": 0}
            made.do("define", number, {**fields, "uplinks": uplinks})
        made.rest()
        assert resyncs() == 0
        yield made


@pytest.fixture
def flood(run: Run) -> Iterator[Flood]:
    with Rtnetlink() as rtnetlink:
        yield Flood(rtnetlink, 103)


@contextmanager
def stopped(run: Run) -> Iterator[None]:
    """The daemon does not run for a while."""
    os.kill(run.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(run.pid, signal.SIGCONT)


def change_everything(run: Run) -> None:
    """Every NIC has to be planned anew after this."""
    run.do("delete", "u1")
    run.do("rename", "u2", "elsewhere")
    run.do("add", "u1", 0, False, "", 1400)
    run.do("add", "new", 100, True, "", 1500)  # the index that the old u1 had
    run.do("again", "u3", True)
    run.do("down", "br0")
    run.do("meddle", 2, "tap-rename")
    run.do("meddle", 1, "delete")


def test_what_happened_among_twenty_thousand_lost_events_is_found_by_a_reread(run: Run, flood: Flood) -> None:
    with stopped(run):
        flood.rise(EVENTS // 2)
        change_everything(run)
        flood.rise(EVENTS // 2)
    assert not run.figures.refused.total()
    run.rest()
    assert resyncs() >= 1
    assert "the kernel dropped notifications; reading everything anew" in run.log
    before = resyncs()
    run.do("up", "br0")  # it goes on listening
    run.rest()
    assert resyncs() == before


def test_what_happens_before_the_lost_events_or_after_them_is_not_lost(run: Run, flood: Flood) -> None:
    with stopped(run):
        change_everything(run)
        flood.rise(EVENTS)
    run.rest()
    with stopped(run):
        flood.rise(EVENTS)
        run.do("swap", "u1", "new")
    run.rest()
    assert resyncs() >= 2


def test_commands_and_changes_are_followed_while_events_are_lost_all_the_time(run: Run, flood: Flood) -> None:
    over = threading.Event()

    def rage() -> None:
        while not over.is_set():
            flood.rise(EVENTS // 10)

    raging = threading.Thread(target=rage)
    raging.start()
    try:
        change_everything(run)
        for turn in range(5):
            run.do("again", "u1", True)
            run.do("define", 5, {"mac": "52:54:00:00:00:05", "uplinks": ["u3", "u1"][turn % 2 :]})
            run.do("undefine", 5)
    finally:
        over.set()
        raging.join()
    run.rest()
    assert resyncs() >= 1


def test_a_dump_that_is_interrupted_all_the_time_lacks_nothing_and_is_counted(namespace: Namespace) -> None:
    over = threading.Event()
    stay = [f"stay{number}" for number in range(300)]

    def churn(number: int) -> None:
        with Rtnetlink() as rtnetlink:
            while not over.is_set():
                index = 900_000 + number
                made = codec.new_macvlan(index, f"go{number}", 2, "02:00:00:00:00:01", "bridge")
                rtnetlink.request([[made, codec.del_link(index)]])

    with namespace.enter(), Rtnetlink() as rtnetlink:
        namespace.ip_batch(["link add up0 type veth peer name up1", "link set up0 up"])
        namespace.ip_batch(f"link add {name} type bridge" for name in stay)
        churning = threading.Thread(target=churn, args=(1,))
        churning.start()
        try:
            for _ in range(1000):
                found = rtnetlink.dump_links()
                assert len(found) == len({link.index for link in found})
                assert {link.name for link in found} >= {"lo", "up0", "up1", *stay}
                if rtnetlink.interrupted >= 5:
                    break
        finally:
            over.set()
            churning.join()
    assert rtnetlink.interrupted >= 5


def test_what_an_interrupted_dump_lacks_is_in_another(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with namespace.enter(), Rtnetlink() as rtnetlink:
        namespace.ip_batch(["link add up0 type veth peer name up1"])
        whole, _ = rtnetlink._dump_once(codec.dump_links())
        dumps = iter([(whole[1:], False), (whole[:-1], False), (whole[:1], False)])
        monkeypatch.setattr(rtnetlink, "_dump_once", lambda message: next(dumps))
        assert {link.name for link in rtnetlink.dump_links()} == {"lo", "up0", "up1"}
