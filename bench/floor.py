"""The floor: evertap's own kernel changes, prepared beforehand and replayed by a tight loop.

A process in a lab's host namespace: `python -m bench.floor KIND UPLINK[,UPLINK] COUNT`. What is to be done
comes from evertap's plan and goes through evertap's adapter, up to the last step, the send(2), which is
recorded instead of done. Then the loop waits for the uplink and does nothing but send what was recorded.
KIND:

connect     when the uplink has a carrier, connect all NICs, in batches of 50
bring-up    the same, and set the uplink up when it appears
poll        as connect, but look once a second instead of listening, as was proposed in 2010
failover    NICs stand ready on both uplinks: point them at the other one when the carrier goes, and back
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import socket
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest.mock import patch

from bench import observer
from bench.nics import definition, nic_name, raise_file_limit
from bench.observer import Notification, name_attribute
from evertap.config.text import parse
from evertap.kernel import bpf, codec
from evertap.kernel.codec import Message
from evertap.kernel.host import Host
from evertap.kernel.rtnetlink import KernelRefusal, Rtnetlink
from evertap.model.actions import Action, CreateTap
from evertap.model.choice import Wanted
from evertap.model.links import IFF_LOWER_UP, IFF_UP, Link
from evertap.model.observed import Observed, Splicing
from evertap.model.plan import plan

BATCH: Final = 50
_NOBODY: Final = 0x7EAD0000  # stands for the uplink's index in what is recorded
_MAP_UPDATE_ELEM: Final = 2


class Updates:
    """Changes of maps, with bpf(2)'s arguments made beforehand."""

    def __init__(self) -> None:
        self._kept: list[Any] = []  # what the addresses lead to
        self._addresses: list[int] = []

    def add(self, fd: int, splicing: Splicing) -> None:
        """Note one change; as evertap would make it."""
        mac = bytes.fromhex(splicing.mac.replace(":", ""))
        key = ctypes.c_uint32(0)
        value = ctypes.create_string_buffer(struct.pack("=I6sH", splicing.target, mac, splicing.check), 12)
        places = ctypes.addressof(key), ctypes.addressof(value)
        attribute = ctypes.create_string_buffer(struct.pack("=IxxxxQQQ", fd, *places, 0))
        self._kept += [key, value, attribute]
        self._addresses.append(ctypes.addressof(attribute))

    def __len__(self) -> int:
        return len(self._addresses)

    def do(self) -> None:
        """Make all changes."""
        for address in self._addresses:
            observer.bpf_call(_MAP_UPDATE_ELEM, address)


class Batch(NamedTuple):
    """One send(2), and the changes of maps after it."""

    messages: bytearray
    lowers: list[int]  # where the uplink's index stands in it
    updates: Updates

    def do(self, sock: socket.socket, uplink: int) -> None:
        """Carry it out on an uplink of that index."""
        for place in self.lowers:
            struct.pack_into("=I", self.messages, place, uplink)
        if self.messages:  # a hot failover is a change of the map alone
            sock.send(self.messages)
        self.updates.do()


class Recorder:
    """Catches what evertap's adapter is about to do."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.updates = Updates()

    def request(self, _: Rtnetlink, groups: Sequence[Sequence[Message]]) -> list[KernelRefusal | None]:
        """Instead of Rtnetlink.request."""
        self.messages += [message for group in groups for message in group]
        return [None] * len(groups)

    def batch(self) -> Batch:
        """What was caught, ready to be sent."""
        data = bytearray()
        for number, (kind, flags, body) in enumerate(self.messages, 1):
            flags |= codec.NLM_F_REQUEST | (codec.NLM_F_ACK if number == len(self.messages) else 0)
            data += codec.HEADER.pack(16 + len(body), kind, flags, number, 0) + body + bytes(-len(body) % 4)
        lower = struct.pack("=HHI", 8, 5, _NOBODY)
        places = [place + 4 for place in range(len(data)) if data.startswith(lower, place)]
        return Batch(data, places, self.updates)


class Floor:
    """NICs with taps as evertap makes them, and the means to connect them."""

    def __init__(self, uplinks: list[str], count: int) -> None:
        self.uplinks = uplinks
        self.host = Host()
        texts = {nic_name(number): definition(number, uplinks) for number in range(count)}
        self.nics = [parse(name, text.encode(), name) for name, text in texts.items()]
        self.splicings = asyncio.run(self._make_taps())
        with Rtnetlink() as rtnetlink:
            self.links = rtnetlink.dump_links()
            taps = {link.owner: link for link in self.links if link.owner}
            found = [bpf.find_splice(taps[nic.name].index, rtnetlink) for nic in self.nics]
        self.maps = [splice[0] for splice in found if splice]

    async def _make_taps(self) -> dict[str, Splicing]:
        made = {}
        # clsact instead of tcx, which takes 16 ms a tap: what comes later is the same.
        with patch.object(bpf, "tcx_supported", return_value=False):
            for nic in self.nics:
                done = await self.host.perform_slow([CreateTap(nic=nic.name, definition=nic)])
                if done.error or not done.splicing:
                    sys.exit(f"the floor has no tap: {done.error}")
                made[nic.name] = done.splicing
        return made

    def plans(self, links: Sequence[Link]) -> list[Sequence[Action]]:
        """What evertap would do for each NIC with these uplinks."""
        seen = Observed()
        seen.fold_all([*self.links, *links], 0.0)
        seen.taps.update(self.splicings)
        return [plan(Wanted(nic), seen, 0.0).actions for nic in self.nics]

    def connect(self) -> list[Batch]:
        """All that connects the NICs to the first uplink."""
        uplink = Link(_NOBODY, self.uplinks[0], flags=IFF_UP | IFF_LOWER_UP, mac="02:00:00:00:00:02")
        work = self.plans([uplink])
        batches = [self._record(work[start : start + BATCH]) for start in range(0, len(work), BATCH)]
        if sum(len(batch.lowers) for batch in batches) != len(self.nics):
            sys.exit("the floor has not caught one new macvlan a NIC")
        return batches

    def failover(self) -> dict[str, Batch]:
        """Connect for real; then, by the uplink that has lost its carrier, what points the NICs elsewhere."""
        with Rtnetlink() as rtnetlink:
            links = [link for link in rtnetlink.dump_links() if link.name in self.uplinks]
            done = self.host.perform(self.plans(links))
            self.splicings = {
                nic.name: one.splicing for nic, one in zip(self.nics, done, strict=True) if one.splicing
            }
            self.links = [link for link in rtnetlink.dump_links() if link.name not in self.uplinks]
        one, two = sorted(links, key=lambda link: self.uplinks.index(link.name))
        dark = {link.name: Link(link.index, link.name, flags=IFF_UP, mac=link.mac) for link in links}
        away = self._record(self.plans([dark[one.name], two]))
        self.splicings = {name: Splicing(0, was.check, was.mac) for name, was in self.splicings.items()}
        back = self._record(self.plans([one, dark[two.name]]))
        return {one.name: away, two.name: back}

    def _record(self, work: Sequence[Sequence[Action]]) -> Batch:
        recorder = Recorder()
        with (
            patch.object(Rtnetlink, "request", lambda *args: recorder.request(*args)),
            patch.object(bpf, "write_map", recorder.updates.add),
            patch.object(Host, "announce", lambda *_: None),
        ):
            done = self.host.perform(work)
        if errors := [one.error for one in done if one.error]:
            sys.exit(f"the floor cannot be prepared: {errors[0]}")
        if len(recorder.updates) != len(work):
            sys.exit("the floor has not caught one change of a map a NIC")
        return recorder.batch()


def netlink(groups: int = 0) -> socket.socket:
    """A socket for link messages."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    made.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    made.bind((0, groups))
    return made


