"""A host made of a folder: for programs and settings that a test cannot have for real."""

from __future__ import annotations

from pathlib import Path

from evertap.doctor.check import Check
from evertap.doctor.definitions import Definitions
from evertap.doctor.host import Answer, Host
from evertap.model.links import Link
from evertap.model.nic import Nic, parse_nic

MACVLAN = "ev1048576"


class PretendedHost(Host):
    """Has the files of a folder, and the programs and interfaces that a test names."""

    def __init__(self, root: Path, *running: str) -> None:
        super().__init__(root)
        self.processes = frozenset(name[:15] for name in running)
        self.links: list[Link] = []
        self.answers: dict[str, Answer] = {}

    def write(self, name: str, text: str) -> Path:
        """Make a file."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def run(self, *command: str) -> Answer:
        """What the test has it say."""
        return self.answers.get(command[0], Answer(127, "", "not there"))


def nic(name: str = "web0", *uplinks: object) -> Nic:
    """A NIC."""
    raw = {"mac": "52:54:00:00:00:01", "uplinks": list(uplinks or ("eth0",))}
    return parse_nic(name, raw, f"{name}.toml")


def defined(*nics: Nic) -> Definitions:
    """Those definitions, without fault."""
    return Definitions(Path("nics.d"), {each.name: each for each in nics}, [], "")


def only(checks: list[Check], name: str) -> Check:
    """The check of that name."""
    (found,) = [check for check in checks if check.name == name]
    return found
