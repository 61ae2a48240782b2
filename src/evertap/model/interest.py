"""Which NICs a change of the host concerns: found by look-up, since most links concern none."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from evertap.model.links import Link
from evertap.model.nic import GLOB, Nic, UplinkSpec
from evertap.model.observed import Change, Observed
from evertap.model.table import STACKED_ON_UPLINK


class Interest:
    """The uplinks that the definitions name, turned round: from interface to NICs."""

    def __init__(self) -> None:
        self._nics: dict[str, Nic] = {}
        self._exact: dict[tuple[str, str], set[str]] = {}
        self._globs: dict[str, set[str]] = {}
        self._passthru: set[str] = set()

    def put(self, nic: Nic) -> None:
        """Take in a NIC's definition, instead of an earlier one of its name."""
        self.drop(nic.name)
        self._nics[nic.name] = nic
        for spec in nic.uplinks:
            table, key = self._place(spec)
            table.setdefault(key, set()).add(nic.name)
            if nic.mode_on(spec) == "passthru":
                self._passthru.add(nic.name)

    def drop(self, name: str) -> None:
        """Forget a NIC."""
        nic = self._nics.pop(name, None)
        if nic is None:
            return
        self._passthru.discard(name)
        for spec in nic.uplinks:
            table, key = self._place(spec)
            names = table.get(key, set())
            names.discard(name)
            if not names:
                table.pop(key, None)

    def _place(self, spec: UplinkSpec) -> tuple[dict[Any, set[str]], object]:
        key, value = spec.target
        if GLOB.search(value):
            return self._globs, value
        return self._exact, ("name" if key == "bridge" else key, value)

    def in_link(self, link: Link) -> set[str]:
        """The NICs whose definitions name the interface."""
        names = link.names
        keys = [("name", name) for name in names]
        keys += [("mac", link.mac), ("mac", link.perm_mac)]
        if link.parent_dev:
            keys.append(("path", f"{link.parent_bus}-{link.parent_dev}"))
        found: set[str] = set()
        for key in keys:
            if nics := self._exact.get(key):
                found |= nics
        for pattern, nics in self._globs.items():
            if any(fnmatchcase(name, pattern) for name in names):
                found |= nics
        return found

    def in_change(self, change: Change, seen: Observed) -> set[str]:
        """The NICs that have to be planned anew after the change."""
        concerned: set[str] = set()
        for link in filter(None, change):
            if link.owner:
                concerned.add(link.owner)
            else:
                concerned |= self.in_link(link)
                if link.name in self._nics:  # it has the name that the NIC's tap is to have
                    concerned.add(link.name)
            if link.kind in STACKED_ON_UPLINK:
                concerned |= self._in_stacked(link, seen)
        return concerned

    def _in_stacked(self, link: Link, seen: Observed) -> set[str]:
        """A device on an uplink concerns other NICs only if one of them cannot be there with another."""
        lower = seen.links.get(link.below)
        if lower is None:
            return set()
        if not link.owner or link.mode == "passthru":
            return self.in_link(lower)
        return self.in_link(lower) & self._passthru if self._passthru else set()
