"""What evertap does for those who ask: the operations behind the API, over the loop and the definitions."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol

import msgspec

from evertap.engine.domains import PREFIX, DomainBook, Merged, path_of
from evertap.engine.journal import Journal, timestamp
from evertap.engine.ports import Definitions, Kernel, Live, Loaded, Vmms
from evertap.engine.reconciler import Reconciler, Record
from evertap.model.actions import Action
from evertap.model.arguments import qemu_arguments, qmp_arguments
from evertap.model.choice import Candidate, Wanted, candidates, current
from evertap.model.domain import Domain
from evertap.model.domain_parse import parse_domain, tap_names
from evertap.model.errors import DefinitionError, EvertapError, NoSuchNicError
from evertap.model.links import Link
from evertap.model.nic import Nic, check_together, parse_nic, parse_uplink, with_uplinks
from evertap.model.plan import plan
from evertap.model.views import (
    ActionView,
    AdoptionView,
    CandidateView,
    EventView,
    HistoryPage,
    NicView,
    UplinkView,
)
from evertap.model.vmm import Vmm

_log = logging.getLogger(__name__)

_DOMAIN_FOLLOWS: Final = 10.0  # seconds
_QEMU_ANSWERS: Final = 6.0  # seconds; the adapter itself gives up after 5


class Libvirt(Protocol):
    """libvirt's domains at work (engine.libvirt_side)."""

    known: dict[str, Domain]

    async def attach(self, nic_name: str, domain_name: str) -> None:
        """Give a domain an interface on the NIC's tap."""

    async def detach(self, nic_name: str) -> bool:
        """Take it from its domain; whether there is such a domain."""

    async def retarget(self, name: str, uplinks: Sequence[dict[str, str] | str]) -> None:
        """Change a NIC's uplinks in its domain's metadata."""

    async def adopt(self, name: str, *, dry_run: bool, live: bool) -> AdoptionView:
        """Turn a domain's direct interfaces into evertap's."""

    async def release(self, name: str, *, dry_run: bool, live: bool) -> AdoptionView:
        """Give them back."""


