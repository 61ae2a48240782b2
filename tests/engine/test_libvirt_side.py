"""libvirt's domains over a simulated kernel and a pretended libvirt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from evertap.config.store import Store
from evertap.engine.domains import DomainBook
from evertap.engine.journal import Journal
from evertap.engine.libvirt_side import LibvirtSide
from evertap.engine.reconciler import Reconciler
from evertap.engine.routing import Routing
from evertap.engine.service import Service
from evertap.model.domain import Domain
from evertap.model.errors import ActionError, EvertapError
from tests.support.simulated import FakeVmms, SimulatedKernel

MAC = "52:54:00:aa:bb:01"


def xml(
    uplinks: Sequence[str] = ("eth0",), *, tap: str = "vm0", metadata: bool = True, fields: str = ""
) -> str:
    """A domain with one interface on a tap of evertap's, and its definition in the metadata."""
    children = "".join(f"<evertap:uplink name='{uplink}'/>" for uplink in uplinks)
    nics = (
        "<metadata><evertap:nics xmlns:evertap='urn:evertap:1'>"
        f"<evertap:nic mac='{MAC}' {fields}>{children}</evertap:nic></evertap:nics></metadata>"
    )
    return (
        f"<domain><name>vm</name><uuid>{uuid()}</uuid>{nics if metadata else ''}<devices>"
        f"<interface type='ethernet'><mac address='{MAC}'/><target dev='{tap}' managed='no'/></interface>"
        "</devices></domain>"
    )


def direct(target: str = "", replug: str = "yes") -> str:
    """A domain with one macvtap of libvirt's own on eth0."""
    dev = f"<target dev='{target}'/>" if target else ""
    return (
        f"<domain><name>vm</name><uuid>{uuid()}</uuid>"
        f"<metadata><evertap:nics xmlns:evertap='urn:evertap:1' replug='{replug}'/></metadata><devices>"
        f"<interface type='direct'><mac address='{MAC}'/><source dev='eth0' mode='bridge'/>{dev}"
        "<model type='virtio'/></interface></devices></domain>"
    )


def uuid() -> str:
    return "11111111-2222-3333-4444-555555555555"


class FakeDomains:
    """Implements ports.Domains: remembers what it was told."""

    changed: Callable[[Domain], None]
    gone: Callable[[str], None]
    connected: Callable[[str], None]

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.refuse = ""

    def _tell(self, *what: Any) -> None:
        self.told.append(what)
        if self.refuse:
            raise ActionError(self.refuse)

    async def set_link(self, uuid: str, mac: str, up: bool) -> None:
        self._tell("set_link", mac, up)

    async def attach(self, uuid: str, xml: str, *, live: bool, config: bool) -> None:
        self._tell("attach", xml, live, config)

    async def detach(self, uuid: str, xml: str, *, live: bool, config: bool) -> None:
        self._tell("detach", xml, live, config)

    async def define(self, xml: str) -> None:
        self._tell("define", xml)

    async def set_metadata(self, uuid: str, xml: str, *, live: bool, config: bool) -> None:
        self._tell("set_metadata", xml, live, config)

    async def monitor(
        self, uuid: str, command: str, arguments: dict[str, Any], descriptors: Sequence[int] = ()
    ) -> Any:
        raise AssertionError("using the monitor marks a domain as tainted")


