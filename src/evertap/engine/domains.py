"""What libvirt's domains want of NICs, merged with the definitions' files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from evertap.model.domain import Domain
from evertap.model.domain_nics import nics_of
from evertap.model.errors import DefinitionError
from evertap.model.nic import Nic
from evertap.model.together import Together

PREFIX: Final = "libvirt:"


def path_of(uuid: str) -> str:
    """What stands for a domain's QEMU where other VMs have the path of a QMP socket."""
    return PREFIX + uuid


class Merged(NamedTuple):
    """All NICs, whoever defines them."""

    nics: dict[str, Nic]
    homes: dict[str, Domain]  # by NIC: the domain that defines it; the others stand in files
    problems: list[DefinitionError]


class DomainBook:
    """The domains that define NICs, as libvirt last told of them."""

    def __init__(self) -> None:
        self.domains: dict[str, Domain] = {}
        self._nics: dict[str, dict[str, Nic]] = {}
        self._problems: dict[str, list[DefinitionError]] = {}

    def put(self, domain: Domain) -> bool:
        """Take in a domain; whether evertap has anything to do with it."""
        nics, problems = nics_of(domain)
        had = domain.uuid in self.domains
        if not nics and not problems:
            self.drop(domain.uuid)
            return had
        self.domains[domain.uuid] = domain
        self._nics[domain.uuid] = nics
        self._problems[domain.uuid] = problems
        return True

    def drop(self, uuid: str) -> bool:
        """Forget a domain; whether it was known."""
        self._nics.pop(uuid, None)
        self._problems.pop(uuid, None)
        return self.domains.pop(uuid, None) is not None

    def nics_of(self, uuid: str) -> dict[str, Nic]:
        """The NICs that a domain defines."""
        return self._nics.get(uuid, {})

    def merge(self, files: Mapping[str, Nic]) -> Merged:
        """The files' NICs and the domains'; a domain's NIC that cannot stand beside the others is refused."""
        together = Together()
        for nic in files.values():
            together.add(nic, f"{nic.name}.toml")
        homes: dict[str, Domain] = {}
        problems: list[DefinitionError] = []
        for uuid, domain in sorted(self.domains.items(), key=lambda entry: entry[1].name):
            where = f"domain {domain.name}"
            problems += self._problems[uuid]
            for name, nic in self._nics[uuid].items():
                try:
                    if name in together.nics:
                        other = f"domain {homes[name].name}" if name in homes else f"{name}.toml"
                        raise DefinitionError(
                            where, "", f'NIC "{name}" is defined by {other} already. Rename the <target dev>'
                        )
                    together.add(nic, where)
                except DefinitionError as problem:
                    problems.append(problem)
                else:
                    homes[name] = domain
        return Merged(together.nics, homes, problems)
