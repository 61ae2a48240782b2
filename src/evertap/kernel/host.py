"""Carries actions out on the real host: netlink in shared batches, maps, taps and announcements."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import random
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Final

from evertap.engine.ports import Done, LostEventsError
from evertap.kernel import bpf, codec, macvtap, tun
from evertap.kernel.codec import Message
from evertap.kernel.frames import announcement
from evertap.kernel.rtnetlink import KernelRefusal, LinkMonitor, Overflow, Rtnetlink
from evertap.kernel.tap import Tap, has_ipv6, insist, make_tap
from evertap.model.actions import (
    Action,
    Announce,
    BringUp,
    CreateMacvlan,
    CreateTap,
    JoinBridge,
    LeaveBridge,
    RemoveMacvlan,
    RemoveTap,
    RenameTap,
    SetMac,
    SetMtu,
    SetMulticast,
    Splice,
)
from evertap.model.errors import ActionError
from evertap.model.links import Link, LinkEvent
from evertap.model.observed import Splicing
from evertap.model.plan_macvtap import device_alias

_SIOCGIFNAME: Final = 0x8910
_FIRST_INDEX: Final = 1 << 20
_LAST_INDEX: Final = 1 << 30
_BY_NETLINK: Final = (
    CreateMacvlan,
    RenameTap,
    SetMtu,
    SetMac,
    SetMulticast,
    BringUp,
    JoinBridge,
    LeaveBridge,
)
_REMEDIES: Final = {
    errno.EPERM: "evertap needs CAP_NET_ADMIN, CAP_BPF and CAP_SYS_ADMIN: run it as root",
    errno.EADDRINUSE: "another device on the uplink has the NIC's MAC",
    errno.ENOMEM: "the host is short of memory",
    errno.ENOBUFS: "the host is short of memory",
}


class _SourcePrograms:
    """The programs that check what macvtaps send, while the macvtaps of one request are made."""

    def __init__(self) -> None:
        self._programs: dict[str, int] = {}

    def get(self, mac: str) -> int:
        """The program for that MAC; with none, one that lets all pass."""
        program = self._programs.get(mac)
        if program is None:
            program = self._programs[mac] = bpf.load_source_program(mac)
        return program

    def close(self) -> None:
        """Give all back; where they are attached, they live on."""
        while self._programs:
            os.close(self._programs.popitem()[1])


class _Run:
    """One NIC's actions, as far as they have come."""

    def __init__(self, actions: Sequence[Action]) -> None:
        self.rest = deque(actions)
        self.made: dict[int, int] = {}  # macvlans by uplink
        self.splicing: Splicing | None = None
        self.error: ActionError | None = None

    def fail(self, action: Action, error: OSError) -> None:
        self.error = ActionError(_explain(action, error))
        self.rest.clear()

    def by_netlink(self) -> Iterator[Action]:
        """The next actions that can share a request; taken off."""
        while self.rest and isinstance(self.rest[0], _BY_NETLINK):
            yield self.rest.popleft()


