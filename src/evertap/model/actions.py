"""The steps that a plan can consist of. Each is idempotent enough to be planned anew after a failure."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from evertap.model.nic import Nic


class Action(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One step for one NIC."""

    nic: str


class CreateTap(Action, frozen=True):
    """Make the NIC's persistent tap with its program, which drops everything yet."""

    definition: Nic

    def __str__(self) -> str:
        return f"create tap {self.nic}"


class RemoveTap(Action, frozen=True):
    """Delete the NIC's tap, unless a VMM holds it."""

    queues: int

    def __str__(self) -> str:
        return f"remove tap {self.nic}"


class RenameTap(Action, frozen=True):
    """Give the NIC's tap its name back."""

    index: int
    found: str

    def __str__(self) -> str:
        return f"rename {self.found} to {self.nic} again"


class SetMtu(Action, frozen=True):
    """Set the MTU (bytes) of one of the NIC's devices."""

    index: int
    device: str
    mtu: int

    def __str__(self) -> str:
        return f"set MTU of {self.device} to {self.mtu}"


class SetMac(Action, frozen=True):
    """Give one of the NIC's macvlans another MAC address."""

    index: int
    device: str
    mac: str

    def __str__(self) -> str:
        return f"set MAC of {self.device} to {self.mac}"


class SetMulticast(Action, frozen=True):
    """Have one of the NIC's macvlans receive all multicast, or some addresses only."""

    index: int
    device: str
    all: bool
    add: frozenset[str] = frozenset()
    remove: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"let {self.device} receive " + ("all multicast" if self.all else "what the guest asked for")


class BringUp(Action, frozen=True):
    """Set an uplink up that appeared down."""

    index: int
    uplink: str

    def __str__(self) -> str:
        return f"set {self.uplink} up"


class CreateMacvlan(Action, frozen=True):
    """Make a macvlan with the NIC's MAC on an uplink, silent until the NIC is spliced to it; or a macvtap."""

    lower: int
    uplink: str
    mac: str
    mode: str
    mtu: int
    kind: Literal["macvlan", "macvtap"] = "macvlan"
    check: bool = True  # of a macvtap: drop frames with another source MAC
    qmp: str = ""  # of a macvtap: the socket of the QEMU that it is for

    def __str__(self) -> str:
        return f"create {self.kind} (mode {self.mode}) on {self.uplink}"


class RemoveMacvlan(Action, frozen=True):
    """Delete one of the NIC's macvlans or macvtaps."""

    index: int
    device: str
    uplink: str

    def __str__(self) -> str:
        return f"remove {self.device}" + (f" from {self.uplink}" if self.uplink else "")


class JoinBridge(Action, frozen=True):
    """Make the tap a port of a bridge."""

    bridge: int
    uplink: str
    mac: str  # which the bridge is told to find at the tap

    def __str__(self) -> str:
        return f"join bridge {self.uplink}"


class LeaveBridge(Action, frozen=True):
    """Take the tap out of the bridge that it is a port of."""

    def __str__(self) -> str:
        return "leave bridge"


class Splice(Action, frozen=True):
    """Point the NIC at an uplink (its own macvlan on it, or the bridge) or at nothing."""

    lower: int  # index of the uplink; 0: none
    uplink: str
    target: (
        int | None
    )  # the map's new value (observed.Splicing); None: the macvlan that this plan makes there
    mac: str
    check: bool  # drop frames with another source MAC

    def __str__(self) -> str:
        return f"connect to {self.uplink}" if self.lower else "disconnect"


class Announce(Action, frozen=True):
    """Tell the network's switches where the NIC's MAC is now."""

    lower: int
    uplink: str
    bridge: bool
    mac: str

    def __str__(self) -> str:
        return f"announce {self.mac} on {self.uplink}"


class Plug(Action, frozen=True):
    """Hand an open macvtap to QEMU and join it to the NIC's hub."""

    qmp: str
    index: int | None  # None: the macvtap that this plan makes
    uplink: str

    def __str__(self) -> str:
        return f"hand the macvtap on {self.uplink} to QEMU"


class Unplug(Action, frozen=True):
    """Take a macvtap out of QEMU."""

    qmp: str
    index: int

    def __str__(self) -> str:
        return f"take macvtap {self.index} out of QEMU"


class SetGuestLink(Action, frozen=True):
    """Let the guest see its card's carrier up or down; `bounce`: down for a moment."""

    qmp: str
    up: bool
    bounce: bool = False
    lower: int = 0  # the uplink that a bounce tells of

    def __str__(self) -> str:
        return (
            "bounce the guest's link"
            if self.bounce
            else f"set the guest's link {'up' if self.up else 'down'}"
        )


BY_VMM: Final = (Plug, Unplug, SetGuestLink)
"""These are QEMU's to carry out."""

SLOW: Final = (CreateTap, RemoveTap, RemoveMacvlan, *BY_VMM)
"""These take some 16 ms, for the kernel waits for RCU, or as long as QEMU likes; all others under one."""
