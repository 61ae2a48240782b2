"""libvirt's domains at work: their news are taken in, they are adopted and released, and replugged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from evertap.engine.journal import Journal
from evertap.engine.ports import Domains
from evertap.engine.reconciler import Reconciler
from evertap.engine.routing import Routing
from evertap.engine.service import Service
from evertap.model.domain import Domain
from evertap.model.domain_adopt import Adoption, adopt, difference, release
from evertap.model.domain_direct import DirectInterface, direct_interfaces, interface_xml
from evertap.model.domain_interface import metadata_xml, nic_interface_xml
from evertap.model.domain_nics import nics_in
from evertap.model.domain_replug import device_xml, needs_replug
from evertap.model.domain_retarget import with_uplinks
from evertap.model.errors import ActionError, EvertapError
from evertap.model.views import AdoptionView

_log = logging.getLogger(__name__)

_FIRST_RETRY: Final = 1.0
_LAST_RETRY: Final = 30.0


class LibvirtSide:
    """Between the adapter to libvirt and the service. All methods belong to the event loop's thread."""

    def __init__(
        self, domains: Domains, service: Service, reconciler: Reconciler, routing: Routing, journal: Journal
    ) -> None:
        self.known: dict[str, Domain] = {}
        """All domains, also those that evertap has nothing to do with."""
        self._domains = domains
        self._service = service
        self._reconciler = reconciler
        self._routing = routing
        self._journal = journal
        self._news: dict[str, Domain | None] = {}  # by uuid; None: gone
        self._listed = False
        self._wake = asyncio.Event()
        self._replugging: set[tuple[str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        domains.changed = self._on_changed
        domains.gone = self._on_gone
        domains.connected = self._on_connected
        routing.mac_of = lambda nic: service.definition(nic).mac
        reconciler.host_changed.append(self._look_for_lost)

    def start(self) -> None:
        """Take news in from now on."""
        self._spawn(self._take_in())

    async def stop(self) -> None:
        """End; domains and NICs stay as they are."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # News

    def _on_changed(self, domain: Domain) -> None:
        self.known[domain.uuid] = domain
        self._news[domain.uuid] = domain
        self._wake.set()

    def _on_gone(self, uuid: str) -> None:
        self.known.pop(uuid, None)
        self._news[uuid] = None
        self._wake.set()

    def _on_connected(self, reason: str) -> None:
        if reason:
            _log.warning("libvirt: %s; NICs stay as they are", reason)
        else:
            _log.info("libvirt: connected, %d domains", len(self.known))
            self._listed = True
            self._wake.set()

    async def _take_in(self) -> None:
        """One after another, but all that has come meanwhile together."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            news, self._news = self._news, {}
            if self._listed:
                # Remembered from before, but libvirt knows them no more.
                self._listed = False
                remembered = self._service.book.entries.keys() - self.known.keys() - news.keys()
                news |= dict.fromkeys(remembered)
            changed = [domain for domain in news.values() if domain]
            gone = [uuid for uuid, domain in news.items() if domain is None]
            try:
                await self._service.domains_changed(changed, gone)
            except EvertapError as error:
                _log.error("%s", error)
            for domain in changed:
                self._routing.tell(domain)
            self._look_for_lost()

    # Replug

    def _look_for_lost(self) -> None:
        """Whether an interface that libvirt made, and cannot mend, was lost and can be had again."""
        for uuid, entry in self._service.book.entries.items():
            for interface in entry.replug:
                key = (uuid, interface.mac)
                if key not in self._replugging and needs_replug(interface, self._reconciler.seen.links):
                    self._replugging.add(key)
                    self._spawn(self._replug(entry.domain, interface))

    async def _replug(self, domain: Domain, interface: DirectInterface) -> None:
        """Detach and attach the same device; tried until it is done or no longer needed."""
        name = f"{domain.name}:{interface.mac}"
        delay = _FIRST_RETRY
        device = device_xml(interface)
        detached = False
        try:
            while detached or needs_replug(interface, self._reconciler.seen.links):
                try:
                    if not detached:
                        await self._domains.detach(domain.uuid, device, live=True, config=False)
                        detached = True
                    await self._domains.attach(domain.uuid, device, live=True, config=False)
                except ActionError as error:
                    _log.warning("%s: replug: %s", name, error)
                    self._journal.record(name, "failed", interface.source, f"replug: {error}")
                    await asyncio.sleep(delay)
                    delay = min(2 * delay, _LAST_RETRY)
                else:
                    reason = f"{interface.target} was lost and its uplink is back"
                    self._journal.record(name, "replugged", interface.source, reason)
                    return
        finally:
            self._replugging.discard((domain.uuid, interface.mac))

    # Adopting and releasing

    def named(self, name: str) -> Domain:
        """The domain of that name, or uuid (EvertapError)."""
        for domain in self.known.values():
            if name in (domain.name, domain.uuid):
                return domain
        raise EvertapError(f'libvirt has no domain "{name}"')

    async def adopt(self, name: str, *, dry_run: bool, live: bool) -> AdoptionView:
        """Turn a domain's direct interfaces into evertap's: at its next start, or at once (`live`)."""
        domain = before = self._with_config(name)
        links = self._reconciler.seen.links
        names = {link_name for link in links for link_name in link.names} | self._reconciler.nics.keys()
        adoption = adopt(domain.config_xml, names, {link.name: link.mtu for link in links.host()})
        if dry_run:
            return _view(domain, adoption)
        if adoption.nics:
            await self._domains.define(adoption.xml)
            domain = msgspec.structs.replace(domain, config_xml=adoption.xml)
            await self._take_now(domain)  # the taps exist from now on
        exchanged: dict[str, str] = {}
        if live and domain.running:
            # Also what an adoption without --live has left for the next start.
            ours = {nic.mac: nic.name for nic in nics_in(domain.config_xml, "", domain.name)[0].values()}
            running = {interface.mac for interface in direct_interfaces(domain.live_xml)}
            exchanged = {mac: nic for mac, nic in ours.items() if mac in running}
            await self._exchange(domain, exchanged, domain.config_xml)
            if exchanged:
                await self._set_live_metadata(domain, domain.config_xml)
        return _view(before, adoption, exchanged)

    async def release(self, name: str, *, dry_run: bool, live: bool) -> AdoptionView:
        """Give a domain its direct interfaces back exactly as they were: at its next start, or at once."""
        domain = before = self._with_config(name)
        adoption = release(domain.config_xml)
        if dry_run:
            return _view(domain, adoption)
        if adoption.nics:
            await self._domains.define(adoption.xml)
            domain = msgspec.structs.replace(domain, config_xml=adoption.xml)
        exchanged: dict[str, str] = {}
        if live and domain.running:
            # Also what a release without --live has left for the next start.
            running = release(domain.live_xml)
            exchanged = running.nics
            if exchanged:
                # The NICs go first: the kernel allows one device of a MAC on an uplink.
                await self._set_live_metadata(domain, running.xml)
                await self._take_now(msgspec.structs.replace(domain, live_xml=running.xml))
                await self._exchange(domain, exchanged, running.xml)
        return _view(before, adoption, exchanged)

    async def _take_now(self, domain: Domain) -> None:
        """Not to wait for libvirt's own word of what was just done."""
        before = self._service.taps_of(domain.uuid)
        await self._service.domains_changed([domain])
        await self._reconciler.rest(before | self._service.taps_of(domain.uuid))

    async def _set_live_metadata(self, domain: Domain, xml: str) -> None:
        await self._domains.set_metadata(domain.uuid, metadata_xml(xml), live=True, config=False)

    async def _exchange(self, domain: Domain, macs: Iterable[str], xml: str) -> None:
        """The running domain's interfaces for those of `xml`, one after another: the guest sees it."""
        for mac in macs:
            if old := _device(domain.live_xml, mac):
                await self._domains.detach(domain.uuid, old, live=True, config=False)
            await self._domains.attach(domain.uuid, interface_xml(xml, mac), live=True, config=False)

    def _with_config(self, name: str) -> Domain:
        domain = self.named(name)
        if not domain.config_xml:
            raise EvertapError(f'domain "{name}" is transient: it has no configuration to change')
        return domain

    async def retarget(self, name: str, uplinks: Sequence[dict[str, str] | str]) -> None:
        """Change a NIC's uplinks in its domain's metadata, of the running state and of the next start."""
        nic = self._service.definition(name)
        domain = self._service.home_of(name)
        for text, live in ((domain.live_xml, True), (domain.config_xml, False)):
            if text and name in nics_in(text, domain.name, domain.name)[0]:
                changed = with_uplinks(metadata_xml(text), nic.mac, uplinks, f"domain {domain.name}")
                await self._domains.set_metadata(domain.uuid, changed, live=live, config=not live)

    # Hotplug

    async def attach(self, nic_name: str, domain_name: str) -> None:
        """Give a domain, running or not, an interface on the NIC's tap."""
        domain = self.named(domain_name)
        xml = nic_interface_xml(self._service.definition(nic_name))
        await self._domains.attach(domain.uuid, xml, live=domain.running, config=bool(domain.config_xml))

    async def detach(self, nic_name: str) -> bool:
        """Take the interface on the NIC's tap from its domain; whether there is such a domain."""
        domain = self._service.book.on_tap(nic_name)
        if domain is None:
            return False
        xml = nic_interface_xml(self._service.definition(nic_name))
        await self._domains.detach(domain.uuid, xml, live=domain.running, config=bool(domain.config_xml))
        return True

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _device(xml: str, mac: str) -> str:
    """The running device with that MAC, as it is to be named when it is detached."""
    for interface in direct_interfaces(xml):
        if interface.mac == mac:
            return device_xml(interface)
    return interface_xml(xml, mac)


def _view(domain: Domain, adoption: Adoption, exchanged: Mapping[str, str] | None = None) -> AdoptionView:
    return AdoptionView(
        domain.name,
        sorted({*adoption.nics.values(), *(exchanged or {}).values()}),
        difference(domain.config_xml, adoption.xml),
        adoption.changes,
        adoption.losses,
        adoption.left,
    )
