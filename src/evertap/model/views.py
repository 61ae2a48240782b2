"""What evertap tells of itself: the objects of the JSON output and of the API. Field names are a contract."""

# No postponed annotations here: the API reads the fields' types.
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CandidateView:
    """One interface that a NIC could use, or the lack of it."""

    uplink: str  # as the definition names it
    interface: str | None  # its name now; None while there is none
    mode: str
    usable: bool
    reason: str  # why not usable, or a warning; may be empty


@dataclass(frozen=True, slots=True)
class NicView:
    """One NIC as it is now."""

    name: str
    mac: str
    backend: str
    mode: str
    state: str  # connected | waiting | disconnected | failed
    uplink: str | None  # the present interface's name
    reason: str
    since: str  # when it came into this state: ISO 8601, UTC, microseconds
    tap: str | None  # the tap's name, once it exists
    outages: int  # how often it lost its uplink since the daemon started
    uplinks: list[str]
    live: bool  # these uplinks are of the running state alone (retarget --live)
    problem: str  # why the definition's file was refused, while the last good one is in force
    candidates: list[CandidateView] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class UplinkView:
    """One host interface and who uses it."""

    name: str
    altnames: list[str]
    mac: str
    path: str  # bus path, as pci-0000:3b:00.0; empty for virtual interfaces
    kind: str
    up: bool
    carrier: bool
    mtu: int
    nics: list[str]  # connected to it
    standby: list[str]  # with a macvlan in readiness on it
    wanted_by: list[str]  # all NICs whose definition names it


@dataclass(frozen=True, slots=True)
class ActionView:
    """One step that the daemon would take."""

    nic: str
    action: str  # create_tap, create_macvlan, splice…
    text: str


@dataclass(frozen=True, slots=True)
class AdoptionView:
    """What `adopt` or `release` does, or would do, to a domain."""

    domain: str
    nics: list[str]
    difference: str  # of the domain's configuration, as a unified diff
    changes: list[str]
    losses: list[str]  # what cannot be kept
    left: list[str]  # interfaces that stay as they are, and why


@dataclass(frozen=True, slots=True)
class EventView:
    """One thing that happened to a NIC."""

    time: str  # ISO 8601, UTC, microseconds
    nic: str
    event: str
    """defined, undefined; connected, failover, failback, retargeted (on a connection); renamed (the uplink);
    waiting, disconnected, failed"""
    uplink: str | None
    reason: str
    latency_ms: float | None = None  # on a connection: from the kernel's notification to being connected
    outage_seconds: float | None = None  # where a time without an uplink ended: how long it was


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """A part of a NIC's history."""

    events: list[EventView]  # oldest first
    earlier: int | None  # where the page before begins; None: this is the first
