"""The VMs' QEMUs by either way: those with a QMP socket of ours, and libvirt's domains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evertap.engine.domains import PREFIX, DomainBook, path_of
from evertap.engine.ports import Domains, Vmms
from evertap.model.domain import Domain
from evertap.model.errors import ActionError
from evertap.model.nic import Nic
from evertap.model.vmm import RxFilter, Vmm, qemu_id

_NO_HUB = 'libvirt gives no way to hand QEMU a macvtap later; use backend = "tap"'


class Routing:
    """Implements ports.Vmms. Of a domain it can set the guest's link; libvirt keeps the rest to itself."""

    def __init__(self, monitors: Vmms, domains: Domains | None, book: DomainBook) -> None:
        self._monitors = monitors
        self._domains = domains
        self._book = book
        self.mac_of: Callable[[str], str] = _unknown
        """Set by the engine: the MAC address of a NIC."""
        self._followed: set[str] = set()
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
        for entry in self._book.entries.values():
            self.tell(entry.domain)

    def tell(self, domain: Domain) -> None:
        """A domain has started, stopped or changed."""
        path = path_of(domain.uuid)
        if path in self._followed:
            entry = self._book.entries.get(domain.uuid)
            parts = frozenset(map(qemu_id, entry.taps)) if entry and domain.running else frozenset()
            reason = "" if domain.running else f"the domain {domain.name} does not run"
            self._changed(path, Vmm(domain.running, parts, not domain.running, reason))

    async def plug(self, path: str, nic: str, index: int, descriptor: int) -> None:
        """As in the port."""
        if path.startswith(PREFIX):
            raise ActionError(_NO_HUB)
        await self._monitors.plug(path, nic, index, descriptor)

    async def unplug(self, path: str, nic: str, index: int) -> None:
        """As in the port."""
        if path.startswith(PREFIX):
            raise ActionError(_NO_HUB)
        await self._monitors.unplug(path, nic, index)

    async def set_link(self, path: str, nic: str, up: bool) -> None:
        """As in the port."""
        if not path.startswith(PREFIX):
            await self._monitors.set_link(path, nic, up)
            return
        mac = self.mac_of(nic)
        if self._domains is None or not mac:
            raise ActionError(f"set the link of {nic}: libvirt is not there")
        await self._domains.set_link(path.removeprefix(PREFIX), mac, up)

    async def announce(self, path: str, nic: str) -> None:
        """As in the port. Of a domain it is not done: use of its monitor would mark it as tainted."""
        if not path.startswith(PREFIX):
            await self._monitors.announce(path, nic)

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
