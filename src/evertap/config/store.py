"""The store of definitions: nics.d, the last good copy of each, and what was said for the running state."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import msgspec

from evertap.config.files import (
    SUFFIX,
    change_files,
    finish_change,
    is_definition,
    printable,
    read_definition,
    remove_remains,
    write_file,
)
from evertap.config.text import parse, with_uplinks
from evertap.engine.ports import Live, Loaded
from evertap.model.domain import Domain
from evertap.model.errors import DefinitionError, EvertapError, NoSuchNicError
from evertap.model.nic import Nic, check_name
from evertap.model.together import Together

_log = logging.getLogger(__name__)


class _Good(NamedTuple):
    """A definition and the bytes that it was read from."""

    data: bytes
    nic: Nic


class Store:
    """Definitions in `config_dir`/nics.d (engine.ports.Definitions). One process at a time may have it.

    A definition that is in force wins against newcomers, also after a restart: the last good one of each is
    kept in `state_dir`/accepted. Where that cannot be written, it is kept while the daemon runs.
    """

    def __init__(self, config_dir: Path, runtime_dir: Path, state_dir: Path) -> None:
        self._folder = config_dir / "nics.d"
        self._accepted = state_dir / "accepted"
        self._domains = state_dir / "domains"
        self._live = runtime_dir / "live"
        self._good: dict[str, _Good] | None = None  # in force; None: not read yet
        self._unkept: set[str] = set()  # those without a copy, since it could not be written

    def load(self) -> Loaded:
        """Read all definitions; a refused file leaves the last good definition in force."""
        good = self._in_force()
        problems: dict[str, DefinitionError] = {}
        try:
            names = sorted(path.name for path in self._folder.iterdir() if is_definition(path.name))
        except FileNotFoundError:
            names = []
        except OSError as error:
            # Not "no definitions": nobody took them away.
            problem = DefinitionError(
                printable(self._folder), "", f"cannot be read: {error.strerror}. Mend its rights or its disk"
            )
            _log.warning("%s", problem)
            return Loaded({name: kept.nic for name, kept in good.items()}, dict.fromkeys(good, problem))
        found: dict[str, _Good] = {}
        present: set[str] = set()
        for file_name in names:
            name = printable(file_name.removesuffix(SUFFIX))
            try:
                found[name] = self._read(file_name, good.get(name))
            except FileNotFoundError:
                continue  # removed since the folder was listed
            except DefinitionError as error:
                problems[name] = error
            present.add(name)
        stay = {name: kept for name, kept in good.items() if name in present}
        accepted, refused = _judge(stay, found, self._file)
        self._remember(accepted)
        return Loaded({name: kept.nic for name, kept in sorted(accepted.items())}, problems | refused)

    def define(self, texts: dict[str, str]) -> dict[str, Nic]:
        """Check and write definitions (NAME -> TOML text), all or none (DefinitionError, EvertapError)."""
        new: dict[str, _Good] = {}
        for name, text in sorted(texts.items()):
            check_name(name, name + SUFFIX)
            data = text.encode("utf-8", "surrogatepass")  # parse finds what is not text
            new[name] = _Good(data, parse(name, data, name + SUFFIX))
        return self._put(new, lambda name: name + SUFFIX)

    def undefine(self, names: Sequence[str]) -> None:
        """Remove definitions, all or none (NoSuchNicError, EvertapError)."""
        good = dict(self._in_force())
        gone: dict[str, bytes | None] = {}
        for name in names:
            # Only names that nics.d can have: "../x" must not lead elsewhere.
            try:
                check_name(name, "")
            except DefinitionError:
                raise NoSuchNicError(name) from None
            if os.path.lexists(self._folder / (name + SUFFIX)):
                gone[name + SUFFIX] = None
            elif name not in good:
                raise NoSuchNicError(name)
            good.pop(name, None)
        change_files(self._folder, gone)
        self._remember(good)

    def set_uplinks(self, name: str, uplinks: list[dict[str, str] | str]) -> Nic:
        """Change the uplinks in a definition's file, keep the rest (DefinitionError, EvertapError)."""
        path = self._folder / (name + SUFFIX)
        try:
            data = read_definition(path)
        except FileNotFoundError:
            raise NoSuchNicError(name) from None
        parse(name, data, printable(path))  # an edit in progress is not to be written over
        changed = with_uplinks(data, uplinks)
        nic = parse(name, changed, printable(path))
        return self._put({name: _Good(changed, nic)}, self._file)[name]

    def live_names(self) -> list[str]:
        """The NICs of which something was said for the running state alone."""
        return sorted(path.stem for path in self._live.glob("*.json"))

    def load_live(self, name: str) -> Live:
        """What was said for the running state alone."""
        try:
            return msgspec.json.decode((self._live / f"{name}.json").read_bytes(), type=Live)
        except FileNotFoundError:
            return Live()
        except (OSError, ValueError) as error:
            _log.warning("running state of NIC %s is lost: %s", name, error)
            return Live()

    def save_live(self, name: str, live: Live) -> None:
        """Keep it; an empty Live: forget it (EvertapError)."""
        path = self._live / f"{name}.json"
        try:
            if live == Live():
                path.unlink(missing_ok=True)
            else:
                self._live.mkdir(parents=True, exist_ok=True)
                write_file(path, msgspec.json.encode(live), durable=False)
        except OSError as error:
            raise EvertapError(
                f"{printable(path)}: cannot be written: {error.strerror}. "
                "What was said for the running state is lost when the daemon restarts"
            ) from error

    def load_domains(self) -> list[Domain]:
        """The domains that define NICs, as they were last known."""
        found = []
        for path in sorted(self._domains.glob("*.json")):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Domain))
            except (OSError, ValueError) as error:
                _log.warning("%s is left aside: %s", printable(path), error)
        return found

    def save_domain(self, domain: Domain) -> None:
        """Remember a domain (EvertapError)."""
        path = self._domains / f"{UUID(domain.uuid)}.json"
        try:
            self._domains.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A domain's description may hold passwords.
            write_file(path, msgspec.json.encode(domain), durable=False, mode=0o600)
        except OSError as error:
            raise EvertapError(f"{printable(path)}: cannot be written: {error.strerror}") from error

    def forget_domain(self, uuid: str) -> None:
        """Forget it."""
        with suppress(OSError):
            (self._domains / f"{UUID(uuid)}.json").unlink()

    def _file(self, name: str) -> str:
        return printable(self._folder / (name + SUFFIX))

    def _read(self, file_name: str, kept: _Good | None) -> _Good:
        path = self._folder / file_name
        try:
            file_name.encode()
        except UnicodeEncodeError:
            raise DefinitionError(printable(path), "", "its name is not UTF-8. Rename the file") from None
        name = file_name.removesuffix(SUFFIX)
        check_name(name, printable(path))
        data = read_definition(path)
        if kept and kept.data == data:
            return kept
        return _Good(data, parse(name, data, printable(path)))

    def _put(self, new: dict[str, _Good], file: Callable[[str], str]) -> dict[str, Nic]:
        """Judge the final set, write the files, and take them as in force."""
        self.load()
        good = {name: kept for name, kept in self._in_force().items() if name not in new}
        together = Together()
        for name, kept in good.items():
            together.add(kept.nic, self._file(name))
        for name, kept in new.items():
            together.add(kept.nic, file(name))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EvertapError(f"{printable(self._folder)}: cannot be made: {error.strerror}") from error
        change_files(self._folder, {name + SUFFIX: kept.data for name, kept in new.items()})
        self._remember(good | new)
        return {name: kept.nic for name, kept in new.items()}

    def _in_force(self) -> dict[str, _Good]:
        if self._good is None:
            self._good = {}
            self._clear_up()
            try:
                copies = sorted(path for path in self._accepted.iterdir() if is_definition(path.name))
            except OSError:
                copies = []
            for path in copies:
                try:
                    data = read_definition(path)
                    self._good[path.stem] = _Good(data, parse(path.stem, data, printable(path)))
                except (OSError, DefinitionError) as error:
                    _log.warning("the copy of the last good definition is of no use: %s", error)
        return self._good

    def _clear_up(self) -> None:
        """See to what a killed daemon left half done."""
        try:
            finish_change(self._folder)
        except OSError as error:
            _log.warning("%s: a change cannot be finished: %s", printable(self._folder), error)
        for folder in (self._accepted, self._live, self._domains):
            remove_remains(folder)

    def _remember(self, accepted: dict[str, _Good]) -> None:
        """Take these as in force, and keep copies of them for the next daemon."""
        before = self._in_force()
        self._good = accepted
        new = {
            name: kept
            for name, kept in accepted.items()
            if kept is not before.get(name) or name in self._unkept
        }
        self._unkept = set(new)
        try:
            if new:
                self._accepted.mkdir(parents=True, exist_ok=True)
            for name, kept in new.items():
                write_file(self._accepted / (name + SUFFIX), kept.data, durable=False)
            for name in before.keys() - accepted.keys():
                (self._accepted / (name + SUFFIX)).unlink(missing_ok=True)
            self._unkept.clear()
        except OSError as error:
            _log.warning("copies of the last good definitions cannot be kept: %s", error)


def _judge(
    stay: dict[str, _Good], found: dict[str, _Good], file: Callable[[str], str]
) -> tuple[dict[str, _Good], dict[str, DefinitionError]]:
    """Choose for each name the definition found or the one in force, so that all fit together.

    All changes are judged together first: two NICs may exchange their MACs. Whatever is refused falls back to
    what is in force, and then the other changes have to fit beside that.
    """
    refused: dict[str, DefinitionError] = {}
    while True:
        fallen = len(refused)
        new = {name: found[name] for name in sorted(found) if name not in refused}
        changes = [(name, kept) for name, kept in new.items() if kept is not stay.get(name)]
        choice = [(name, stay[name]) for name in sorted(stay) if new.get(name) in (None, stay[name])]
        choice += changes
        together = Together()
        for name, kept in choice:
            try:
                together.add(kept.nic, file(name))
            except DefinitionError as error:
                refused[name] = error
        if len(refused) == fallen:
            return {name: kept for name, kept in choice if name in together.nics}, refused
