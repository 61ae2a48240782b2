"""The loop over a simulated kernel: order, independence, backoff, journal, recovery."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from evertap.engine import reconciler as reconciling
from evertap.engine import second_look
from evertap.engine.journal import Journal
from evertap.engine.ports import Done
from evertap.engine.reconciler import Reconciler
from evertap.model.actions import Announce, CreateMacvlan, Splice
from evertap.model.choice import Wanted
from evertap.model.errors import EvertapError
from evertap.model.links import IFF_LOWER_UP, IFF_UP, Link
from evertap.model.observed import Observed
from evertap.model.plan import Plan
from evertap.model.plan import plan as sound
from tests.support.nics import nic
from tests.support.simulated import FakeVmms, SimulatedKernel


class Bench:
    """A loop at work on a simulated host."""

    def __init__(self) -> None:
        self.host = SimulatedKernel()
        self.journal = Journal()
        self.loop = Reconciler(self.host, FakeVmms(), self.journal)

    async def rest(self, seconds: float = 0.0) -> None:
        """Until the loop has nothing more to do at this moment."""
        await asyncio.sleep(seconds)
        for _ in range(20):
            await asyncio.sleep(0)

    def state(self, name: str = "web0") -> tuple[str | None, str | None]:
        record = self.loop.nics[name]
        return record.state, record.uplink

    def events(self, name: str | None = None) -> list[tuple[str, str | None]]:
        return [(entry.event, entry.uplink) for entry in self.journal.events(name)]


def on_bench(body: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        bench = Bench()
        bench.loop.start()
        try:
            await body(bench)
        finally:
            await bench.loop.stop()
            bench.host.close()

    asyncio.run(main(), debug=True)


def test_an_uplink_that_comes_goes_and_comes_again_is_followed_by_events() -> None:
    async def body(bench: Bench) -> None:
        bench.loop.want(Wanted(nic()))
        await bench.rest()
        assert bench.state() == ("waiting", None)
        bench.host.add("eth0")
        await bench.rest()
        assert bench.state() == ("connected", "eth0")
        bench.host.remove("eth0")
        await bench.rest()
        assert bench.state() == ("waiting", None)
        bench.host.add("eth0")
        await bench.rest()
        assert bench.events() == [
            ("waiting", None),
            ("connected", "eth0"),
            ("waiting", None),
            ("connected", "eth0"),
        ]
        assert bench.loop.nics["web0"].outages == 1
        latency = bench.journal.events(None)[-1].latency_ms
        assert latency is not None
        assert 0 < latency < 1000

    on_bench(body)


def test_a_nic_that_waited_for_the_carrier_alone_is_announced_when_it_comes() -> None:
    async def body(bench: Bench) -> None:
        bench.host.add("eth0", flags=IFF_UP)
        bench.loop.want(Wanted(nic()))
        await bench.rest()
        assert bench.state() == ("waiting", None)
        assert not [action for action in bench.host.performed if isinstance(action, Announce)]
        for _ in range(2):
            done = len(bench.host.performed)
            bench.host.change("eth0", flags=IFF_UP | IFF_LOWER_UP)
            await bench.rest()
            assert bench.state() == ("connected", "eth0")
            assert [type(action) for action in bench.host.performed[done:]] == [Announce]
            latency = bench.journal.events(None)[-1].latency_ms
            assert latency is not None
            assert 0 < latency < 1000
            bench.host.change("eth0", flags=IFF_UP)
            await bench.rest()

    on_bench(body)


def test_an_altname_given_to_an_interface_that_is_down_is_found_though_the_kernel_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(second_look, "_PAUSES", (0.05, 0.1))

    async def body(bench: Bench) -> None:
        bench.loop.want(Wanted(nic("web0", "enp3s0")))
        await bench.rest()
        for pause in (0.1, 0.2):
            link = bench.host.add("eth0", flags=0)
            await bench.rest()
            bench.host.add("eth1", flags=0)
            bench.host.remove("eth1")
            await bench.rest(pause / 2)
            bench.host.links[link.index] = msgspec.structs.replace(link, altnames=("enp3s0",))
            await bench.rest(pause)
            # Set up by evertap; the simulated wire then has a carrier.
            assert bench.state() == ("connected", "eth0")
            bench.host.remove("eth0")
            await bench.rest()

    on_bench(body)


def test_the_cause_of_every_change_of_uplink_is_told_apart() -> None:
    async def body(bench: Bench) -> None:
        bench.loop.want(Wanted(nic("web0", "eth0", "eth1", failback_delay=0.05)))
        bench.host.add("eth0")
        bench.host.add("eth1")
        await bench.rest()
        bench.host.change("eth0", flags=IFF_UP)
        await bench.rest()
        bench.host.change("eth0", flags=IFF_UP | IFF_LOWER_UP)
        await bench.rest(0.2)
        bench.loop.want(Wanted(nic("web0", "eth1"), since=asyncio.get_running_loop().time()))
        await bench.rest()
        assert [event for event, _ in bench.events()] == ["connected", "failover", "failback", "retargeted"]

    on_bench(body)


def test_a_refused_step_fails_the_nic_with_its_reason_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconciling, "_FIRST_RETRY", 0.02)

    async def body(bench: Bench) -> None:
        bench.host.refuse["CreateMacvlan"] = "EBUSY: no room"
        bench.loop.want(Wanted(nic()))
        bench.host.add("eth0")
        await bench.rest()
        assert bench.state() == ("failed", None)
        assert bench.loop.nics["web0"].reason == "create macvlan (mode bridge) on eth0: EBUSY: no room"
        tries = sum(isinstance(action, CreateMacvlan) for action in bench.host.performed)
        await bench.rest(0.3)
        tries = sum(isinstance(action, CreateMacvlan) for action in bench.host.performed) - tries
        assert 1 <= tries <= 4  # at 20, 40, 80 and 160 ms: further and further apart
        del bench.host.refuse["CreateMacvlan"]
        await bench.rest(0.5)
        assert bench.state() == ("connected", "eth0")
        assert bench.loop.nics["web0"].retries == 0

    on_bench(body)


def test_a_kernel_that_agrees_and_does_nothing_is_not_asked_in_a_circle() -> None:
    async def body(bench: Bench) -> None:
        bench.host.add("eth0", flags=0)
        bench.host._change = lambda action: None  # type: ignore[method-assign]
        bench.loop.want(Wanted(nic()))
        await bench.rest()
        assert len(bench.host.performed) < 10
        assert bench.state()[0] == "failed"
        assert "nothing changed" in bench.loop.nics["web0"].reason

    on_bench(body)


def test_one_nics_failure_leaves_the_others_alone() -> None:
    async def body(bench: Bench) -> None:
        bench.host.add("web1", kind="tun")  # somebody else's device has the name
        for name in ("web0", "web1", "web2"):
            bench.loop.want(Wanted(nic(name)))
        bench.host.add("eth0")
        await bench.rest()
        assert [bench.state(name)[0] for name in ("web0", "web1", "web2")] == [
            "connected",
            "failed",
            "connected",
        ]
        assert bench.host.named("web1").alias == ""

    on_bench(body)


def test_lost_notifications_lead_to_a_new_reading_and_nothing_is_missed() -> None:
    async def body(bench: Bench) -> None:
        bench.loop.want(Wanted(nic()))
        await bench.rest()
        bench.host.lose = True
        bench.host.add("eth0")
        await bench.rest()
        assert bench.state() == ("connected", "eth0")
        assert bench.loop.resyncs == 1

    on_bench(body)


def test_a_new_daemon_adopts_what_is_there_without_touching_it() -> None:
    async def body(bench: Bench) -> None:
        bench.loop.want(Wanted(nic()))
        bench.host.add("eth0")
        await bench.rest()
        bench.host.performed.clear()
        second = Reconciler(bench.host, FakeVmms(), Journal())
        second.want(Wanted(nic()))
        second.start()
        try:
            await bench.rest()
            assert second.nics["web0"].state == "connected"
            assert bench.host.performed == []
        finally:
            await second.stop()

    on_bench(body)


def test_devices_of_a_nic_without_definition_are_removed() -> None:
    async def body(bench: Bench) -> None:
        eth0 = bench.host.add("eth0")
        bench.host.add("old0", kind="tun", alias="evertap:old0 queues=1", flags=IFF_UP)
        bench.host.add("ev7", kind="macvlan", lower=eth0.index, alias="evertap:old0")
        second = Reconciler(bench.host, FakeVmms(), Journal())
        second.start()
        try:
            await bench.rest()
            assert [link.name for link in bench.host.links.values()] == ["eth0"]
            assert second.nics == {}
        finally:
            await second.stop()

    on_bench(body)


def test_many_nics_share_batches_and_all_connect() -> None:
    async def body(bench: Bench) -> None:
        for count in range(230):
            bench.loop.want(Wanted(nic(f"vm{count}", mac=f"52:54:00:00:00:{count:02x}")))
        await bench.rest(0.1)
        bench.host.add("eth0")
        await bench.rest(0.5)
        assert {bench.state(f"vm{count}") for count in range(230)} == {("connected", "eth0")}

    on_bench(body)


def test_an_announcement_is_repeated_and_ends_with_the_connection() -> None:
    async def body(bench: Bench) -> None:
        bench.loop.want(Wanted(nic()))
        bench.host.add("eth0")
        await bench.rest(0.25)
        assert 2 <= len(bench.host.announced) <= 4
        bench.host.remove("eth0")
        await bench.rest()
        count = len(bench.host.announced)
        await bench.rest(0.5)
        assert len(bench.host.announced) == count

    on_bench(body)


def test_a_late_loss_while_connected_is_one_map_update() -> None:
    async def body(bench: Bench) -> None:
        bench.loop.want(Wanted(nic("web0", "eth0", "eth1")))
        bench.host.add("eth0")
        bench.host.add("eth1")
        await bench.rest()
        bench.host.performed.clear()
        bench.host.remove("eth0")
        await bench.rest()
        assert isinstance(bench.host.performed[0], Splice)
        assert not any(isinstance(action, CreateMacvlan) for action in bench.host.performed)

    on_bench(body)


def test_a_follower_that_does_not_read_is_cut_off_and_the_loop_goes_on() -> None:
    async def body(bench: Bench) -> None:
        following = bench.journal.follow(None)
        first = asyncio.ensure_future(anext(following))
        await bench.rest()
        for count in range(5000):
            bench.journal.record("web0", "waiting", None, str(count))
        assert (await first).reason == "0"
        with pytest.raises(Exception, match="faster than they were read"):
            async for _ in following:
                pass

    on_bench(body)


def test_a_reading_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciling, "_REREAD", 0.02)

    async def body(bench: Bench) -> None:
        bench.loop.want(Wanted(nic()))
        await bench.rest()
        good = bench.host.read_links

        def interrupted() -> list[Link]:
            bench.host.read_links = good  # type: ignore[method-assign]
            raise EvertapError("interrupted 10 times")

        bench.host.read_links = interrupted  # type: ignore[method-assign]
        bench.host.lose = True
        bench.host.add("eth0")
        await bench.rest(0.1)
        assert bench.state() == ("connected", "eth0")

    on_bench(body)


def test_a_defect_in_planning_is_one_nics_trouble_and_no_endless_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def plan(wanted: Wanted, seen: Observed, now: float) -> Plan:
        if wanted.nic.name == "web1":
            raise ZeroDivisionError("our fault")
        return sound(wanted, seen, now)

    monkeypatch.setattr(reconciling, "plan", plan)

    async def body(bench: Bench) -> None:
        bench.host.add("eth0")
        for name in ("web0", "web1"):
            bench.loop.want(Wanted(nic(name)))
        await bench.rest(0.1)
        assert bench.state("web0") == ("connected", "eth0")
        assert bench.state("web1") == ("failed", None)
        assert "our fault" in bench.loop.nics["web1"].reason
        assert caplog.text.count("web1: planning failed") < 5

    on_bench(body)


def test_a_kernel_that_cannot_be_asked_is_not_asked_in_a_circle() -> None:
    async def body(bench: Bench) -> None:
        asked = 0

        def perform(work: object) -> list[Done]:
            nonlocal asked
            asked += 1
            raise TimeoutError("the kernel did not answer")

        bench.host.perform = perform  # type: ignore[method-assign]
        bench.loop.want(Wanted(nic()))
        await bench.rest(0.25)
        assert 1 <= asked <= 4
        assert bench.state()[0] == "failed"

    on_bench(body)
