"""libvirt's domains as far as they concern evertap, and their NICs merged with those of the files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from evertap.model.domain import Domain
from evertap.model.domain_direct import DirectInterface, direct_interfaces
from evertap.model.domain_nics import nics_of, refused_nic, taps_of, wants_replug
from evertap.model.domain_parse import tap_names
from evertap.model.errors import DefinitionError
from evertap.model.nic import Nic
from evertap.model.together import Together

PREFIX: Final = "libvirt:"


def path_of(uuid: str) -> str:
    """What stands for a domain's QEMU where other VMs have the path of a QMP socket."""
    return PREFIX + uuid


class Entry(NamedTuple):
    """What a domain means to evertap."""

    domain: Domain
    nics: dict[str, Nic]  # that its metadata defines
    problems: list[DefinitionError]
    refused: dict[str, DefinitionError]  # the problems of which the NIC can be told
    taps: frozenset[str]  # that its interfaces stand on, as it runs or will start
    replug: list[DirectInterface]  # the running ones, if they are to be replugged


class Merged(NamedTuple):
    """All NICs, whoever defines them."""

    nics: dict[str, Nic]
    homes: dict[str, Domain]  # by NIC: the domain that defines it; the others stand in files
    idle: dict[str, str]  # by NIC: why only its tap is wanted yet
    problems: list[DefinitionError]
    refused: dict[str, DefinitionError]  # by NIC: why its domain's metadata was refused


class DomainBook:
    """The domains, as libvirt last told of them. `replug_all`: also those that did not ask for replug."""

    def __init__(self, *, replug_all: bool = False) -> None:
        self.entries: dict[str, Entry] = {}
        self.named: frozenset[str] = frozenset()
        """Names of the domains whose monitor NICs of the files want (`[vm] domain`)."""
        self._all: dict[str, Domain] = {}
        self._on_tap: dict[str, set[str]] = {}
        self._replug_all = replug_all

    def put(self, domain: Domain) -> bool:
        """Take in a domain; whether it concerns evertap, or did."""
        entry = self._read(domain)
        had = self.drop(domain.uuid)
        self._all[domain.uuid] = domain
        if not any(entry[1:]):
            return had or domain.name in self.named
        self.entries[domain.uuid] = entry
        for tap in entry.taps:
            self._on_tap.setdefault(tap, set()).add(domain.uuid)
        return True

    def drop(self, uuid: str) -> bool:
        """Forget a domain; whether it was known."""
        self._all.pop(uuid, None)
        entry = self.entries.pop(uuid, None)
        for tap in entry.taps if entry else ():
            self._on_tap[tap].discard(uuid)
        return entry is not None

    def on_tap(self, name: str) -> Domain | None:
        """The domain that has an interface on the NIC's tap; a running one first."""
        found = [self.entries[uuid].domain for uuid in self._on_tap.get(name, ())]
        return max(found, key=lambda domain: domain.running, default=None)

    def called(self, name: str) -> Domain | None:
        """The domain of that name."""
        return next((domain for domain in self._all.values() if domain.name == name), None)

    def get(self, uuid: str) -> Domain | None:
        """The domain with that uuid."""
        return self._all.get(uuid)

    def _read(self, domain: Domain) -> Entry:
        nics, problems = nics_of(domain)
        xml = domain.live_xml if domain.running else domain.config_xml
        try:
            taps = frozenset(tap_names(xml)) if xml else frozenset()
            wants = domain.running and bool(xml) and (self._replug_all or wants_replug(domain))
            replug = direct_interfaces(xml) if wants else []
        except DefinitionError as problem:
            return Entry(domain, nics, [*problems, problem], {}, frozenset(), [])
        refused = {name: problem for problem in problems if (name := refused_nic(xml, problem))}
        # The last good definition stays in force.
        before = self.entries.get(domain.uuid)
        good = {name: before.nics[name] for name in refused if before and name in before.nics}
        # Also those of the next start: their taps have to exist by then.
        return Entry(domain, {**taps_of(domain), **good, **nics}, problems, refused, taps, replug)

    def merge(self, files: Mapping[str, Nic]) -> Merged:
        """The files' NICs and the domains'; a domain's NIC that cannot stand beside the others is refused."""
        together = Together()
        self.named = frozenset(nic.vm.domain for nic in files.values() if nic.vm.domain)
        for nic in files.values():
            together.add(nic, f"{nic.name}.toml")
        homes: dict[str, Domain] = {}
        idle: dict[str, str] = {}
        problems: list[DefinitionError] = []
        refused: dict[str, DefinitionError] = {}
        for entry in sorted(self.entries.values(), key=lambda entry: entry.domain.name):
            domain, nics, own_problems = entry[:3]
            where = f"domain {domain.name}"
            problems += own_problems
            refused |= entry.refused
            for name, nic in nics.items():
                try:
                    if name in together.nics:
                        other = f"domain {homes[name].name}" if name in homes else f"{name}.toml"
                        raise DefinitionError(
                            where, "", f'NIC "{name}" is defined by {other} already. Rename the <target dev>'
                        )
                    together.add(nic, where)
                except DefinitionError as problem:
                    problems.append(problem)
                    refused.setdefault(name, problem)
                else:
                    homes[name] = domain
                    if domain.running and name not in entry.taps:
                        idle[name] = f"it is for the next start of the domain {domain.name}"
        return Merged(together.nics, homes, idle, problems, refused)
