"""What the planning of both backends shares: the view of one NIC, and the steps that are alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from evertap.model.actions import Action, Announce, BringUp, RemoveMacvlan, SetMac, SetMtu, SetMulticast
from evertap.model.choice import Candidate, Wanted
from evertap.model.links import IFF_ALLMULTI, Link
from evertap.model.nic import Nic
from evertap.model.observed import Observed, Splicing
from evertap.model.vmm import Vmm


class View(NamedTuple):
    """All that the planning of one NIC looks at."""

    wanted: Wanted
    seen: Observed
    found: list[Candidate]
    chosen: Candidate | None  # the one to be connected to
    goal: Candidate | None  # the one to point at: the chosen one, or one that only lacks its carrier
    tap: Link | None
    splicing: Splicing | None
    devices: list[Link]  # the NIC's devices on uplinks, of whichever backend

    @property
    def nic(self) -> Nic:
        """The NIC's definition."""
        return self.wanted.nic

    @property
    def vmm(self) -> Vmm:
        """The VM's QEMU, as far as it is known."""
        return self.seen.vmms.get(self.wanted.qmp, Vmm())

    @property
    def mac(self) -> str:
        """The MAC address that frames for the guest bear: its own choice, if it has one."""
        rx = self.seen.rx_filters.get(self.nic.name)
        free = self.nic.multicast == "guest" and not self.nic.spoof_check
        return rx.mac if rx and free else self.nic.mac


def bring_up(view: View) -> Iterator[Action]:
    """Uplinks that appeared down are set up, once."""
    for candidate in view.found:
        if candidate.link and comes_up(view, candidate):
            yield BringUp(nic=view.nic.name, index=candidate.link.index, uplink=candidate.link.name)


def comes_up(view: View, candidate: Candidate) -> bool:
    """Whether the candidate appeared down, and is to be set up."""
    link = candidate.link
    return bool(
        view.nic.bring_up and link and candidate.fit and not link.up and link.index not in view.seen.served
    )


def is_up(view: View, candidate: Candidate) -> bool:
    """Whether the candidate is up, or is just being set up."""
    return bool(candidate.link and candidate.link.up) or comes_up(view, candidate)


def fits(device: Link | None, candidate: Candidate, kind: str) -> bool:
    """Whether a device on the candidate is of the right sort; what else is wrong can be changed."""
    if device is None or (device.kind, device.mode) != (kind, candidate.mode):
        return False
    # One that is down is made anew only on a sound uplink: else it may be on its way out with it.
    return device.up or not candidate.usable


def tune(view: View, device: Link, candidate: Candidate) -> Iterator[Action]:
    """What can be changed on a living macvlan or macvtap."""
    nic, uplink = view.nic, candidate.link
    assert uplink is not None
    mtu = min(nic.mtu, uplink.mtu)
    if device.mtu != mtu:
        yield SetMtu(nic=nic.name, index=device.index, device=device.name, mtu=mtu)
    # In passthru a macvlan bears its uplink's MAC.
    if device.mac != view.mac and candidate.mode != "passthru":
        yield SetMac(nic=nic.name, index=device.index, device=device.name, mac=view.mac)
    yield from _filter(view, device)


def _filter(view: View, device: Link) -> Iterator[Action]:
    rx = view.seen.rx_filters.get(view.nic.name) if view.nic.multicast == "guest" else None
    has_all = bool(device.flags & IFF_ALLMULTI)
    has = view.seen.multicast.get(device.index)
    if rx is None or rx.all_multicast:
        if not has_all:
            yield SetMulticast(
                nic=view.nic.name, index=device.index, device=device.name, all=True, remove=has or frozenset()
            )
    elif has_all or has != rx.multicast:
        add, remove = rx.multicast - (has or frozenset()), (has or frozenset()) - rx.multicast
        yield SetMulticast(
            nic=view.nic.name, index=device.index, device=device.name, all=False, add=add, remove=remove
        )


def announce(view: View, moved: bool) -> Iterator[Action]:
    """Tell the network where the NIC is, if it has moved or has been without an uplink."""
    if not view.chosen or not view.chosen.link:
        return
    nic, uplink = view.nic, view.chosen.link
    if nic.announce and (moved or nic.name in view.seen.lost):
        bridge = view.chosen.is_bridge
        yield Announce(nic=nic.name, lower=uplink.index, uplink=uplink.name, bridge=bridge, mac=view.mac)


def remove(device: Link, seen: Observed) -> RemoveMacvlan:
    """Delete a macvlan or macvtap."""
    lower = seen.links.get(device.below)
    return RemoveMacvlan(
        nic=device.owner, index=device.index, device=device.name, uplink=lower.name if lower else ""
    )
