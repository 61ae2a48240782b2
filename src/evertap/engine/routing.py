"""The VMs' QEMUs by either way: those with a QMP socket of ours, and libvirt's domains."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence

from evertap.engine import domain_hubs
from evertap.engine.domains import PREFIX, DomainBook, path_of
from evertap.engine.ports import Domains, Vmms
from evertap.model.domain import Domain
from evertap.model.errors import ActionError
from evertap.model.nic import Nic
from evertap.model.vmm import RxFilter, Vmm, qemu_id


class Routing:
    """Implements ports.Vmms. Of a domain it can set the guest's link, and reach hubs by the monitor."""

    def __init__(self, monitors: Vmms, domains: Domains | None, book: DomainBook) -> None:
        self._monitors = monitors
        self._domains = domains
        self._book = book
        self.mac_of: Callable[[str], str] = _unknown
        """Set by the engine: the MAC address of a NIC."""
        self._followed: set[str] = set()
        self._hubs: dict[str, frozenset[str]] = {}  # by uuid: parts that the domain's monitor has shown
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed: Callable[[str, Vmm], None] = _ignore

    @property
    def changed(self) -> Callable[[str, Vmm], None]:
        """As in the port."""
        return self._changed

    @changed.setter
    def changed(self, callback: Callable[[str, Vmm], None]) -> None:
        self._changed = callback
        self._monitors.changed = callback

    @property
    def filtered(self) -> Callable[[str, str, RxFilter], None]:
        """As in the port."""
        return self._monitors.filtered

    @filtered.setter
    def filtered(self, callback: Callable[[str, str, RxFilter], None]) -> None:
        self._monitors.filtered = callback

    def follow(self, paths: set[str]) -> None:
        """Keep an eye on these QEMUs, and on no other."""
        self._followed = {path for path in paths if path.startswith(PREFIX)}
        self._monitors.follow(paths - self._followed)
        for path in self._followed:
            if domain := self._book.get(path.removeprefix(PREFIX)):
                self.tell(domain)
            else:
                self._changed(path, Vmm(reason="libvirt has told of no such domain"))

    def tell(self, domain: Domain) -> None:
        """A domain has started, stopped or changed."""
        path = path_of(domain.uuid)
        if path not in self._followed:
            return
        if not domain.running:
            self._hubs.pop(domain.uuid, None)
            reason = f"the domain {domain.name} does not run"
            self._changed(path, Vmm(gone=True, reason=reason))
        elif domain.name in self._book.named and domain.uuid not in self._hubs:
            self._spawn(self._read_hub(domain.uuid))
        else:
            self._changed(path, Vmm(running=True, parts=self._parts(domain.uuid), reason=""))

    def _parts(self, uuid: str) -> frozenset[str]:
        entry = self._book.entries.get(uuid)
        cards = frozenset(map(qemu_id, entry.taps)) if entry else frozenset()
        return cards | self._hubs.get(uuid, frozenset())

    async def _read_hub(self, uuid: str) -> None:
        """Find out by the domain's monitor what is on the hubs of its NICs."""
        assert self._domains is not None
        path = path_of(uuid)
        try:
            self._hubs[uuid] = await domain_hubs.read_parts(self._domains, uuid)
        except ActionError as error:
            self._hubs.pop(uuid, None)
            self._changed(path, Vmm(reason=str(error)))
            return
        domain = self._book.get(uuid)
        if domain and domain.running:
            self._changed(path, Vmm(running=True, parts=self._parts(uuid), reason=""))

    async def plug(self, path: str, nic: str, index: int, descriptor: int) -> None:
        """As in the port."""
        if not path.startswith(PREFIX):
            await self._monitors.plug(path, nic, index, descriptor)
            return
        domains, uuid = self._with_domains(nic), path.removeprefix(PREFIX)
        try:
            parts = self._hubs.get(uuid, frozenset())
            await domain_hubs.plug(domains, uuid, nic, index, descriptor, parts)
        finally:
            await self._read_hub(uuid)

    async def unplug(self, path: str, nic: str, index: int) -> None:
        """As in the port."""
        if not path.startswith(PREFIX):
            await self._monitors.unplug(path, nic, index)
            return
        domains, uuid = self._with_domains(nic), path.removeprefix(PREFIX)
        try:
            await domain_hubs.unplug(domains, uuid, nic, index, self._hubs.get(uuid, frozenset()))
        finally:
            await self._read_hub(uuid)

    def _with_domains(self, nic: str) -> Domains:
        if self._domains is None:
            raise ActionError(f"NIC {nic}: this daemon does not use libvirt")
        return self._domains

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def set_link(self, path: str, nic: str, up: bool) -> None:
        """As in the port."""
        if not path.startswith(PREFIX):
            await self._monitors.set_link(path, nic, up)
            return
        mac = self.mac_of(nic)
        await self._with_domains(nic).set_link(path.removeprefix(PREFIX), mac, up)

    async def announce(self, path: str, nic: str) -> None:
        """As in the port. Of a domain it is not done: use of its monitor would mark it as tainted."""
        if not path.startswith(PREFIX):
            await self._monitors.announce(path, nic)

    async def close(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def attach(self, path: str, nic: Nic, descriptors: Sequence[int]) -> None:
        """As in the port."""
        await self._monitors.attach(path, nic, descriptors)

    async def detach(self, path: str, nic: Nic) -> None:
        """As in the port."""
        await self._monitors.detach(path, nic)


def _ignore(path: str, vmm: Vmm) -> None:
    """Before the engine has set its own."""


def _unknown(_: str) -> str:
    """Before the engine has set its own."""
    return ""
