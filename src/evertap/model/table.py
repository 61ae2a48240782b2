"""The table of links: what the kernel last said of every interface, with the look-ups that planning needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from evertap.model.links import Link

STACKED_ON_UPLINK = ("macvlan", "macvtap")


class LinkTable:
    """All interfaces of the namespace by index, with look-ups by name, MAC and what stands on what."""

    def __init__(self) -> None:
        self._links: dict[int, Link] = {}
        self._names: dict[str, set[int]] = {}
        self._macs: dict[str, set[int]] = {}
        self._above: dict[int, set[int]] = {}
        self._owned: dict[str, set[int]] = {}
        self._host: set[int] = set()

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links.values())

    def get(self, index: int) -> Link | None:
        """The link of that index."""
        return self._links.get(index)

    def named(self, name: str) -> Link | None:
        """The link that has the name or altname.

        Until all events of a change of hands are in, two may: then it is the younger one's.
        """
        found = self._names.get(name)
        return self._links[max(found)] if found else None

    def with_mac(self, mac: str) -> list[Link]:
        """The links that have the MAC address now or burnt in, oldest index first."""
        return [self._links[index] for index in sorted(self._macs.get(mac, ()))]

    def above(self, index: int) -> Iterator[Link]:
        """The macvlans and macvtaps that stand on the link."""
        return (self._links[above] for above in self._above.get(index, ()))

    def owned(self, nic: str) -> list[Link]:
        """The devices that evertap made for the NIC, oldest index first."""
        return [self._links[index] for index in sorted(self._owned.get(nic, ()))]

    def owners(self) -> set[str]:
        """The NICs that have any device."""
        return set(self._owned)

    def host(self) -> list[Link]:
        """The interfaces that are not evertap's, oldest index first."""
        return [self._links[index] for index in sorted(self._host)]

    def put(self, link: Link) -> Link | None:
        """Take in a link's new description and return the one before."""
        old = self.drop(link.index)
        self._links[link.index] = link
        for name in link.names:
            self._names.setdefault(name, set()).add(link.index)
        for mac in {link.mac, link.perm_mac} - {""}:
            self._macs.setdefault(mac, set()).add(link.index)
        if link.kind in STACKED_ON_UPLINK and link.lower_netns is None:
            self._above.setdefault(link.lower, set()).add(link.index)
        if link.owner:
            self._owned.setdefault(link.owner, set()).add(link.index)
        else:
            self._host.add(link.index)
        return old

    def drop(self, index: int) -> Link | None:
        """Forget a link and return its last description."""
        link = self._links.pop(index, None)
        if link is None:
            return None
        for name in link.names:
            _discard(self._names, name, index)
        for mac in {link.mac, link.perm_mac} - {""}:
            _discard(self._macs, mac, index)
        if link.kind in STACKED_ON_UPLINK:
            _discard(self._above, link.lower, index)
        _discard(self._owned, link.owner, index)
        self._host.discard(index)
        return link


def _discard(table: dict[Any, set[int]], key: object, index: int) -> None:
    members = table.get(key)
    if members is not None:
        members.discard(index)
        if not members:
            del table[key]
