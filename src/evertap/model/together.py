"""Definitions that stand beside each other, indexed so that a thousand are checked quickly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from evertap.model.nic import Nic, check_together


class Together:
    """Definitions without a conflict among them: `add` refuses what conflicts with those before it."""

    def __init__(self) -> None:
        self.nics: dict[str, Nic] = {}
        self._by_mac: dict[str, Nic] = {}
        self._users: defaultdict[tuple[str, str], dict[str, Nic]] = defaultdict(dict)
        self._alone: dict[tuple[str, str], Nic] = {}  # the uplinks that a NIC has in mode passthru

    def add(self, nic: Nic, file: str) -> None:
        """Take it in (DefinitionError if it cannot stand beside the others)."""
        # check_together looks at every NIC it is given: only those that can matter, or n NICs cost n * n.
        check_together(nic, {rival.name: rival for rival in self._rivals(nic)}, file)
        self.nics[nic.name] = nic
        self._by_mac[nic.mac] = nic
        for spec in nic.uplinks:
            self._users[spec.target][nic.name] = nic
            if nic.mode_on(spec) == "passthru" and not spec.bridge:
                self._alone[spec.target] = nic

    def _rivals(self, nic: Nic) -> Iterator[Nic]:
        if same := self._by_mac.get(nic.mac):
            yield same
        for key in ("name", "bridge"):
            yield from self._users.get((key, nic.name), {}).values()
        for spec in nic.uplinks:
            if tap := self.nics.get(spec.name or spec.bridge):
                yield tap
            if alone := self._alone.get(spec.target):
                yield alone
            elif nic.mode_on(spec) == "passthru":
                yield from list(self._users.get(spec.target, {}).values())[:1]
