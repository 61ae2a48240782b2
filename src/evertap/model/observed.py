"""The table of what is: link events and the taps' states are folded into it. Times are monotonic seconds."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from evertap.model.links import Gone, Link, LinkEvent
from evertap.model.table import STACKED_ON_UPLINK, LinkTable
from evertap.model.vmm import RxFilter, Vmm

PASS: Final = 0xFFFFFFFF
"""The splice target that stands for a bridge: frames go on to the tap's own receive path."""

FLAP_COUNT: Final = 5
FLAP_WINDOW: Final = 60.0
_FLAPS_KEPT: Final = 1024


class Splicing(msgspec.Struct, frozen=True):
    """What a tap's map says: where the guest's frames go, and which source MAC they must have."""

    target: int = 0  # a macvlan's index, PASS, or 0 for nowhere
    check: bool = True
    mac: str = ""


class Change(NamedTuple):
    """A link before and after an event; None where there was or is none."""

    old: Link | None
    new: Link | None


def is_good(link: Link) -> bool:
    """Whether frames can leave by the link. A bridge joins its ports even when none has carrier."""
    return link.up and (link.carrier or link.kind == "bridge")


class Observed:
    """What is known of the host at this moment."""

    def __init__(self) -> None:
        self.links = LinkTable()
        self.taps: dict[str, Splicing] = {}
        """By NIC: the taps that have their program."""
        self.good_since: dict[int, float] = {}
        """By link: since when frames could leave by it."""
        self.served: set[int] = set()
        """Links that have been up in evertap's time: down again is the administrator's will."""
        self.vmms: dict[str, Vmm] = {}
        """By the path of the QMP socket."""
        self.rx_filters: dict[str, RxFilter] = {}
        """By NIC: what the guest's card wants to receive, where that is known."""
        self.multicast: dict[int, frozenset[str]] = {}
        """By macvlan: the multicast addresses that it was told to receive."""
        self.guest_links: dict[str, bool] = {}
        """By NIC: the guest's carrier, where it was set in this QEMU."""
        self.told: dict[str, int] = {}
        """By NIC: the uplink (index; 0: none) that the guest's link was last bounced for."""
        self.lost: set[str] = set()
        """NICs that have been without an uplink since the network was last told where they are."""
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def fold(self, event: LinkEvent, now: float) -> Change | None:
        """Take in an event; None if it changed nothing."""
        if isinstance(event, Gone):
            old = self.links.drop(event.index)
            if old is None:
                return None
            self._forget(old, now)
            return Change(old, None)
        old = self.links.put(event)
        if old == event:
            return None
        if not event.owner:
            self._follow(event, now)
        return Change(old, event)

    def fold_all(self, links: Sequence[Link], now: float) -> list[Change]:
        """Take in a whole reading: as if an event had come for every difference to what was known."""
        events: list[LinkEvent] = list(links)
        if len(self.links) == 0 and any(link.owner for link in links):
            # A daemon was here before: what is down now and has been up was taken down since, or before.
            self.served |= {link.index for link in links if link.ups}
            ours = [link for link in links if link.owner and link.kind in STACKED_ON_UPLINK]
            self.served |= {link.lower for link in ours if link.lower_netns is None}
        present = {event.index for event in events}
        missing: list[LinkEvent] = [Gone(link.index) for link in self.links if link.index not in present]
        changes = (self.fold(event, now) for event in missing + events)
        return [change for change in changes if change]

    def _follow(self, link: Link, now: float) -> None:
        if link.up:
            self.served.add(link.index)
        if is_good(link):
            self.good_since.setdefault(link.index, now)
        elif self.good_since.pop(link.index, None) is not None:
            self._failed(link.name, now)

    def _forget(self, link: Link, now: float) -> None:
        if link.owner and link.kind not in STACKED_ON_UPLINK:
            self.taps.pop(link.owner, None)
        self.served.discard(link.index)
        self.multicast.pop(link.index, None)
        if self.good_since.pop(link.index, None) is not None:
            self._failed(link.name, now)

    def _failed(self, name: str, now: float) -> None:
        times = self._failures.setdefault(name, deque(maxlen=FLAP_COUNT))
        times.append(now)
        self._failures.move_to_end(name)
        if len(self._failures) > _FLAPS_KEPT:  # hosts with ever new interface names
            self._failures.popitem(last=False)

    def held_until(self, name: str, hold: float) -> float:
        """When an uplink of that name may be preferred again after failing too often; 0 if it did not."""
        times = self._failures.get(name)
        if times is None or len(times) < FLAP_COUNT or times[-1] - times[0] > FLAP_WINDOW:
            return 0.0
        return times[-1] + hold
