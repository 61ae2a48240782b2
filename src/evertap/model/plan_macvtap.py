"""The plan of a NIC with backend macvtap: a macvtap on the goal, plugged into the hub in QEMU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from evertap.model.actions import Action, CreateMacvlan, Plug, Unplug
from evertap.model.choice import Candidate
from evertap.model.links import MARK, Link
from evertap.model.plan_tap import retire_tap, tear_down_tap
from evertap.model.planning import View, announce, bring_up, fits, remove, tune
from evertap.model.vmm import card_port, is_plugged, plugged

_QMP: Final = " qmp="


def connect_macvtap(view: View) -> Iterator[Action]:
    """Have one macvtap, on the goal, and nothing else on the hub: two would make a loop of it."""
    nic, vmm, goal = view.nic, view.vmm, view.goal
    if view.tap:  # from the time when the NIC had the other backend
        yield from tear_down_tap(view)
        yield from retire_tap(view)
        return
    yield from bring_up(view)
    if vmm.gone:
        yield from (remove(device, view.seen) for device in view.devices)
    if not vmm.running or obstacle(view):
        return
    lower = goal.link.index if goal and goal.link else 0
    devices = view.devices
    device = next((d for d in devices if goal and d.below == lower and fits(d, goal, "macvtap")), None)
    others = [other for other in devices if other is not device]
    # The kernel allows one device of a MAC on an uplink; on another uplink the new one can be there first.
    in_the_way = [other for other in others if other.below == lower]
    if goal and not device and not in_the_way:
        yield from _make(view, goal)
    present = device.index if device else 0
    whole = bool(device) and is_plugged(nic.name, present, vmm)
    old = plugged(nic.name, vmm.parts) - ({present} if whole else set())
    # The new one takes the old one's place on the hub; to close that takes QEMU some 20 ms, afterwards.
    first = old & {present, *(other.index for other in in_the_way)} if goal else old
    yield from _unplug(view, first)
    yield from (remove(other, view.seen) for other in in_the_way)
    if goal and in_the_way:
        yield from _make(view, goal)
    if goal and device:
        yield from tune(view, device, goal)
    if goal and goal.link and not whole:
        uplink = goal.link.name
        yield Plug(nic=nic.name, qmp=view.wanted.qmp, index=device.index if device else None, uplink=uplink)
    yield from announce(view, not whole)
    yield from _unplug(view, old - first)
    yield from (remove(other, view.seen) for other in others if other not in in_the_way)


def _make(view: View, goal: Candidate) -> Iterator[Action]:
    nic, uplink = view.nic, goal.link
    assert uplink is not None
    yield CreateMacvlan(
        nic=nic.name,
        lower=uplink.index,
        uplink=uplink.name,
        mac=view.mac,
        mode=goal.mode,
        mtu=min(nic.mtu, uplink.mtu),
        kind="macvtap",
        check=nic.spoof_check,
        qmp=view.wanted.qmp,
    )


def _unplug(view: View, indexes: set[int]) -> Iterator[Action]:
    for index in sorted(indexes):
        yield Unplug(nic=view.nic.name, qmp=view.wanted.qmp, index=index)


def device_alias(nic: str, qmp: str) -> str:
    """The mark on a NIC's device on an uplink: whose it is, and which QEMU has to hear of a macvtap's end."""
    # Of a libvirt domain, another name stands for the socket.
    return f"{MARK}{nic}" + (f"{_QMP}{qmp}" if qmp.startswith("/") else "")


def qmp_of(devices: Iterable[Link]) -> str:
    """The QMP socket in the marks of a NIC's devices; empty if there is none."""
    return next((found for device in devices if (found := device.alias.partition(_QMP)[2])), "")


def unplug_all(view: View) -> Iterator[Action]:
    """Nothing is to be on the hub any more; the card and its hub stay in QEMU."""
    if view.vmm.running:
        yield from _unplug(view, plugged(view.nic.name, view.vmm.parts))


def obstacle(view: View) -> str:
    """Why nothing can be handed to QEMU; empty if it can."""
    nic, vmm = view.nic, view.vmm
    if not view.wanted.qmp:
        return 'backend "macvtap" needs a QMP socket: add [vm] qmp = "/path" to the definition'
    if not vmm.running:
        return f"the VM's QEMU at {view.wanted.qmp}: {vmm.reason}"
    if card_port(nic.name) not in vmm.parts:
        return f"the VM's QEMU has no such card; start it with what `evertap args {nic.name}` prints"
    return ""
