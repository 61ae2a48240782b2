"""Files of a folder: safe reading, and changing several of them all or none."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from evertap.model.errors import DefinitionError, EvertapError

SUFFIX = ".toml"
LIMIT = 64 * 1024
"""Bytes. Far above any definition, far below what would hold up the daemon."""

_READY: Final = ".change"
_DECIDED: Final = ".changed"
_NEW, _OLD, _GONE = ".new", ".old", ".gone"


def is_definition(file_name: str) -> bool:
    """Whether a file of that name is a definition; editors' back-up and temporary files are not."""
    return file_name.endswith(SUFFIX) and not file_name.startswith(".")


def printable(path: str | Path) -> str:
    """The path for a message: names that are not UTF-8 must not break the terminal or the JSON."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def read_definition(path: Path) -> bytes:
    """The file's bytes (FileNotFoundError if it has gone, DefinitionError if it cannot be read)."""
    try:
        # Not blocking: opening a FIFO would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            kind = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(kind):
                found = "a folder" if stat.S_ISDIR(kind) else "not a regular file"
                problem = f"found {found}; allowed: a file with one definition"
                raise DefinitionError(printable(path), "", problem)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(LIMIT + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        if path.is_symlink():
            problem = f"is a link to {printable(path.readlink())}, which does not exist. Mend the link"
            raise DefinitionError(printable(path), "", problem) from None
        raise
    except OSError as error:
        raise DefinitionError(
            printable(path), "", f"cannot be read: {error.strerror}. Mend its rights or its disk"
        ) from None
    if len(data) > LIMIT:
        raise DefinitionError(
            printable(path), "", f"found more than {LIMIT // 1024} KiB; a definition is a few lines"
        )
    return data


def write_file(path: Path, data: bytes, *, durable: bool = True, mode: int = 0o644) -> None:
    """Write one file so that a reader sees the old content or the new, never a part (OSError)."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)  # of a daemon that was killed
        _write(new, data, durable, mode)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def remove_remains(folder: Path) -> None:
    """Remove what `write_file` left in a folder when the daemon was killed; what cannot be stays."""
    for path in folder.glob(".*.new"):
        with suppress(OSError):
            path.unlink()


def change_files(folder: Path, wanted: Mapping[str, bytes | None]) -> None:
    """Replace files (or remove them: None), all or none; EvertapError says what failed.

    All is laid ready in a folder of its own, and the renaming of that decides: of a daemon that is killed
    before, nothing remains; what one that is killed later leaves to be done, `finish_change` does. The old
    files are kept as hard links meanwhile, so that putting them back needs no space on the disk.
    """
    if not wanted:
        return
    path, ready, decided = folder, folder / _READY, folder / _DECIDED
    try:
        finish_change(folder)
        ready.mkdir()
        for name, data in wanted.items():
            path = folder / name
            _lay_ready(path, data, ready)
        path = folder
        ready.rename(decided)
        for name in wanted:
            path = folder / name
            _take(path, decided)
        path = folder
        _sync(folder)
    except OSError as error:
        back = [_put_back(folder / name, decided) for name in wanted if decided.is_dir()]
        outcome = "Nothing was changed" if all(back) else "Not all could be put back: look there"
        for remains in (ready, decided):
            shutil.rmtree(remains, ignore_errors=True)
        raise EvertapError(f"{printable(path)}: cannot be written: {error.strerror}. {outcome}") from error
    shutil.rmtree(decided, ignore_errors=True)


def finish_change(folder: Path) -> None:
    """Do the rest of a change that a killed daemon had decided on; forget one that it had not (OSError)."""
    shutil.rmtree(folder / _READY, ignore_errors=True)
    decided = folder / _DECIDED
    if not decided.is_dir():
        return
    for path in sorted(decided.iterdir()):
        if path.suffix != _OLD:
            _take(folder / path.stem, decided)
    _sync(folder)
    shutil.rmtree(decided)


def _lay_ready(path: Path, data: bytes | None, ready: Path) -> None:
    with suppress(FileNotFoundError):
        os.link(path, ready / (path.name + _OLD), follow_symlinks=False)
    if data is None:
        (ready / (path.name + _GONE)).touch(exist_ok=False)
    else:
        _write(ready / (path.name + _NEW), data)


def _take(path: Path, decided: Path) -> None:
    """Let a file become as it was laid ready; a second time, nothing is left to do."""
    if (decided / (path.name + _GONE)).exists():
        path.unlink(missing_ok=True)
    else:
        with suppress(FileNotFoundError):
            (decided / (path.name + _NEW)).replace(path)


def _put_back(path: Path, decided: Path) -> bool:
    old = decided / (path.name + _OLD)
    try:
        if os.path.lexists(old):
            old.replace(path)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _write(path: Path, data: bytes, durable: bool = True, mode: int = 0o644) -> None:
    """Make a file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask
        file.write(data)
        file.flush()
        if durable:
            os.fsync(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