class Bench:
    """A daemon's engine with libvirt beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = SimulatedKernel()
        self.domains = FakeDomains()
        self.journal = Journal()
        book = DomainBook()
        routing = Routing(FakeVmms(), self.domains, book)
        self.loop = Reconciler(self.host, routing, self.journal)
        store = Store(folder / "etc", folder / "run", folder / "lib")
        self.service = Service(
            self.loop,
            self.journal,
            store,
            self.host,
            routing,
            book,
            qmp_folder=str(folder),
            vhost=False,
        )
        self.side = LibvirtSide(self.domains, self.service, self.loop, routing, self.journal)
        self.service.libvirt = self.side

    def tell(self, config: str = "", live: str = "") -> None:
        domain = Domain(uuid(), "vm", running=bool(live), live_xml=live, config_xml=config)
        self.domains.changed(domain)

    async def rest(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0.005)

    def state(self, name: str = "vm0") -> tuple[str | None, str | None]:
        record = self.loop.nics[name]
        return record.state, record.uplink


def on_bench(folder: Path, body: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        bench = Bench(folder)
        await bench.service.start()
        bench.side.start()
        try:
            await body(bench)
        finally:
            await bench.side.stop()
            await bench.service.stop()
            bench.host.close()

    asyncio.run(main(), debug=True)


def test_a_domains_taps_exist_before_it_starts_and_metadata_retargets_it_live(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.host.add("eth0")
        bench.host.add("eth1")
        bench.tell(config=xml())
        await bench.rest()
        assert bench.state() == ("connected", "eth0")
        bench.tell(config=xml(), live=xml(["eth1"]))
        await bench.rest()
        assert bench.state() == ("connected", "eth1")
        bench.domains.gone(uuid())
        await bench.rest()
        assert bench.loop.nics == {}

    on_bench(tmp_path, body)


def test_a_mistake_in_the_metadata_is_told_and_the_files_nics_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    problem = 'domain vm (configuration): nic[52:54:00:aa:bb:01].mode: found "brige"'

    async def body(bench: Bench) -> None:
        await bench.service.define({"web0": 'mac = "52:54:00:00:00:09"\nuplinks = ["eth0"]'})
        bench.host.add("eth0")
        bench.tell(config=xml(fields="mode='brige'"))
        await bench.rest()
        assert bench.state("web0") == ("connected", "eth0")
        assert problem in caplog.text
        shown = bench.service.nic("vm0")
        assert (shown.state, shown.problem.startswith(problem)) == ("failed", True)

    on_bench(tmp_path, body)


def test_a_mistake_leaves_the_last_good_definition_in_force(tmp_path: Path) -> None:
    async def first(bench: Bench) -> None:
        bench.host.add("eth0")
        bench.tell(config=xml())
        await bench.rest()
        bench.tell(config=xml(fields="mode='brige'"))
        await bench.rest()
        assert bench.state("vm0") == ("connected", "eth0")
        assert 'found "brige"' in bench.service.nic("vm0").problem

    async def second(bench: Bench) -> None:
        assert "vm0" in bench.loop.nics

    on_bench(tmp_path, first)
    on_bench(tmp_path, second)


def test_a_domains_nic_cannot_take_a_files_name_or_mac(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(bench: Bench) -> None:
        await bench.service.define({"vm0": 'mac = "52:54:00:00:00:09"\nuplinks = ["eth0"]'})
        bench.tell(config=xml())
        await bench.rest()
        assert bench.loop.nics["vm0"].wanted.nic.mac == "52:54:00:00:00:09"
        assert 'NIC "vm0" is defined by vm0.toml already' in caplog.text

    on_bench(tmp_path, body)


def test_domains_are_remembered_while_libvirt_is_away_and_forgotten_once_it_says_so(tmp_path: Path) -> None:
    async def first(bench: Bench) -> None:
        bench.host.add("eth0")
        bench.tell(config=xml())
        await bench.rest()
        bench.domains.connected("libvirtd has ended")
        await bench.rest()
        assert bench.state() == ("connected", "eth0")

    async def second(bench: Bench) -> None:
        assert "vm0" in bench.loop.nics
        bench.domains.connected("")
        await bench.rest()
        assert "vm0" not in bench.loop.nics

    on_bench(tmp_path, first)
    on_bench(tmp_path, second)


def test_the_hook_has_a_transient_domains_tap_made(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        await bench.service.prepare_domain(xml())
        assert bench.host.named("vm0").kind == "tun"

    on_bench(tmp_path, body)


def test_guest_link_of_a_domain_goes_through_libvirt(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        described = xml(fields="guest_link='follow'")
        bench.tell(config=described, live=described)
        await bench.rest()
        assert bench.domains.told == [("set_link", MAC, False)]
        bench.host.add("eth0")
        await bench.rest()
        assert bench.domains.told[-1] == ("set_link", MAC, True)

    on_bench(tmp_path, body)


def test_what_a_domain_defines_is_changed_there_or_live(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.host.add("eth1")
        bench.tell(config=xml())
        await bench.rest()
        with pytest.raises(EvertapError, match='defined in the metadata of domain "vm"'):
            await bench.service.undefine(["vm0"])
        await bench.service.retarget("vm0", ["eth1"], True)
        assert bench.state() == ("connected", "eth1")
        asyncio.get_running_loop().call_later(0.05, lambda: bench.tell(config=xml(["eth1"])))
        await bench.service.retarget("vm0", ["eth1"], False)
        (told,) = bench.domains.told
        assert told[0] == "set_metadata"
        assert told[1] == f"<nics><nic mac='{MAC}' ><uplink name=\"eth1\"/></nic></nics>"
        assert told[2:] == (False, True)
        assert not bench.service.nic("vm0").live

    on_bench(tmp_path, body)


def test_a_lost_direct_interface_is_replugged_when_its_uplink_is_back_and_never_before(
    tmp_path: Path,
) -> None:
    async def body(bench: Bench) -> None:
        eth0 = bench.host.add("eth0")
        bench.host.add("macvtap0", kind="macvtap", lower=eth0.index, mac=MAC)
        bench.tell(config=direct(), live=direct("macvtap0"))
        await bench.rest()
        assert bench.domains.told == []
        bench.host.remove("eth0")
        await bench.rest()
        assert bench.domains.told == []
        bench.host.add("eth0")
        await bench.rest()
        assert [step[0] for step in bench.domains.told] == ["detach", "attach"]
        assert bench.domains.told[0][2:] == (True, False)
        assert "macvtap0" not in bench.domains.told[1][1]
        assert [event.event for event in bench.journal.events(f"vm:{MAC}")] == ["replugged"]

    on_bench(tmp_path, body)


def test_without_the_wish_nothing_is_replugged(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.host.add("eth0")
        bench.tell(live=direct("macvtap0", replug="no"))
        await bench.rest()
        assert bench.domains.told == []

    on_bench(tmp_path, body)


def test_a_replug_that_fails_half_way_is_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evertap.engine.libvirt_side._FIRST_RETRY", 0.01)

    async def body(bench: Bench) -> None:
        bench.host.add("eth0")
        bench.domains.refuse = "libvirt does not answer within 10 s"
        bench.tell(live=direct("macvtap0"))
        await bench.rest()
        assert {step[0] for step in bench.domains.told} == {"detach"}
        bench.domains.refuse = ""
        await bench.rest()
        assert [step[0] for step in bench.domains.told][-2:] == ["detach", "attach"]

    on_bench(tmp_path, body)


def test_adopt_defines_makes_the_taps_and_replugs_only_when_asked(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.host.add("eth0")
        config, live = direct(replug="no"), direct("macvtap0", replug="no")
        bench.tell(config=config, live=live)
        await bench.rest()
        shown = await bench.service.adopt("vm", True, False)
        assert (bench.domains.told, "type='ethernet'" in shown.difference) == ([], True)
        adopted = await bench.service.adopt("vm", False, False)
        assert [step[0] for step in bench.domains.told] == ["define"]
        assert bench.host.named(adopted.nics[0]).kind == "tun"
        bench.domains.told.clear()
        bench.tell(config=config, live=live)
        await bench.rest()
        await bench.service.adopt("vm", False, True)
        steps = [step[0] for step in bench.domains.told]
        assert steps == ["define", "detach", "attach", "set_metadata"]
        assert "type='direct'" in bench.domains.told[1][1]
        assert "type='ethernet'" in bench.domains.told[2][1]

    on_bench(tmp_path, body)


def test_release_gives_the_interface_back_at_once_if_asked(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.host.add("eth0")
        original = direct(replug="no")
        bench.tell(config=original)
        await bench.rest()
        await bench.service.adopt("vm", False, False)
        adopted = bench.domains.told[-1][1]
        bench.tell(config=adopted, live=adopted)
        await bench.rest()
        name = next(iter(bench.loop.nics))
        bench.host.change(name, flags=0x10001)  # the VM holds it
        bench.domains.told.clear()
        await bench.service.release("vm", False, True)
        assert [step[0] for step in bench.domains.told] == ["define", "set_metadata", "detach", "attach"]
        assert not any(link.kind == "macvlan" for link in bench.host.links.values())
        assert "type='direct'" in bench.domains.told[0][1]

    on_bench(tmp_path, body)


def test_attach_and_detach_by_domain_are_live_and_in_the_configuration(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        await bench.service.define({"web0": f'mac = "{MAC}"\nuplinks = ["eth0"]'})
        empty = xml(metadata=False).replace("<interface", "<x").replace("</interface>", "</x>")
        bench.tell(config=empty, live=empty)
        await bench.rest()
        with pytest.raises(EvertapError, match='libvirt has no domain "nobody"'):
            await bench.service.attach_domain("web0", "nobody")
        await bench.service.attach_domain("web0", "vm")
        assert bench.domains.told[-1][2:] == (True, True)
        with_it = xml(metadata=False, tap="web0")
        bench.tell(config=with_it, live=with_it)
        await bench.rest()
        await bench.service.detach("web0")
        assert bench.domains.told[-1][0] == "detach"

    on_bench(tmp_path, body)


def test_an_unchanged_domain_is_no_news(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.tell(config=xml())
        await bench.rest()
        before = bench.loop.nics["vm0"].wanted
        bench.tell(config=xml())
        await bench.rest()
        assert bench.loop.nics["vm0"].wanted is before
        assert msgspec.structs.asdict(before)["qmp"] == f"libvirt:{uuid()}"

    on_bench(tmp_path, body)


def test_a_domains_passwords_are_neither_shown_nor_readable_by_others(tmp_path: Path) -> None:
    secret = "<graphics type='vnc' passwd='hush'/>"

    async def body(bench: Bench) -> None:
        bench.tell(config=direct(replug="no").replace("<interface", secret + "<interface"))
        await bench.rest()
        shown = await bench.service.adopt("vm", True, False)
        assert "passwd='...'" in shown.difference
        assert "hush" not in shown.difference
        bench.tell(config=xml().replace("<interface", secret + "<interface"))
        await bench.rest()
        (file,) = (tmp_path / "lib" / "domains").iterdir()
        assert "hush" in file.read_text()
        assert file.stat().st_mode & 0o077 == 0

    on_bench(tmp_path, body)


def test_live_carries_out_what_was_left_for_the_next_start(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.host.add("eth0")
        original, running = direct(replug="no"), direct("macvtap0", replug="no")
        bench.tell(config=original, live=running)
        await bench.rest()
        await bench.service.adopt("vm", False, False)
        adopted = bench.domains.told[-1][1]
        bench.tell(config=adopted, live=running)
        await bench.rest()
        bench.domains.told.clear()
        done = await bench.service.adopt("vm", False, True)
        assert [step[0] for step in bench.domains.told] == ["detach", "attach", "set_metadata"]
        assert done.nics
        bench.tell(config=adopted, live=adopted)
        await bench.rest()
        await bench.service.release("vm", False, False)
        bench.tell(config=original, live=adopted)
        await bench.rest()
        bench.domains.told.clear()
        done = await bench.service.release("vm", False, True)
        assert [step[0] for step in bench.domains.told] == ["set_metadata", "detach", "attach"]
        assert done.nics

    on_bench(tmp_path, body)
