"""What the engine needs of the world, as protocols; the adapters and the tests' fakes implement them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from evertap.model.actions import Action, Announce
from evertap.model.errors import ActionError, DefinitionError
from evertap.model.links import Link, LinkEvent
from evertap.model.nic import Nic, UplinkSpec
from evertap.model.observed import Splicing


class LostEventsError(Exception):
    """The kernel dropped notifications: only a whole new reading tells what is."""


class Done(NamedTuple):
    """The outcome of one NIC's actions: the first error and the splicing that was written, if any."""

    error: ActionError | None
    splicing: Splicing | None


class Kernel(Protocol):
    """The host's interfaces. Calls are quick and return when the kernel has done them."""

    def fileno(self) -> int:
        """Descriptor that is readable when there are events."""

    def events(self) -> list[LinkEvent]:
        """All events that are there, without waiting; LostEventsError if some were dropped."""

    def read_links(self) -> list[Link]:
        """A whole reading of the interfaces."""

    def read_splicing(self, tap: Link) -> Splicing | None:
        """What the tap's map says; None if it has no program of ours."""

    def perform(self, work: Sequence[Sequence[Action]]) -> list[Done]:
        """Carry out several NICs' quick actions, each NIC's in order up to its first error."""

    async def perform_slow(self, work: Sequence[Action]) -> Done:
        """Carry out one NIC's actions of the slow kinds (actions.SLOW), in order up to the first error."""

    def announce(self, action: Announce) -> None:
        """Send the announcement once more; a failure is of no interest."""


class Live(NamedTuple):
    """What was said of a NIC for its running state alone; outlives the daemon, not a reboot."""

    uplinks: tuple[UplinkSpec, ...] = ()  # instead of the definition's
    instead_of: tuple[UplinkSpec, ...] = ()  # the definition's then: a changed definition ends the override
    disconnected: bool = False


class Loaded(NamedTuple):
    """All definitions, and what is wrong with the files that were refused."""

    nics: dict[str, Nic]
    problems: dict[
        str, DefinitionError
    ]  # by NIC name (the file's stem); the last good definition is in `nics`


class Definitions(Protocol):
    """The definitions' files and the running state's. All calls are blocking and short."""

    def load(self) -> Loaded:
        """Read all definitions; a refused file leaves the last good definition in force."""

    def define(self, texts: dict[str, str]) -> dict[str, Nic]:
        """Check and write definitions (NAME -> TOML text), all or none; DefinitionError."""

    def undefine(self, names: Sequence[str]) -> None:
        """Remove definitions."""

    def set_uplinks(self, name: str, uplinks: list[dict[str, str] | str]) -> Nic:
        """Change the uplinks in a definition's file, keep the rest of it; DefinitionError."""

    def load_live(self, name: str) -> Live:
        """What was said for the running state alone."""

    def save_live(self, name: str, live: Live) -> None:
        """Keep it (an empty Live: forget it)."""