class Host:
    """Implements ports.Kernel for the network namespace that it is made in."""

    def __init__(self) -> None:
        self._rtnetlink = Rtnetlink()
        self._monitor = LinkMonitor()
        # Protocol 0: a socket that only sends.
        self._packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._taps: dict[str, Tap] = {}
        self._source_programs = _SourcePrograms()
        self._made: set[int] = set()  # macvlans whose notifications have not been read yet
        self._next_index = random.randrange(_FIRST_INDEX, _LAST_INDEX)
        self._slow = ThreadPoolExecutor(1, "evertap-slow")
        self._slow_rtnetlink = Rtnetlink()

    def close(self) -> None:
        """Give all descriptors back; what was made stays."""
        self._slow.shutdown()
        self._slow_rtnetlink.close()
        for nic in list(self._taps):
            self._drop(nic)
        self._packets.close()
        self._monitor.close()
        self._rtnetlink.close()

    # ports.Kernel

    def fileno(self) -> int:
        """Descriptor that is readable when there are events."""
        return self._monitor.fileno()

    def events(self) -> list[LinkEvent]:
        """All events that are there; LostEventsError if the kernel dropped some."""
        made, self._made = self._made, set()
        try:
            return self._monitor.read(made)
        except Overflow:
            raise LostEventsError from None

    def read_links(self) -> list[Link]:
        """A whole reading of the interfaces."""
        return self._rtnetlink.dump_links()

    def read_link(self, index: int) -> Link | None:
        """A reading of one interface; None if there is no such."""
        return self._rtnetlink.get_link(index)

    @property
    def interrupted(self) -> int:
        """How many readings were interrupted by changes, and repeated."""
        return self._rtnetlink.interrupted

    def read_splicing(self, tap: Link) -> Splicing | None:
        """What the tap's map says; from now on the map is at hand."""
        found = bpf.find_splice(tap.index, self._rtnetlink)
        if found is None:
            return None
        map_fd, splicing = found
        self._drop(tap.owner)
        self._taps[tap.owner] = Tap.of(tap.index, map_fd)
        return splicing

    async def perform_slow(self, work: Sequence[Action]) -> Done:
        """Carry out actions that wait for RCU in the kernel, in a thread that has no other work."""
        loop = asyncio.get_running_loop()
        splicing = None
        for action in work:
            try:
                tap = await loop.run_in_executor(self._slow, self._one_slow, action)
            except (OSError, KeyError) as error:
                return Done(ActionError(_explain(action, error)), splicing)
            if not isinstance(action, RemoveMacvlan):
                self._drop(action.nic)
            if isinstance(action, CreateTap) and tap:
                self._taps[action.nic] = tap
                splicing = Splicing(0, action.definition.spoof_check, action.definition.mac)
        return Done(None, splicing)

    def open_macvtap(self, index: int) -> int:
        """A descriptor of the macvtap; ActionError if it cannot be opened, or is not what it should be."""
        try:
            return macvtap.open_macvtap(index, self._rtnetlink)
        except OSError as error:
            raise ActionError(_explain(f"open macvtap {index}", error)) from error

    def open_tap(self, name: str, queues: int) -> list[int]:
        """Descriptors of all queues of a NIC's tap; ActionError if a VMM holds it, or it is not there."""
        opened: list[int] = []
        try:
            for _ in range(queues):
                opened.append(tun.open_tap(name, queues))  # noqa: PERF401  # those before a refusal count
        except OSError as error:
            for descriptor in opened:
                os.close(descriptor)
            raise ActionError(_explain(f"open tap {name}", error)) from error
        return opened

    def announce(self, action: Announce) -> None:
        """Send an announcement out of the uplink; one that cannot leave is lost, as on any network."""
        with suppress(OSError):
            self._packets.sendto(announcement(action.mac), (action.uplink, 0))

    def perform(self, work: Sequence[Sequence[Action]]) -> list[Done]:
        """Carry out several NICs' actions: each NIC's in order, all NICs' netlink messages together."""
        runs = [_Run(actions) for actions in work]
        while any(run.rest for run in runs):
            try:
                self._by_netlink(runs)
            finally:
                self._source_programs.close()
            for run in runs:
                while run.rest and not isinstance(run.rest[0], _BY_NETLINK):
                    self._at_once(run, run.rest.popleft())
        return [Done(run.error, run.splicing) for run in runs]

    # Inside

    def _by_netlink(self, runs: Sequence[_Run]) -> None:
        steps = [(run, action) for run in runs for action in run.by_netlink()]
        groups: list[list[Message]] = []
        planned: list[tuple[_Run, Action]] = []
        for run, action in steps:
            try:
                messages = self._messages(run, action)
            except OSError as error:
                run.fail(action, error)
                continue
            planned.append((run, action))
            groups.append(messages)
        if not groups:
            return
        undo: list[list[Message]] = []
        for (run, action), refusal in zip(planned, self._rtnetlink.request(groups), strict=True):
            if refusal or run.error:  # what comes after a refusal is not to be
                undo += self._undo(run, action, refusal)
            if refusal and run.error is None:
                run.fail(action, refusal)
        follow_up = [
            [message] for run, action in planned if run.error is None for message in self._follow_up(action)
        ]
        if undo or follow_up:
            self._rtnetlink.request(undo + follow_up)

    def _messages(self, run: _Run, action: Action) -> list[Message]:
        match action:
            case CreateMacvlan():
                index = run.made[action.lower] = self._new_index()
                self._made.add(index)
                name, kind = f"ev{index}", action.kind
                return [
                    codec.new_macvlan(
                        index, name, action.lower, action.mac, action.mode, action.mtu, kind=kind
                    ),
                    codec.set_link(
                        index,
                        alias=device_alias(action.nic, action.qmp),
                        addrgen_none=has_ipv6(action.mtu),
                    ),
                    codec.add_clsact(index),
                    self._filter(action, index),
                    codec.set_link(index, up=True),
                ]
            case SetMtu(index=index, mtu=mtu):
                return [codec.set_link(index, mtu=mtu)]
            case RenameTap(index=index, nic=nic):
                return [codec.set_link(index, name=nic)]
            case SetMac(index=index, mac=mac):
                return [codec.set_link(index, mac=mac)]
            case SetMulticast(index=index):
                return [codec.set_link(index, allmulti=action.all)]
            case BringUp(index=index):
                return [codec.set_link(index, up=True)]
            case JoinBridge(bridge=bridge):
                return [codec.set_link(self._tap(action.nic).ifindex, master=bridge)]
            case LeaveBridge():
                return [codec.set_link(self._tap(action.nic).ifindex, master=0)]
        raise AssertionError(action)

    def _filter(self, action: CreateMacvlan, index: int) -> Message:
        """The program on the new device: of a macvlan for what comes in, of a macvtap for what goes out."""
        if action.kind == "macvlan":
            program = self._tap(action.nic).uplink_program
            return codec.add_bpf_filter(index, program, bpf.UPLINK_PROGRAM)
        program = self._source_programs.get(action.mac if action.check else "")
        return codec.add_bpf_filter(index, program, bpf.SOURCE_PROGRAM, ingress=False)

    def _follow_up(self, action: Action) -> Iterator[Message]:
        """Messages whose refusal is no failure, such as for an address that is there already."""
        match action:
            case JoinBridge():
                yield codec.replace_fdb(self._taps[action.nic].ifindex, action.mac)
            case SetMulticast():
                yield from (codec.add_multicast(action.index, mac) for mac in sorted(action.add))
                yield from (codec.remove_multicast(action.index, mac) for mac in sorted(action.remove))

    def _undo(self, run: _Run, action: Action, refusal: KernelRefusal | None) -> list[list[Message]]:
        """A macvlan goes again; where the first message was refused, there is none, or it is not ours."""
        if not isinstance(action, CreateMacvlan) or (refusal and refusal.place == 1):
            return []
        return [[codec.del_link(run.made[action.lower])]]

    def _at_once(self, run: _Run, action: Action) -> None:
        try:
            match action:
                case Splice():
                    target = run.made[action.lower] if action.target is None else action.target
                    splicing = Splicing(target, action.check, action.mac)
                    bpf.write_map(self._tap(action.nic).map_fd, splicing)
                    run.splicing = splicing
                case Announce():
                    self.announce(action)
                case _:
                    raise AssertionError(action)
        except OSError as error:
            run.fail(action, error)

    def _one_slow(self, action: Action) -> Tap | None:
        """In the thread."""
        match action:
            case CreateTap(definition=nic):
                return make_tap(nic, self._slow_rtnetlink)
            case RemoveTap():
                # Not by netlink, which would take it from a VMM that has just opened it.
                with _ignored(errno.ENODEV):
                    tun.delete_tap(action.nic, action.queues)
            case RemoveMacvlan(index=index):
                with _ignored(errno.ENODEV):
                    insist(self._slow_rtnetlink, [codec.del_link(index)])
            case _:
                raise AssertionError(action)
        return None

    def _new_index(self) -> int:
        """An ifindex of our own choice: no look-up is needed between making a device and using it."""
        while True:
            index, self._next_index = self._next_index, self._next_index + 1
            if self._next_index >= _LAST_INDEX:
                self._next_index = _FIRST_INDEX
            # What follows in the batch goes by the index, and would change another's device that has it.
            try:
                fcntl.ioctl(self._packets, _SIOCGIFNAME, struct.pack("=16xi20x", index))
            except OSError:
                return index

    def _tap(self, nic: str) -> Tap:
        tap = self._taps.get(nic)
        if tap is None:
            raise OSError(errno.ENODEV, f"the tap {nic} is gone")
        return tap

    def _drop(self, nic: str) -> None:
        if tap := self._taps.pop(nic, None):
            tap.close()


def _explain(step: Action | str, error: Exception) -> str:
    remedy = _REMEDIES.get(error.errno or 0, "") if isinstance(error, OSError) else ""
    why = error.args[0] if isinstance(error, KeyError) else error
    return f"{step}: {why}" + (f" ({remedy})" if remedy else "")


@contextmanager
def _ignored(number: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != number:
            raise
