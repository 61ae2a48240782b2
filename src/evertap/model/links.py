"""One network interface as rtnetlink describes it, and how evertap marks the ones it made."""

from __future__ import annotations

from typing import Final

import msgspec

IFF_UP: Final = 0x1
IFF_ALLMULTI: Final = 0x200
IFF_LOWER_UP: Final = 0x10000
ARPHRD_ETHER: Final = 1

MARK: Final = "evertap:"
"""Start of the alias of every device that evertap made; the NIC's name follows, and after a space what else
evertap has to remember of the device."""


class Link(msgspec.Struct, frozen=True, gc=False):
    """A network interface: what a link message (rtnetlink(7), if_link.h) says of it, and no more.

    Text fields are empty and numbers 0 where the kernel says nothing.
    """

    index: int
    name: str
    flags: int = 0
    type: int = ARPHRD_ETHER  # ARPHRD_*
    mac: str = ""  # lower case, colons
    perm_mac: str = ""  # burnt in; virtual interfaces have none
    mtu: int = 1500
    master: int = 0  # index of the bridge or bond that it is a port of
    lower: int = 0  # IFLA_LINK: the interface it stands on (macvlan, VLAN), or a veth's peer
    lower_netns: int | None = None  # namespace id of `lower`, where that is not our namespace
    kind: str = ""  # IFLA_INFO_KIND: bridge, veth, macvlan, tun...; empty for hardware
    port_kind: str = ""  # IFLA_INFO_SLAVE_KIND: what the master is: bridge, bond...
    mode: str = ""  # of a macvlan or macvtap: bridge, vepa, private, passthru, source
    parent_dev: str = ""  # name of the device it belongs to: 0000:3b:00.0
    parent_bus: str = ""  # and its bus: pci, usb, virtio
    ups: int = 0  # how often its carrier came up (IFLA_CARRIER_UP_COUNT)
    alias: str = ""
    altnames: tuple[str, ...] = ()

    @property
    def up(self) -> bool:
        """Whether the administrator has set it up."""
        return bool(self.flags & IFF_UP)

    @property
    def carrier(self) -> bool:
        """Whether its lower layer has a signal (IFF_LOWER_UP); false while it is down."""
        return bool(self.flags & IFF_LOWER_UP)

    @property
    def below(self) -> int:
        """Index of what it stands on; 0 if that is in another namespace, which has indices of its own."""
        return self.lower if self.lower_netns is None else 0

    @property
    def names(self) -> tuple[str, ...]:
        """Its name and its alternative names."""
        return (self.name, *self.altnames)

    @property
    def owner(self) -> str:
        """The NIC that evertap made this device for; empty if it is not evertap's."""
        return self.alias[len(MARK) :].partition(" ")[0] if self.alias.startswith(MARK) else ""


class Gone(msgspec.Struct, frozen=True, gc=False):
    """An interface has been deleted, or moved to another network namespace."""

    index: int


LinkEvent = Link | Gone
