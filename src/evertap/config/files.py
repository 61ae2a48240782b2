"""Files of a folder: safe reading, and changing several of them all or none."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from evertap.model.errors import DefinitionError, EvertapError

SUFFIX = ".toml"
LIMIT = 64 * 1024
"""Bytes. Far above any definition, far below what would hold up the daemon."""


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
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask
            file.write(data)
            file.flush()
            if durable:
                os.fsync(descriptor)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def change_files(folder: Path, wanted: Mapping[str, bytes | None]) -> None:
    """Replace files (or remove them: None), all or none; EvertapError says what failed.

    The old files are kept as hard links meanwhile, so that putting them back needs no space on the disk.
    """
    if not wanted:
        return
    changed: list[Path] = []
    path = folder
    try:
        for name, data in wanted.items():
            path = folder / name
            _keep(path)
            changed.append(path)
            if data is None:
                path.unlink()
            else:
                write_file(path, data)
        path = folder
        _sync(folder)
    except OSError as error:
        back = [_put_back(path) for path in reversed(changed)]
        outcome = "Nothing was changed" if all(back) else "Not all could be put back: look there"
        raise EvertapError(f"{printable(path)}: cannot be written: {error.strerror}. {outcome}") from error
    for path in changed:
        _kept(path).unlink(missing_ok=True)


def _kept(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _keep(path: Path) -> None:
    _kept(path).unlink(missing_ok=True)  # of a daemon that was killed
    try:
        os.link(path, _kept(path), follow_symlinks=False)
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise


def _put_back(path: Path) -> bool:
    try:
        if os.path.lexists(_kept(path)):
            _kept(path).replace(path)
            _kept(path).unlink(missing_ok=True)  # rename(2) leaves it where both are the same file
        else:
            path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
