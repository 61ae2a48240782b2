"""What the engine needs of the world, as protocols; the adapters and the tests' fakes implement them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from evertap.model.actions import Action, Announce
from evertap.model.domain import Domain
from evertap.model.errors import ActionError, DefinitionError
from evertap.model.links import Link, LinkEvent
from evertap.model.nic import Nic, UplinkSpec
from evertap.model.observed import Splicing
from evertap.model.views import EventView, HistoryPage
from evertap.model.vmm import RxFilter, Vmm


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

    def read_link(self, index: int) -> Link | None:
        """A reading of one interface; None if there is no such."""

    @property
    def interrupted(self) -> int:
        """How many readings were interrupted by changes, and repeated."""

    def read_splicing(self, tap: Link) -> Splicing | None:
        """What the tap's map says; None if it has no program of ours."""

    def perform(self, work: Sequence[Sequence[Action]]) -> list[Done]:
        """Carry out several NICs' quick actions, each NIC's in order up to its first error."""

    async def perform_slow(self, work: Sequence[Action]) -> Done:
        """Carry out one NIC's actions of the slow kinds (actions.SLOW), in order up to the first error."""

    def open_macvtap(self, index: int) -> int:
        """A descriptor of the macvtap with that interface index, for the caller to close; ActionError."""

    def open_tap(self, name: str, queues: int) -> list[int]:
        """Descriptors of all queues of a NIC's tap, for the caller to close; ActionError."""

    def announce(self, action: Announce) -> None:
        """Send the announcement once more; a failure is of no interest."""


class Vmms(Protocol):
    """The running QEMUs, each by the path of a QMP socket of our own. Calls raise ActionError.

    Every call has a time limit: a QEMU that hangs delays nothing but its own NICs.
    """

    changed: Callable[[str, Vmm], None]
    """Set by the engine: called with the path whenever what is known of a QEMU has changed."""

    filtered: Callable[[str, str, RxFilter], None]
    """Set by the engine: called with path and device id when a guest has changed its receive filter."""

    def follow(self, paths: set[str]) -> None:
        """Keep a connection to each of these sockets while it exists, and to no other."""

    async def plug(self, path: str, nic: str, index: int, descriptor: int) -> None:
        """Join an open macvtap, of that interface index, to the NIC's hub, in the place of the one there.

        Half done is undone.
        """

    async def unplug(self, path: str, nic: str, index: int) -> None:
        """Take a macvtap off the NIC's hub again; no error if it is not on it."""

    async def set_link(self, path: str, nic: str, up: bool) -> None:
        """Let the guest see its card's carrier up or down."""

    async def announce(self, path: str, nic: str) -> None:
        """Have QEMU send its own announcements for the guest's MAC (announce-self)."""

    async def attach(self, path: str, nic: Nic, descriptors: Sequence[int]) -> None:
        """Plug the guest's device: on its tap, whose open queues are given, or on a hub (none given)."""

    async def detach(self, path: str, nic: Nic) -> None:
        """Unplug the guest's device, wait until the guest has let go, remove its netdevs."""


class Domains(Protocol):
    """libvirt's domains, followed by events. Calls raise ActionError and have a time limit.

    A libvirtd that hangs, is restarted or is not there delays nobody; what was known of domains stays known.
    """

    changed: Callable[[Domain], None]
    """Set by the engine: called with a domain whenever one of its descriptions or its state has changed."""

    gone: Callable[[str], None]
    """Set by the engine: called with the uuid of a domain that has been undefined and does not run."""

    connected: Callable[[str], None]
    """Set by the engine: called with why there is no connection; or with an empty text when there is one,
    after `changed` has been called for all domains."""

    async def set_link(self, uuid: str, mac: str, up: bool) -> None:
        """Let the guest see the carrier of its interface with that MAC up or down (`<link state>`, live)."""

    async def attach(self, uuid: str, xml: str, *, live: bool, config: bool) -> None:
        """Add a device (attachDeviceFlags) to the running domain, to its configuration, or both."""

    async def detach(self, uuid: str, xml: str, *, live: bool, config: bool) -> None:
        """Remove a device; of a running domain, wait until the guest has let go (DEVICE_REMOVED)."""

    async def define(self, xml: str) -> None:
        """Give a domain another configuration (defineXML)."""

    async def set_metadata(self, uuid: str, xml: str, *, live: bool, config: bool) -> None:
        """Replace evertap's element in <metadata> (namespace urn:evertap:1); an empty text removes it."""

    async def monitor(
        self, uuid: str, command: str, arguments: dict[str, Any], descriptors: Sequence[int] = ()
    ) -> Any:
        """Run a QMP command in the domain's QEMU (qemuMonitorCommandWithFiles); what it returns."""


class Live(NamedTuple):
    """What was said of a NIC for its running state alone; outlives the daemon, not a reboot."""

    uplinks: tuple[UplinkSpec, ...] = ()  # instead of the definition's
    instead_of: tuple[UplinkSpec, ...] = ()  # the definition's then: a changed definition ends the override
    disconnected: bool = False
    qmp: str = ""  # socket of the QEMU that the NIC's device was attached to


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

    def load_domains(self) -> list[Domain]:
        """The domains that define NICs, as last known: libvirt may be away when the daemon starts."""

    def save_domain(self, domain: Domain) -> None:
        """Remember a domain."""

    def forget_domain(self, uuid: str) -> None:
        """Forget it."""

    def live_names(self) -> list[str]:
        """The NICs of which something was said for the running state alone, defined or not."""

    def load_live(self, name: str) -> Live:
        """What was said for the running state alone."""

    def save_live(self, name: str, live: Live) -> None:
        """Keep it (an empty Live: forget it)."""


class Kept(NamedTuple):
    """An event for the history."""

    event: EventView
    since: (
        float | None
    )  # CLOCK_MONOTONIC, seconds: since when the NIC is without an uplink; None if it has one


class Last(NamedTuple):
    """What the history has as the last of a NIC."""

    event: str
    uplink: str | None
    since: float | None  # as in Kept
    same_boot: bool  # it was written since the host was started


class History(Protocol):
    """What happened to the NICs, beyond the daemon's life. Calls are blocking and raise EvertapError."""

    def last(self) -> dict[str, Last]:
        """The last of every NIC."""

    def append(self, events: Sequence[Kept]) -> None:
        """Keep events, all or none; the oldest go where there are too many."""

    def page(self, nic: str, before: int | None, limit: int) -> HistoryPage:
        """At most `limit` of a NIC's events: the last, or the last before a page's `earlier`."""

    def close(self) -> None:
        """End. A later call begins anew."""


class Distribution(NamedTuple):
    """How many durations fell into which range."""

    bounds: Sequence[float]  # upper ones, in seconds
    counts: Sequence[int]  # one more than the bounds: the last is of what is longer than all
    sum: float  # seconds


class NicFigures(NamedTuple):
    """A NIC's part in the metrics."""

    name: str
    state: str
    uplink: str | None
    outages: int  # how often it lost its uplink since the daemon started
    without: float  # seconds without an uplink since then


class Figures(NamedTuple):
    """What the metrics tell of, all since the daemon started."""

    nics: Sequence[NicFigures]
    events: Mapping[str, int]  # by kind
    latencies: Distribution
    outages: Distribution
    notifications: int
    resyncs: int
    failures: int
    lost: int  # events that the history could not keep
    clients: int  # connections to the API
    interrupted: int = 0  # readings of the interfaces that had to be repeated
