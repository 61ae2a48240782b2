"""The host that random operations happen to: three namespaces, changed by raw netlink messages."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from evertap.kernel import codec, tun
from evertap.kernel.codec import Message
from evertap.kernel.rtnetlink import Rtnetlink
from evertap.lab.netns import Namespace
from evertap.model.links import MARK, Link

_RTM_NEWLINKPROP: Final = 108
_RTM_DELLINKPROP: Final = 109
_ADDRESS, _IFNAME, _MTU, _LINKINFO, _NET_NS_FD, _PROP_LIST, _ALT_IFNAME = 1, 3, 4, 18, 28, 52, 53
_KIND, _DATA, _VETH_PEER = 1, 2, 1
_NESTED: Final = 0x8000
_UP: Final = 1
_NOBODY: Final = 0x7FFF_FFFE  # an index that no interface has: the kernel refuses


@dataclass
class Made:
    """An interface that the operations have made, as it has to be: evertap only sets it up, once."""

    kind: str
    name: str
    mac: str
    mtu: int
    seen_up: bool = False  # at a pause
    set_down: bool = False  # by an operation, since it came into the namespace
    keep_down: bool = False  # had been up when it was set down


class World:
    """Namespaces `host`, `wire` (with the far ends of its interfaces) and `away`.

    Its operations return whether the kernel agreed. To be used within `host.enter()`.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.made: dict[int, Made] = {}
        self.held: dict[str, int] = {}
        self._closing = ExitStack()
        self._far = 0
        try:
            self.host = self._closing.enter_context(Namespace("host"))
            self._wire = self._closing.enter_context(Namespace("wire"))
            self._away = self._closing.enter_context(Namespace("away"))
            self._descriptors = {
                space.name: self._open(space) for space in (self.host, self._wire, self._away)
            }
            self._rtnetlinks = {
                space.name: self._socket(space) for space in (self.host, self._wire, self._away)
            }
        except BaseException:
            self._closing.close()
            raise

    def _open(self, space: Namespace) -> int:
        descriptor = os.open(space.path, os.O_RDONLY)
        self._closing.callback(os.close, descriptor)
        return descriptor

    def _socket(self, space: Namespace) -> Rtnetlink:
        with space.enter():
            return self._closing.enter_context(Rtnetlink())

    def close(self) -> None:
        """End the namespaces, with all that is in them."""
        self.let_all_go()
        self._closing.close()

    def nic(self, number: int) -> str:
        """The name of a NIC and its tap: its own in every run, since BPF maps know no namespaces."""
        return f"{self.prefix}{number}"

    # Interfaces come and go

    def add(self, name: str, index: int, up: bool, mac: str, mtu: int) -> bool:
        """Plug an interface in; `index` 0 lets the kernel choose."""
        return self._plug_in("host", self._veth(self._name(name), index, up, mac, mtu)) and self._note(name)

    def bridge(self, name: str, up: bool) -> bool:
        """Make a bridge."""
        info = _attribute(_LINKINFO, _attribute(_KIND, b"bridge\0"))
        return self._host(_new(0, up, _text(_IFNAME, self._name(name)) + info)) and self._note(name)

    def delete(self, name: str) -> bool:
        """Unplug it."""
        index = self._index(name)
        return self._host(codec.del_link(index)) and self._forget(index)

    def again(self, name: str, up: bool) -> bool:
        """Unplug and plug in again, with the same index and name, in one request."""
        index = self._index(name)
        if index not in self.made:
            return False
        self.made.pop(index)
        again = self._veth(self._name(name), index, up, "", 1500)
        return self._plug_in("host", codec.del_link(index), again) and self._note(name)

    def rename(self, old: str, new: str) -> bool:
        """Give an interface another name."""
        index, name = self._index(old), self._name(new)
        return self._host(codec.set_link(index, name=name)) and self._change(index, name=name)

    def swap(self, one: str, other: str) -> bool:
        """Two interfaces exchange their names, in one request."""
        first, second = self._index(one), self._index(other)
        names = self._name(one), self._name(other)
        steps = [(first, "meanwhile"), (second, names[0]), (first, names[1])]
        if first == second or not {first, second} <= self.made.keys():
            return False
        if not self._host(*(codec.set_link(index, name=name) for index, name in steps)):
            return False
        return self._change(first, name=names[1]) and self._change(second, name=names[0])

    def away(self, name: str) -> bool:
        """Move it to another namespace; what stands on it stays."""
        index = self._index(name)
        return self._host(_move(index, self._descriptors["away"])) and self._forget(index)

    def add_away(self, name: str, index: int) -> bool:
        """Make an interface in the other namespace, with an index that one of the host's may have."""
        return self._plug_in("away", self._veth(name, index, False, "", 1500))

    def back(self, name: str) -> bool:
        """Move it from there to the host."""
        found = [link for link in self._rtnetlinks["away"].dump_links() if link.name == name]
        if not found or not self._ask("away", _move(found[0].index, self._descriptors["host"])):
            return False
        return self._note(name)

    # and change

    def up(self, name: str) -> bool:
        """Set it up."""
        index = self._index(name)
        return self._host(codec.set_link(index, up=True)) and self._change(
            index, set_down=False, keep_down=False
        )

    def down(self, name: str) -> bool:
        """Set it down."""
        index = self._index(name)
        seen = self.made[index].seen_up if index in self.made else False
        return self._host(codec.set_link(index, up=False)) and self._change(
            index, set_down=True, keep_down=seen
        )

    def bounce(self, name: str) -> bool:
        """Set it down and up in one request."""
        index = self._index(name)
        messages = codec.set_link(index, up=False), codec.set_link(index, up=True)
        return self._host(*messages) and self._change(index, keep_down=False, set_down=False)

    def carrier(self, name: str, on: bool) -> bool:
        """Pull the cable or plug it in: the far end goes down or up."""
        link = self._link(name)
        if link is None or link.kind != "veth":
            return False
        return self._ask("wire", codec.set_link(link.lower, up=on))

    def mac(self, name: str, mac: str) -> bool:
        """Give it another MAC address."""
        link = self._link(name)
        if link is None or link.mode == "passthru":  # that would be its uplink's
            return False
        return self._host(codec.set_link(link.index, mac=mac)) and self._change(link.index, mac=mac)

    def mtu(self, name: str, mtu: int) -> bool:
        """Set its MTU."""
        index = self._index(name)
        return self._host(codec.set_link(index, mtu=mtu)) and self._change(index, mtu=mtu)

    def altname(self, name: str, other: str, on: bool) -> bool:
        """Give it another name besides, or take that away."""
        link = self._link(name)
        if link is None or not link.up:
            return False  # the kernel does not tell of it (netdev_state_change in net/core/dev.c)
        names = _attribute(_NESTED | _PROP_LIST, _text(_ALT_IFNAME, other))
        kind, flags = (_RTM_NEWLINKPROP, 0x600) if on else (_RTM_DELLINKPROP, 0)
        return self._host(Message(kind, flags, _header(link.index) + names))

    def alias(self, name: str, text: str) -> bool:
        """Set its alias."""
        return self._host(codec.set_link(self._index(name), alias=text))

    def promisc(self, name: str, on: bool) -> bool:
        """Have it hear everything, or no longer."""
        return self._host(codec.set_link(self._index(name), promisc=on))

    def enslave(self, name: str, bridge: str) -> bool:
        """Make it a port of a bridge."""
        return self._host(codec.set_link(self._index(name), master=self._index(bridge)))

    def free(self, name: str) -> bool:
        """Take it out of its bridge."""
        return self._host(codec.set_link(self._index(name), master=0))

    def foreign(self, name: str, uplink: str, mac: str, mode: str) -> bool:
        """Somebody else's macvlan on an interface."""
        index, lower = 90_000 + self._far, self._index(uplink)
        self._far += 1
        return self._host(codec.new_macvlan(index, self._name(name), lower, mac, mode)) and self._note(name)

    # People meddle with what is evertap's

    def meddle(self, number: int, what: str) -> bool:
        """Change a NIC's tap (`tap-…`) or its oldest macvlan."""
        nic = self.nic(number)
        own = [link for link in self._rtnetlinks["host"].dump_links() if link.owner == nic]
        found = [link for link in own if (link.kind == "tun") == what.startswith("tap")]
        if not found or (what, found[0].mode) == ("mac", "passthru"):  # that would be its uplink's
            return False
        index = found[0].index
        return self._host(
            {
                "tap-down": codec.set_link(index, up=False),
                "tap-rename": codec.set_link(index, name=f"lost{number}"),
                "tap-mtu": codec.set_link(index, mtu=1300),
                "tap-delete": codec.del_link(index),
                "down": codec.set_link(index, up=False),
                "mtu": codec.set_link(index, mtu=1280),
                "mac": codec.set_link(index, mac="52:54:00:00:ff:01"),
                "delete": codec.del_link(index),
            }[what]
        )

    def hold(self, number: int) -> bool:
        """A VMM opens the tap."""
        nic = self.nic(number)
        if nic in self.held:
            return False
        try:
            self.held[nic] = tun.open_tap(nic)
        except OSError:
            return False
        return True

    def let_go(self, number: int) -> bool:
        """The VMM ends."""
        descriptor = self.held.pop(self.nic(number), None)
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is not None

    def let_all_go(self) -> None:
        """All VMMs end."""
        while self.held:
            os.close(self.held.popitem()[1])

    # Inside

    def _plug_in(self, space: str, *messages: Message) -> bool:
        """The last message makes a veth; its far end goes up, which it cannot before the veth is whole."""
        far = Message(codec.RTM_NEWLINK, 0, _header(0, True) + _text(_IFNAME, f"far{self._far}"))
        return self._ask(space, *messages) and self._ask("wire", far)

    def _veth(self, name: str, index: int, up: bool, mac: str, mtu: int) -> Message:
        self._far += 1
        far = _header(0) + _text(_IFNAME, f"far{self._far}")
        far += _attribute(_NET_NS_FD, struct.pack("=I", self._descriptors["wire"]))
        data = _attribute(_DATA, _attribute(_VETH_PEER, far))
        body = _text(_IFNAME, name) + _attribute(_LINKINFO, _attribute(_KIND, b"veth\0") + data)
        if mac:
            body += _attribute(_ADDRESS, bytes.fromhex(mac.replace(":", "")))
        return _new(index, up, body + _attribute(_MTU, struct.pack("=I", mtu)))

    def _host(self, *messages: Message) -> bool:
        return self._ask("host", *messages)

    def _ask(self, space: str, *messages: Message) -> bool:
        (refusal,) = self._rtnetlinks[space].request([messages])
        return refusal is None

    def _note(self, name: str) -> bool:
        link = self._link(name)
        assert link is not None, name
        self.made[link.index] = Made(link.kind, link.name, link.mac, link.mtu)
        return True

    def _forget(self, index: int) -> bool:
        self.made.pop(index, None)
        return True

    def _change(self, index: int, **what: object) -> bool:
        if made := self.made.get(index):
            for key, value in what.items():
                setattr(made, key, value)
        return True

    def _name(self, name: str) -> str:
        """ "nic:5" is the name that NIC 5's tap has, or should have."""
        return self.nic(int(name[4:])) if name.startswith("nic:") else name

    def _index(self, name: str) -> int:
        """The interface's index; of none, and of evertap's own, one that the kernel refuses."""
        link = self._link(name)
        return link.index if link else _NOBODY

    def _link(self, name: str) -> Link | None:
        try:
            link = self._rtnetlinks["host"].get_link(socket.if_nametoindex(self._name(name)))
        except OSError:
            return None
        return None if link is None or link.alias.startswith(MARK) else link


def _header(index: int, up: bool | None = None) -> bytes:
    flags = (_UP, _UP) if up else (0, 0)
    return struct.pack("=BxHiII", 0, 0, index, *flags)


def _new(index: int, up: bool, attributes: bytes) -> Message:
    return Message(codec.RTM_NEWLINK, codec.NLM_F_CREATE | codec.NLM_F_EXCL, _header(index, up) + attributes)


def _move(index: int, namespace: int) -> Message:
    body = _header(index) + _attribute(_NET_NS_FD, struct.pack("=I", namespace))
    return Message(codec.RTM_NEWLINK, 0, body)


def _attribute(number: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), number) + payload + bytes(-len(payload) % 4)


def _text(number: int, text: str) -> bytes:
    return _attribute(number, text.encode() + b"\0")
