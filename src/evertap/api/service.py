"""What the API's server needs of the daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from evertap.model.views import ActionView, AdoptionView, EventView, HistoryPage, NicView, UplinkView


class Service(Protocol):
    """The daemon, as its clients see it.

    Everything raises NoSuchNicError, DefinitionError or EvertapError. What does not wait
    is quick. Uplinks are written as on the command line: NAME, or KEY=VALUE[,mode=MODE].
    """

    def nics(self) -> list[NicView]:
        """All NICs, in order of their names."""

    def nic(self, name: str) -> NicView:
        """One NIC."""

    def uplinks(self) -> list[UplinkView]:
        """The host interfaces and who uses them."""

    def plan(self) -> list[ActionView]:
        """What the daemon would do now."""

    async def define(self, texts: dict[str, str]) -> None:
        """Add or replace definitions (NAME -> TOML text), all or none."""

    async def undefine(self, names: Sequence[str]) -> None:
        """Remove definitions, all or none."""

    async def connect(self, name: str) -> None:
        """End an administrative disconnection."""

    async def disconnect(self, name: str) -> None:
        """Disconnect the NIC until it is connected again."""

    async def retarget(self, name: str, uplinks: Sequence[str], live: bool) -> None:
        """New uplinks for a NIC; `live`: for the running state alone, else in the definition too."""

    async def attach(self, name: str, qmp: str) -> None:
        """Plug the NIC's device into the QEMU behind a QMP socket (its absolute path)."""

    async def detach(self, name: str) -> None:
        """Unplug the NIC's device from its running QEMU."""

    def arguments(
        self,
        names: Sequence[str],
        descriptors: Mapping[str, Sequence[int]] | None = None,
        *,
        vhost: bool = True,
    ) -> list[str]:
        """The QEMU arguments for these NICs.

        `descriptors`: by NIC, the numbers that its tap's open queues have in QEMU's process. `vhost`: QEMU
        may use it, if the host has it.
        """

    def open_tap(self, name: str) -> list[int]:
        """Descriptors of all queues of the NIC's tap, for the caller to close."""

    def owner_of(self, name: str) -> str:
        """The user who may open the NIC's tap besides those who may change things; may be empty."""

    async def wait(self, name: str, state: str, timeout: float | None) -> NicView:  # noqa: ASYNC109
        """The NIC once it is in that state; TimeoutError after `timeout` seconds."""

    async def attach_domain(self, name: str, domain: str) -> None:
        """Give a libvirt domain, running or not, an interface on the NIC's tap."""

    async def adopt(self, domain: str, dry_run: bool, live: bool) -> AdoptionView:
        """Turn a libvirt domain's direct interfaces into evertap's."""

    async def release(self, domain: str, dry_run: bool, live: bool) -> AdoptionView:
        """Give a libvirt domain its direct interfaces back."""

    def domains(self) -> list[str]:
        """The names of libvirt's domains."""

    async def prepare_domain(self, xml: str) -> None:
        """Make sure of the taps of a libvirt domain that is about to start."""

    def history(self, name: str | None) -> list[EventView]:
        """What happened to a NIC (None: to all) since the daemon started, oldest first."""

    async def nic_history(self, name: str, before: int | None, limit: int) -> HistoryPage:
        """What happened to a NIC, ever: the last `limit` events, or the last before a page's `earlier`."""

    def follow(self, name: str | None) -> AsyncIterator[EventView]:
        """What happens to a NIC (None: to any) from now on, without an end."""