class Service:
    """The operations. Those that touch files wait in a thread of their own, never in the event loop."""

    def __init__(
        self,
        reconciler: Reconciler,
        journal: Journal,
        definitions: Definitions,
        kernel: Kernel,
        vmms: Vmms,
        book: DomainBook,
        *,
        qmp_folder: str,
        vhost: bool,
    ) -> None:
        self._reconciler = reconciler
        self._journal = journal
        self._definitions = definitions
        self._kernel = kernel
        self._vmms = vmms
        self._qmp_folder = qmp_folder
        self._vhost = vhost
        self._files = ThreadPoolExecutor(1, "evertap-files")
        self._order = asyncio.Lock()  # definitions change one after another
        self.book = book
        self.libvirt: Libvirt | None = None
        """Set where libvirt is used."""
        self._loaded = Loaded({}, {})
        self._merged = Merged({}, {}, {}, [], {})
        self._live: dict[str, Live] = {}
        self._told: set[str] = set()  # problems of definitions that were logged

    async def start(self) -> None:
        """Read the definitions and have the host become as they want it."""
        self._loaded = await self._in_thread(self._definitions.load)
        for domain in await self._in_thread(self._definitions.load_domains):
            self.book.put(domain)
        self._merge()
        self._live = await self._in_thread(self._load_live)
        await self._end_overrides()
        # Wishes of old: an uplink to fall back to has to prove itself again, but nothing else waits.
        self._take(float("-inf"))
        self._journal.take_leave({*self._merged.nics, *self._problems})
        self._reconciler.start()

    async def stop(self) -> None:
        """End; traffic goes on."""
        await self._reconciler.stop()
        self._files.shutdown()

    async def reload(self) -> None:
        """Read all definitions anew."""
        async with self._order:
            await self._reload()

    # Asking

    def nics(self) -> list[NicView]:
        """All NICs, by name; also those whose only definition was refused."""
        return [self.nic(name) for name in sorted({*self._reconciler.nics, *self._problems})]

    def nic(self, name: str) -> NicView:
        """One NIC with its candidates."""
        problem = str(self._problems.get(name, ""))
        if problem and name not in self._reconciler.nics:
            return _refused_view(name, problem)
        record = self._record(name)
        nic, seen = record.wanted.nic, self._reconciler.seen
        found = candidates(nic, seen, asyncio.get_running_loop().time())
        tap = seen.links.named(name)
        return NicView(
            name=name,
            mac=nic.mac,
            backend=nic.backend,
            mode=nic.mode,
            state=record.state or "waiting",
            uplink=record.uplink,
            reason=record.reason,
            since=record.since,
            tap=name if tap and tap.owner == name else None,
            outages=record.outages,
            uplinks=[str(spec) for spec in nic.uplinks],
            live=name in self._merged.nics and nic.uplinks != self._merged.nics[name].uplinks,
            problem=problem,
            candidates=[_candidate_view(candidate) for candidate in found],
        )

    @property
    def _problems(self) -> dict[str, DefinitionError]:
        """What was refused, by NIC: of the files, and of domains' metadata where the NIC can be told."""
        return {**self._merged.refused, **self._loaded.problems}

    def refused(self) -> list[str]:
        """The NICs whose only definition was refused."""
        return sorted(self._problems.keys() - self._reconciler.nics.keys())

    def uplinks(self) -> list[UplinkView]:
        """The host's interfaces and who uses them."""
        seen = self._reconciler.seen
        on = {name: current(record.wanted, seen) for name, record in self._reconciler.nics.items()}
        return [self._uplink_view(link, on) for link in seen.links.host()]

    def plan(self) -> list[ActionView]:
        """What would be done now."""
        now = asyncio.get_running_loop().time()
        records = sorted(self._reconciler.nics.items())
        return [
            ActionView(name, _kind(action), str(action))
            for name, record in records
            for action in plan(record.wanted, self._reconciler.seen, now).actions
        ]

    def arguments(
        self,
        names: Sequence[str],
        descriptors: Mapping[str, Sequence[int]] | None = None,
        *,
        vhost: bool = True,
    ) -> list[str]:
        """The QEMU arguments for the NICs, and for QMP sockets where they need any.

        `descriptors`: by NIC, the numbers that its tap's open queues have in QEMU's process; of other taps
        QEMU gets the name. `vhost`: QEMU may use it, if the host has it.
        """
        wishes = [self._record(name).wanted for name in names]
        vhost = vhost and self._vhost
        opened = descriptors or {}
        arguments = [
            part
            for name, wanted in zip(names, wishes, strict=True)
            for part in qemu_arguments(wanted.nic, vhost=vhost, descriptors=opened.get(name, ()))
        ]
        sockets = dict.fromkeys(w.qmp for w in wishes if w.qmp and not w.qmp.startswith(PREFIX))
        return arguments + [part for path in sockets for part in qmp_arguments(path)]

    def open_tap(self, name: str) -> list[int]:
        """Open all queues of the NIC's tap, for a VMM that may not; descriptors for the caller to close."""
        nic = self._defined(name)
        if nic.backend != "tap":
            raise EvertapError(f'NIC "{name}" has backend "{nic.backend}", so there is no tap to open')
        return self._kernel.open_tap(name, nic.queues)

    def definition(self, name: str) -> Nic:
        """A NIC as it is defined (NoSuchNicError)."""
        return self._defined(name)

    def owner_of(self, name: str) -> str:
        """The user whom the definition lets open the NIC's tap; empty if none."""
        return self._defined(name).owner

    async def wait(self, name: str, state: str, timeout: float | None) -> NicView:  # noqa: ASYNC109
        """Wait until the NIC is in the state. TimeoutError after `timeout` seconds."""
        self._record(name)
        reached = asyncio.Event()

        def check(settled: str) -> None:
            if settled == name and (name not in self._reconciler.nics or self._record(name).state == state):
                reached.set()

        self._reconciler.settled.append(check)
        try:
            check(name)
            async with asyncio.timeout(timeout):
                await reached.wait()
        finally:
            self._reconciler.settled.remove(check)
        return self.nic(name)

    def history(self, name: str | None) -> list[EventView]:
        """What happened to one NIC, or to all, since the daemon started."""
        return self._journal.events(name)

    async def nic_history(self, name: str, before: int | None, limit: int) -> HistoryPage:
        """What happened to one NIC ever, also to one that is no more: the last `limit` events, or the last
        before a page's `earlier`."""
        if self._journal.chronicle is None:
            raise EvertapError("this daemon keeps no history")
        page = await self._journal.chronicle.page(name, before, limit)
        if not page.events and before is None and name not in self._problems:
            self._record(name)
        return page

    def follow(self, name: str | None) -> AsyncIterator[EventView]:
        """What happens from now on."""
        return self._journal.follow(name)

    # Changing

    async def define(self, texts: dict[str, str]) -> None:
        """Add or replace definitions (NAME -> TOML text), all or none."""
        async with self._order:
            await self._in_thread(self._definitions.define, texts)
            await self._reload()
        await self._reconciler.rest(texts)

    async def undefine(self, names: Sequence[str]) -> None:
        """Remove definitions; a tap that a VM holds stays until the VM lets go."""
        async with self._order:
            for name in names:
                if name not in self._loaded.problems:
                    self._defined(name)
                self._in_file(name)
            await self._in_thread(self._definitions.undefine, names)
            await self._reload()
        await self._reconciler.rest(names)

    async def connect(self, name: str) -> None:
        """End an administrative disconnection."""
        await self._change_live(name, disconnected=False)

    async def disconnect(self, name: str) -> None:
        """Take the NIC's backend down until `connect`."""
        await self._change_live(name, disconnected=True)

    async def attach_domain(self, name: str, domain: str) -> None:
        """Give a libvirt domain, running or not, an interface on the NIC's tap."""
        if self._defined(name).backend != "tap":
            raise EvertapError(f'NIC "{name}" has backend "macvtap"; libvirt can only be given a tap')
        await self._with_libvirt().attach(name, domain)
        await self._reconciler.rest([name])

    async def adopt(self, domain: str, dry_run: bool, live: bool) -> AdoptionView:
        """Turn a libvirt domain's direct interfaces into evertap's, at its next start or at once (`live`)."""
        return await self._with_libvirt().adopt(domain, dry_run=dry_run, live=live)

    async def release(self, domain: str, dry_run: bool, live: bool) -> AdoptionView:
        """Give a libvirt domain its direct interfaces back exactly as they were."""
        return await self._with_libvirt().release(domain, dry_run=dry_run, live=live)

    def domains(self) -> list[str]:
        """The names of libvirt's domains."""
        return sorted(domain.name for domain in self._with_libvirt().known.values())

    def _with_libvirt(self) -> Libvirt:
        if self.libvirt is None:
            raise EvertapError(
                "this daemon does not use libvirt: install evertap[libvirt], and do not start it with "
                "--libvirt-uri none"
            )
        return self.libvirt

    async def attach(self, name: str, qmp: str) -> None:
        """Plug the NIC's device into the QEMU behind a QMP socket of our own; an uplink need not exist."""
        nic = self._defined(name)
        before = self._live.get(name, Live()).qmp
        await self._change_live(name, qmp=qmp)
        try:
            await self._until_running(name, qmp)
            descriptors = self.open_tap(name) if nic.backend == "tap" else []
            try:
                await self._vmms.attach(qmp, nic, descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
        except Exception:
            await self._change_live(name, qmp=before)
            raise
        await self._reconciler.rest([name])

    async def detach(self, name: str) -> None:
        """Unplug the NIC's device from its running QEMU; the definition stays."""
        wanted = self._record(name).wanted
        if self.libvirt and await self.libvirt.detach(name):
            return
        if not wanted.qmp:
            raise EvertapError(
                f'NIC "{name}" is not known to be in a QEMU: attach it, or add [vm] qmp = "/path"'
            )
        await self._until_running(name, wanted.qmp)
        await self._vmms.detach(wanted.qmp, wanted.nic)
        await self._change_live(name, qmp="")

    async def _until_running(self, name: str, qmp: str) -> None:
        """Wait until QEMU answers, or until it is known that it will not."""

        def vmm() -> Vmm:
            return self._reconciler.seen.vmms.get(qmp, Vmm())

        settled = asyncio.Event()

        def watcher(_: str) -> None:
            settled.set()

        self._reconciler.settled.append(watcher)
        try:
            async with asyncio.timeout(_QEMU_ANSWERS):
                while not vmm().running and not vmm().gone:
                    settled.clear()
                    await settled.wait()
        except TimeoutError:
            pass
        finally:
            self._reconciler.settled.remove(watcher)
        if not vmm().running:
            raise EvertapError(f'NIC "{name}": the QEMU at {qmp} cannot be reached: {vmm().reason}')

    async def retarget(self, name: str, uplinks: Sequence[str], live: bool) -> None:
        """Give the NIC other uplinks, in the running state and (unless `live`) in the definition."""
        nic = self._defined(name)
        wanted = [parse_uplink(uplink) for uplink in uplinks]
        if live:
            where = f"retarget {name}"
            checked = with_uplinks(nic, parse_nic(name, {"mac": nic.mac, "uplinks": wanted}, where).uplinks)
            check_together(checked, {r.wanted.nic.name: r.wanted.nic for r in self._wishes()}, where)
            await self._change_live(name, uplinks=checked.uplinks, instead_of=nic.uplinks)
            return
        if name in self._merged.homes:
            await self._retarget_in_domain(nic, wanted)
            return
        async with self._order:
            await self._in_thread(self._definitions.set_uplinks, name, wanted)
            if name in self._live:
                await self._save_live(name, self._live[name]._replace(uplinks=(), instead_of=()))
            await self._reload()
        await self._reconciler.rest([name])

    async def _retarget_in_domain(self, nic: Nic, uplinks: list[dict[str, str] | str]) -> None:
        """The definition stands in a domain's metadata; the NIC follows once libvirt tells of the change."""
        where = f"retarget {nic.name}"
        wanted = parse_nic(nic.name, {"mac": nic.mac, "uplinks": uplinks}, where).uplinks
        followed = asyncio.Event()

        def check(_: str) -> None:
            if self._defined(nic.name).uplinks == wanted:
                followed.set()

        self._reconciler.settled.append(check)
        try:
            await self._with_libvirt().retarget(nic.name, uplinks)
            check(nic.name)
            async with asyncio.timeout(_DOMAIN_FOLLOWS):
                await followed.wait()
        finally:
            self._reconciler.settled.remove(check)
        await self._reconciler.rest([nic.name])

    # libvirt's domains

    def taps_of(self, uuid: str) -> set[str]:
        """The NICs of a domain."""
        entry = self.book.entries.get(uuid)
        return {*entry.nics, *entry.taps} if entry else set()

    def home_of(self, name: str) -> Domain:
        """The domain whose metadata defines the NIC (KeyError)."""
        return self._merged.homes[name]

    async def domains_changed(self, domains: Sequence[Domain], gone: Sequence[str] = ()) -> None:
        """Take in what libvirt tells of domains, and which ones are no more."""
        async with self._order:
            changed = False
            for domain in domains:
                before = self.book.entries.get(domain.uuid)
                if (before and before.domain == domain) or not self.book.put(domain):
                    continue
                changed = True
                entry = self.book.entries.get(domain.uuid)
                if entry and not entry.problems:  # what is remembered is the last good one
                    await self._save_domain(domain)
                elif entry is None:
                    await self._in_thread(self._definitions.forget_domain, domain.uuid)
            for uuid in gone:
                if self.book.drop(uuid):
                    changed = True
                    await self._in_thread(self._definitions.forget_domain, uuid)
            if changed:
                await self._remerge()

    async def _save_domain(self, domain: Domain) -> None:
        try:
            await self._in_thread(self._definitions.save_domain, domain)
        except EvertapError as error:  # its NICs are wanted nevertheless
            _log.warning("domain %s is forgotten when the daemon restarts: %s", domain.name, error)

    async def prepare_domain(self, xml: str) -> None:
        """Make sure of the taps of a domain that is about to start; libvirt need not have told of it yet."""
        domain = parse_domain(xml)
        if domain.uuid not in self.book.entries:
            await self.domains_changed([domain])
        await self._reconciler.rest(tap_names(xml))

    # Inside

    def _defined(self, name: str) -> Nic:
        nic = self._merged.nics.get(name)
        if nic is None:
            raise NoSuchNicError(name)
        return nic

    def _in_file(self, name: str) -> None:
        """Refuse to change here what a domain's metadata defines."""
        if home := self._merged.homes.get(name):
            raise EvertapError(
                f'NIC "{name}" is defined in the metadata of domain "{home.name}": change it there, with '
                f"`virsh metadata {home.name} --uri urn:evertap:1 …`"
            )

    def _record(self, name: str) -> Record:
        record = self._reconciler.nics.get(name)
        if record is None:
            raise NoSuchNicError(name)
        return record

    def _wishes(self) -> list[Record]:
        return [record for record in self._reconciler.nics.values() if not record.wanted.removed]

    def _load_live(self) -> dict[str, Live]:
        return {name: self._definitions.load_live(name) for name in self._definitions.live_names()}

    async def _change_live(self, name: str, **changes: Any) -> None:
        self._defined(name)
        async with self._order:
            await self._save_live(name, self._live.get(name, Live())._replace(**changes))
            self._take(asyncio.get_running_loop().time())
        await self._reconciler.rest([name])

    async def _save_live(self, name: str, live: Live) -> None:
        await self._in_thread(self._definitions.save_live, name, live)
        self._live[name] = live

    async def _reload(self) -> None:
        self._loaded = await self._in_thread(self._definitions.load)
        await self._remerge()

    async def _remerge(self) -> None:
        """Have the loop want what files and domains say now."""
        self._merge()
        await self._end_overrides()
        self._take(asyncio.get_running_loop().time())

    async def _end_overrides(self) -> None:
        """Forget what was said for the running state of NICs that are gone, or are defined otherwise now."""
        for name, live in list(self._live.items()):
            nic = self._merged.nics.get(name)
            if nic is None and name not in self._problems:
                live = Live()
            elif nic and live.instead_of not in ((), nic.uplinks):
                live = live._replace(uplinks=(), instead_of=())
            if live == self._live[name]:
                continue
            try:
                await self._save_live(name, live)
            except EvertapError as error:  # it has no effect any more, unless this is undone
                _log.warning("%s", error)
            self._live[name] = live
            if nic is None:
                del self._live[name]

    def _merge(self) -> None:
        self._merged = self.book.merge(self._loaded.nics)
        problems = {str(problem) for problem in (*self._loaded.problems.values(), *self._merged.problems)}
        for problem in problems - self._told:
            _log.error("%s", problem)
        self._told = problems

    def _take(self, now: float) -> None:
        """Have the loop want what the definitions and the running state's overrides say."""
        for name, nic in self._merged.nics.items():
            live = self._live.get(name, Live())
            if live.uplinks and live.instead_of == nic.uplinks:
                nic = with_uplinks(nic, live.uplinks)
            record = self._reconciler.nics.get(name)
            wanted = Wanted(
                nic,
                now,
                live.disconnected,
                idle=self._merged.idle.get(name, ""),
                qmp=self._qmp(nic, live),
            )
            if record is None or record.wanted.removed:
                self._journal.record(name, "defined", None, "")
            elif msgspec.structs.replace(record.wanted, since=now) == wanted:
                continue
            self._reconciler.want(wanted)
        for record in self._wishes():
            name = record.wanted.nic.name
            if name not in self._merged.nics:
                self._journal.record(name, "undefined", None, "")
                self._reconciler.want(Wanted(record.wanted.nic, removed=True, qmp=record.wanted.qmp))

    def _qmp(self, nic: Nic, live: Live) -> str:
        """The QMP socket for the NIC, or what stands for its domain; none where QEMU has no part in it."""
        if domain := self.book.on_tap(nic.name):
            return path_of(domain.uuid)
        if nic.vm.domain:
            named = self.book.called(nic.vm.domain)
            return path_of(named.uuid if named else nic.vm.domain)
        needed = nic.backend == "macvtap" or nic.guest_link != "keep" or nic.multicast == "guest"
        return live.qmp or nic.vm.qmp or (f"{self._qmp_folder}/{nic.name}" if needed else "")

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._files, call, *arguments)

    def _uplink_view(self, link: Link, on: dict[str, int]) -> UplinkView:
        seen = self._reconciler.seen
        connected = sorted(name for name, index in on.items() if index == link.index)
        owners = {above.owner for above in seen.links.above(link.index) if above.owner}
        return UplinkView(
            name=link.name,
            altnames=list(link.altnames),
            mac=link.mac,
            path=f"{link.parent_bus}-{link.parent_dev}" if link.parent_dev else "",
            kind=link.kind,
            up=link.up,
            carrier=link.carrier,
            mtu=link.mtu,
            nics=connected,
            standby=sorted(owners - set(connected)),
            wanted_by=sorted(self._reconciler.interest.in_link(link)),
        )


def _kind(action: Action) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(action).__name__).lower()


def _candidate_view(candidate: Candidate) -> CandidateView:
    return CandidateView(
        uplink=str(candidate.spec),
        interface=candidate.link.name if candidate.link else None,
        mode=candidate.mode,
        usable=candidate.usable,
        reason=candidate.reason,
    )


def _refused_view(name: str, problem: str) -> NicView:
    return NicView(
        name=name,
        mac="",
        backend="",
        mode="",
        state="failed",
        uplink=None,
        reason=problem,
        since=timestamp(),
        tap=None,
        outages=0,
        uplinks=[],
        live=False,
        problem=problem,
    )
