"""A kernel in memory: interfaces are made and unmade, actions change them, and every change is an event."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from evertap.engine.ports import Done, LostEventsError
from evertap.model import actions as act
from evertap.model.errors import ActionError
from evertap.model.links import IFF_ALLMULTI, IFF_LOWER_UP, IFF_UP, MARK, Gone, Link, LinkEvent
from evertap.model.nic import Nic
from evertap.model.observed import Splicing
from evertap.model.plan_tap import tap_alias
from evertap.model.vmm import RxFilter, Vmm, plugged, uplink_netdev, uplink_port

GOOD = IFF_UP | IFF_LOWER_UP


@dataclass
class SimulatedKernel:
    """Implements ports.Kernel; `refuse` maps an action's class name to the error that it meets."""

    links: dict[int, Link] = field(default_factory=dict)
    taps: dict[str, Splicing] = field(default_factory=dict)
    refuse: dict[str, str] = field(default_factory=dict)
    performed: list[act.Action] = field(default_factory=list)
    announced: list[act.Announce] = field(default_factory=list)
    lose: bool = False

    def __post_init__(self) -> None:
        self._next = 1
        self._events: list[LinkEvent] = []
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)

    # The host's doing

    def add(self, name: str, /, flags: int = GOOD, **fields: Any) -> Link:
        link = Link(index=self._next, name=name, flags=flags, **fields)
        self._next += 1
        return self._put(link)

    def change(self, name: str, /, **fields: Any) -> Link:
        return self._put(msgspec.structs.replace(self.named(name), **fields))

    def remove(self, name: str) -> None:
        self._drop(self.named(name).index)

    def named(self, name: str) -> Link:
        return next(link for link in self.links.values() if link.name == name)

    def _put(self, link: Link) -> Link:
        self.links[link.index] = link
        self._emit(link)
        return link

    def _drop(self, index: int) -> None:
        link = self.links.pop(index)
        self._emit(Gone(index))
        self.taps.pop(link.name, None)
        for other in list(self.links.values()):
            if other.master == index:
                self._put(msgspec.structs.replace(other, master=0, port_kind=""))
            if other.kind in ("macvlan", "macvtap") and other.lower == index:
                self._drop(other.index)

    def _emit(self, event: LinkEvent) -> None:
        self._events.append(event)
        os.write(self._write, b".")

    # ports.Kernel

    def fileno(self) -> int:
        return self._read

    def events(self) -> list[LinkEvent]:
        events, self._events = self._events, []
        if events:
            os.read(self._read, 1 << 20)
        if self.lose:
            self.lose = False
            raise LostEventsError
        return events

    def read_links(self) -> list[Link]:
        return list(self.links.values())

    def read_link(self, index: int) -> Link | None:
        return self.links.get(index)

    interrupted = 0

    def read_splicing(self, tap: Link) -> Splicing | None:
        return self.taps.get(tap.name)

    async def perform_slow(self, work: Sequence[act.Action]) -> Done:
        return self.perform([work])[0]

    def open_macvtap(self, index: int) -> int:
        if index not in self.links:
            raise ActionError("no such macvtap")
        return os.open("/dev/null", os.O_RDWR)

    def open_tap(self, name: str, queues: int) -> list[int]:
        return [os.open("/dev/null", os.O_RDWR) for _ in range(queues)]

    def announce(self, action: act.Announce) -> None:
        self.announced.append(action)

    def perform(self, work: Sequence[Sequence[act.Action]]) -> list[Done]:
        return [self._perform_one(actions) for actions in work]

    def _perform_one(self, actions: Sequence[act.Action]) -> Done:
        splicing: Splicing | None = None
        made: dict[int, int] = {}
        for action in actions:
            try:
                self._meet(action)
                if isinstance(action, act.CreateMacvlan):
                    made[action.lower] = self._create_macvlan(action)
                elif isinstance(action, act.CreateTap):
                    splicing = self._create_tap(action)
                elif isinstance(action, act.Splice):
                    target = made[action.lower] if action.target is None else action.target
                    splicing = Splicing(target, action.check, action.mac)
                    self.taps[action.nic] = splicing
                else:
                    self._change(action)
            except ActionError as error:
                return Done(error, splicing)
        return Done(None, splicing)

    def _meet(self, action: act.Action) -> None:
        self.performed.append(action)
        if reason := self.refuse.get(type(action).__name__):
            raise ActionError(f"{action}: {reason}")

    def _create_tap(self, action: act.CreateTap) -> Splicing:
        nic = action.definition
        if not any(link.name == nic.name for link in self.links.values()):
            self.add(nic.name, IFF_UP, kind="tun", alias=tap_alias(nic), mtu=nic.mtu)
        self.taps[nic.name] = Splicing(0, nic.spoof_check, nic.mac)
        return self.taps[nic.name]

    def _create_macvlan(self, action: act.CreateMacvlan) -> int:
        if action.lower not in self.links:
            raise ActionError(f"{action}: no such device")
        return self.add(
            f"ev{self._next}",
            GOOD | IFF_ALLMULTI,
            kind=action.kind,
            lower=action.lower,
            mode=action.mode,
            mac=self.links[action.lower].mac if action.mode == "passthru" else action.mac,
            mtu=action.mtu,
            alias=MARK + action.nic,
        ).index

    def _change(self, action: act.Action) -> None:
        match action:
            case act.RemoveMacvlan(index=index):
                if index in self.links:
                    self._drop(index)
            case act.RemoveTap(nic=nic):
                self.remove(nic)
            case act.SetMtu(index=index, mtu=mtu):
                self._put(msgspec.structs.replace(self.links[index], mtu=mtu))
            case act.RenameTap(index=index, nic=nic):
                self._put(msgspec.structs.replace(self.links[index], name=nic))
            case act.SetMac(index=index, mac=mac):
                self._put(msgspec.structs.replace(self.links[index], mac=mac))
            case act.SetMulticast(index=index, all=everything):
                flags = GOOD | IFF_ALLMULTI if everything else GOOD
                self._put(msgspec.structs.replace(self.links[index], flags=flags))
            case act.BringUp(index=index):
                self._put(msgspec.structs.replace(self.links[index], flags=GOOD))
            case act.JoinBridge(nic=nic, bridge=bridge):
                self.change(nic, master=bridge, port_kind="bridge")
            case act.LeaveBridge(nic=nic):
                self.change(nic, master=0, port_kind="")
            case act.Announce():
                self.announced.append(action)
            case _:
                raise AssertionError(action)


