"""What the API's server needs of the daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from evertap.model.views import ActionView, EventView, NicView, UplinkView


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

    def arguments(self, names: Sequence[str]) -> list[str]:
        """The QEMU arguments for these NICs."""

    async def wait(self, name: str, state: str, timeout: float | None) -> NicView:  # noqa: ASYNC109
        """The NIC once it is in that state; TimeoutError after `timeout` seconds."""

    def history(self, name: str | None) -> list[EventView]:
        """What happened to a NIC (None: to all), oldest first."""

    def follow(self, name: str | None) -> AsyncIterator[EventView]:
        """What happens to a NIC (None: to any) from now on, without an end."""