def check_answers(sock: socket.socket) -> None:
    """Nothing may have been refused: this would not be the floor."""
    while True:
        try:
            data = sock.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        for kind, _, sequence, _, offset, length in codec.split(data):
            answer = codec.decode_error(data, offset, length)
            if kind == codec.NLMSG_ERROR and answer.errno:
                sys.exit(f"the kernel refused the floor's message {sequence}: {answer}")


def run_connect(floor: Floor, *, bring_up: bool = False) -> None:
    """The tight loop."""
    batches = floor.connect()
    attribute = name_attribute(floor.uplinks[0])
    sock, events = netlink(), netlink(1)
    up = struct.pack(
        "=IHHIIBxHiII", 32, codec.RTM_NEWLINK, codec.NLM_F_REQUEST, 0, 0, 0, 0, 0, IFF_UP, IFF_UP
    )
    connected = asked = 0
    ready(floor)
    while True:
        event = Notification(events.recv(65536))
        if event.new and not connected and event.carrier and attribute in event.data:
            connected = event.index
            for batch in batches:
                batch.do(sock, connected)
            check_answers(sock)
        elif bring_up and event.new and not connected and attribute in event.data and asked != event.index:
            asked = event.index
            sock.send(up[:20] + struct.pack("=i", asked) + up[24:])
        elif event.kind == observer.RTM_DELLINK and event.index == connected:
            connected = asked = 0
            clear(floor)


def run_poll(floor: Floor) -> None:
    """The same by looking once a second."""
    batches = floor.connect()
    sock = netlink()
    name = floor.uplinks[0]
    connected = 0
    ready(floor)
    while True:
        time.sleep(1)
        try:
            index = socket.if_nametoindex(name)
            good = Path(f"/sys/class/net/{name}/carrier").read_text() == "1\n"
        except OSError:
            index, good = 0, False
        if index and good and not connected:
            for batch in batches:
                batch.do(sock, index)
            check_answers(sock)
            connected = index
        elif connected and index != connected:
            connected = 0
            clear(floor)


def run_failover(floor: Floor) -> None:
    """The tight loop."""
    away, back = (batch for batch in floor.failover().values())
    attribute = name_attribute(floor.uplinks[0])
    sock, events = netlink(), netlink(1)
    ready(floor)
    on_first = True
    while True:
        event = Notification(events.recv(65536))
        if event.new and attribute in event.data and event.carrier != on_first:
            on_first = event.carrier
            (back if on_first else away).do(sock, event.index)


def clear(floor: Floor) -> None:
    """As evertap does when the uplink has gone."""
    for fd, nic in zip(floor.maps, floor.nics, strict=True):
        bpf.write_map(fd, Splicing(0, nic.spoof_check, nic.mac))


def ready(floor: Floor) -> None:
    """Tell who started us which maps to watch."""
    print(json.dumps([observer.map_id(fd) for fd in floor.maps]), flush=True)


def main() -> None:
    """Run the floor until killed."""
    kind, uplinks, count = sys.argv[1:]
    raise_file_limit()
    floor = Floor(uplinks.split(","), int(count))
    match kind:
        case "connect" | "bring-up":
            run_connect(floor, bring_up=kind == "bring-up")
        case "poll":
            run_poll(floor)
        case "failover":
            run_failover(floor)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