class FakeVmms:
    """Implements ports.Vmms: QEMUs that do at once what they are told, unless they are stuck or refuse."""

    changed: Callable[[str, Vmm], None]
    filtered: Callable[[str, str, RxFilter], None]

    def __init__(self) -> None:
        self.known: dict[str, Vmm] = {}
        self.followed: set[str] = set()
        self.told: list[tuple[Any, ...]] = []
        self.stuck: dict[str, asyncio.Event] = {}
        self.refuse = ""

    def follow(self, paths: set[str]) -> None:
        self.followed = set(paths)

    def boot(self, path: str, *parts: str) -> None:
        """A QEMU answers there from now on, with these parts of ours."""
        self._set(path, Vmm(running=True, parts=frozenset(parts)))

    def end(self, path: str) -> None:
        self._set(path, Vmm(gone=True, reason="QEMU has ended"))

    def hang(self, path: str) -> None:
        self._set(path, Vmm(reason="does not answer within 5 s"))

    def _set(self, path: str, vmm: Vmm) -> None:
        self.known[path] = vmm
        self.changed(path, vmm)

    async def _told(self, what: str, path: str, *details: Any) -> None:
        self.told.append((what, *details))
        if path in self.stuck:
            await self.stuck[path].wait()
        if self.refuse:
            raise ActionError(f"{what}: {self.refuse}")

    async def plug(self, path: str, nic: str, index: int, descriptor: int) -> None:
        os.fstat(descriptor)
        await self._told("plug", path, nic, index)
        parts = self.known[path].parts | {uplink_netdev(nic, index), uplink_port(nic, index)}
        parts -= {uplink_port(nic, other) for other in plugged(nic, parts) - {index}}
        self.boot(path, *parts)

    async def unplug(self, path: str, nic: str, index: int) -> None:
        await self._told("unplug", path, nic, index)
        parts = self.known[path].parts - {uplink_netdev(nic, index), uplink_port(nic, index)}
        self.boot(path, *parts)

    async def set_link(self, path: str, nic: str, up: bool) -> None:
        await self._told("set_link", path, nic, up)

    async def announce(self, path: str, nic: str) -> None:
        await self._told("announce", path, nic)

    async def attach(self, path: str, nic: Nic, descriptors: Sequence[int]) -> None:
        await self._told("attach", path, nic.name, len(descriptors))

    async def detach(self, path: str, nic: Nic) -> None:
        await self._told("detach", path, nic.name)
