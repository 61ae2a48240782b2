"""The definitions: those that are refused, and uplinks that exist nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from evertap.config.files import SUFFIX, is_definition, printable, read_definition
from evertap.config.text import parse
from evertap.doctor.check import Check
from evertap.doctor.host import Host
from evertap.model.choice import matching
from evertap.model.errors import DefinitionError
from evertap.model.nic import Nic
from evertap.model.observed import Observed
from evertap.model.together import Together


class Definitions(NamedTuple):
    """What was found in `folder`: the good ones, and what is wrong with the others."""

    folder: Path
    nics: dict[str, Nic]
    problems: list[DefinitionError]
    unreadable: str  # why the folder cannot be read


def read(config_dir: Path) -> Definitions:
    """Read them, without the store: that would take note of what it has accepted."""
    folder = config_dir / "nics.d"
    together, problems = Together(), []
    try:
        names = sorted(path.name for path in folder.iterdir() if is_definition(path.name))
    except FileNotFoundError:
        names = []
    except OSError as error:
        return Definitions(folder, {}, [], error.strerror or str(error))
    for name in names:
        path = folder / name
        try:
            nic = parse(name.removesuffix(SUFFIX), read_definition(path), printable(path))
            together.add(nic, printable(path))
        except DefinitionError as error:
            problems.append(error)
        except FileNotFoundError:
            continue
    return Definitions(folder, together.nics, problems, "")


def checks(host: Host, found: Definitions) -> Iterator[Check]:
    """One check for all that are good, and one for each problem."""
    if found.unreadable:
        yield Check(
            "definitions", "warning", f"{found.folder} cannot be read: {found.unreadable}", "run it as root"
        )
        return
    for problem in found.problems:
        where = f"{problem.field}: " if problem.field else ""
        yield Check(
            "definition",
            "broken",
            f"{problem.file} is refused: {where}{problem.problem}",
            f"correct {problem.file}; evertap define checks before it replaces",
        )
    count = len(found.nics)
    plural = "" if count == 1 else "s"
    yield Check("definitions", "ok", f"{count} good definition{plural} in {printable(found.folder)}")
    yield from _uplinks(host, found)


def _uplinks(host: Host, found: Definitions) -> Iterator[Check]:
    """A missing uplink is a normal state, but may be a slip of the pen."""
    seen = Observed()
    for link in host.links:
        seen.links.put(link)
    for nic in found.nics.values():
        for spec in nic.uplinks:
            if not any(matching(spec, seen)):
                yield Check("uplink", "note", f"NIC {nic.name}: no interface is {spec} now")
