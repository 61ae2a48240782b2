"""The steps that a plan can consist of. Each is idempotent enough to be planned anew after a failure."""

from __future__ import annotations

from typing import Final

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


class SetMtu(Action, frozen=True):
    """Set the MTU (bytes) of one of the NIC's devices."""

    index: int
    device: str
    mtu: int

    def __str__(self) -> str:
        return f"set MTU of {self.device} to {self.mtu}"


class BringUp(Action, frozen=True):
    """Set an uplink up that appeared down."""

    index: int
    uplink: str

    def __str__(self) -> str:
        return f"set {self.uplink} up"


class CreateMacvlan(Action, frozen=True):
    """Make a macvlan with the NIC's MAC on an uplink, silent until the NIC is spliced to it."""

    lower: int
    uplink: str
    mac: str
    mode: str
    mtu: int

    def __str__(self) -> str:
        return f"create macvlan (mode {self.mode}) on {self.uplink}"


class RemoveMacvlan(Action, frozen=True):
    """Delete one of the NIC's macvlans."""

    index: int
    device: str
    uplink: str

    def __str__(self) -> str:
        return f"remove macvlan {self.device}" + (f" from {self.uplink}" if self.uplink else "")


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


SLOW: Final = (CreateTap, RemoveTap, RemoveMacvlan)
"""These take some 16 ms each, for the kernel waits for RCU; all others well under one."""
