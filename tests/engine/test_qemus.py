"""The loop and QEMUs: plugging, a QEMU that hangs, ends or refuses, the guest's link."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from evertap.engine import reconciler as reconciling
from evertap.engine.journal import Journal
from evertap.engine.reconciler import Reconciler
from evertap.model.choice import Wanted
from evertap.model.errors import ActionError
from evertap.model.vmm import card_port, qemu_id, sink_port
from tests.support.nics import nic
from tests.support.simulated import FakeVmms, SimulatedKernel


class Bench:
    """A loop on a simulated host with pretended QEMUs; each NIC has its own."""

    def __init__(self) -> None:
        self.host = SimulatedKernel()
        self.vmms = FakeVmms()
        self.journal = Journal()
        self.loop = Reconciler(self.host, self.vmms, self.journal)

    def want(self, name: str, **fields: object) -> None:
        self.loop.want(Wanted(nic(name, backend="macvtap", **fields), qmp=f"/qmp/{name}"))

    def boot(self, name: str) -> None:
        self.vmms.boot(f"/qmp/{name}", qemu_id(name), card_port(name), sink_port(name))

    async def rest(self, seconds: float = 0.0) -> None:
        await asyncio.sleep(seconds)
        for _ in range(40):
            await asyncio.sleep(0)

    def state(self, name: str) -> str | None:
        return self.loop.nics[name].state


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


def test_only_the_sockets_of_nics_that_need_them_are_followed() -> None:
    async def body(bench: Bench) -> None:
        bench.want("vm1")
        bench.loop.want(Wanted(nic("vm2")))
        await bench.rest()
        assert bench.vmms.followed == {"/qmp/vm1"}
        bench.loop.want(Wanted(nic("vm1", backend="macvtap"), removed=True, qmp="/qmp/vm1"))
        await bench.rest()
        assert bench.vmms.followed == set()

    on_bench(body)


def test_a_macvtap_is_plugged_announced_and_unplugged_again() -> None:
    async def body(bench: Bench) -> None:
        bench.want("vm1")
        bench.boot("vm1")
        bench.host.add("eth0")
        await bench.rest()
        assert bench.state("vm1") == "connected"
        assert [step[0] for step in bench.vmms.told] == ["plug", "announce"]
        assert [action.uplink for action in bench.host.announced] == ["eth0"]
        bench.host.remove("eth0")
        await bench.rest()
        assert bench.state("vm1") == "waiting"
        assert bench.vmms.told[-1][0] == "unplug"
        (connected,) = [event for event in bench.journal.events("vm1") if event.event == "connected"]
        assert connected.latency_ms is not None

    on_bench(body)


def test_a_qemu_that_hangs_delays_its_own_nic_only() -> None:
    async def body(bench: Bench) -> None:
        for name in ("vm1", "vm2"):
            bench.want(name)
            bench.boot(name)
        bench.vmms.stuck["/qmp/vm1"] = asyncio.Event()
        bench.host.add("eth0")
        await bench.rest()
        assert bench.state("vm2") == "connected"
        assert bench.state("vm1") == "waiting"
        bench.host.remove("eth0")
        await bench.rest()
        bench.host.add("eth0")
        await bench.rest()
        assert bench.state("vm2") == "connected"
        bench.vmms.stuck.pop("/qmp/vm1").set()
        await bench.rest(0.3)
        assert bench.state("vm1") == "connected"

    on_bench(body)


def test_a_refusal_of_qemu_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciling, "_FIRST_RETRY", 0.02)

    async def body(bench: Bench) -> None:
        bench.want("vm1")
        bench.boot("vm1")
        bench.vmms.refuse = "Duplicate ID"
        bench.host.add("eth0")
        await bench.rest()
        assert bench.state("vm1") == "failed"
        assert bench.loop.nics["vm1"].reason == "plug: Duplicate ID"
        bench.vmms.refuse = ""
        await bench.rest(0.3)
        assert bench.state("vm1") == "connected"

    on_bench(body)


def test_a_bounce_is_a_loss_and_a_return_and_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciling, "_BOUNCE", 0.02)

    async def body(bench: Bench) -> None:
        bench.want("vm1", guest_link="bounce")
        bench.boot("vm1")
        await bench.rest()
        bench.host.add("eth0")
        await bench.rest(0.1)
        links = [step for step in bench.vmms.told if step[0] == "set_link"]
        assert links == [("set_link", "vm1", False), ("set_link", "vm1", True)]
        await bench.rest(0.1)
        assert len([step for step in bench.vmms.told if step[0] == "set_link"]) == 2

    on_bench(body)


def test_a_vm_that_starts_on_a_connected_nic_is_not_bounced() -> None:
    async def body(bench: Bench) -> None:
        bench.loop.want(Wanted(nic("vm1", guest_link="bounce"), qmp="/qmp/vm1"))
        bench.host.add("eth0")
        await bench.rest()
        bench.vmms.boot("/qmp/vm1", qemu_id("vm1"))
        await bench.rest()
        assert [step for step in bench.vmms.told if step[0] == "set_link"] == []

    on_bench(body)


def test_follow_is_told_anew_to_a_qemu_that_was_restarted() -> None:
    async def body(bench: Bench) -> None:
        bench.want("vm1", guest_link="follow")
        bench.boot("vm1")
        await bench.rest()
        bench.vmms.end("/qmp/vm1")
        await bench.rest()
        bench.boot("vm1")
        await bench.rest()
        assert bench.vmms.told == [("set_link", "vm1", False)] * 2

    on_bench(body)


def test_a_plug_that_fails_half_way_is_not_tried_in_a_circle() -> None:
    async def body(bench: Bench) -> None:
        bench.want("vm1")
        bench.boot("vm1")
        tries = 0

        async def plug(path: str, nic: str, index: int, descriptor: int) -> None:
            nonlocal tries
            tries += 1
            parts = bench.vmms.known[path].parts
            bench.vmms.boot(path, *parts, f"evertap-vm1-up{index}")  # made, and undone
            bench.vmms.boot(path, *parts)
            raise ActionError("netdev_add: no")

        bench.vmms.plug = plug  # type: ignore[method-assign]
        bench.host.add("eth0")
        await bench.rest(0.25)
        assert 1 <= tries <= 3
        assert bench.state("vm1") == "failed"

    on_bench(body)
