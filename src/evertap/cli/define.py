"""`evertap define`."""

from __future__ import annotations

from pathlib import Path

import click

from evertap.cli.common import Folders, ask, echo_changed
from evertap.cli.common import as_json as json_option
from evertap.model.errors import DefinitionError

_LIMIT = 64 * 1024  # bytes; also of the daemon


@click.command("define")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@json_option
@click.pass_obj
def command(folders: Folders, files: tuple[Path, ...], as_json: bool) -> None:
    """Add or replace definitions, all or none. Each FILE is NAME.toml; NAME becomes the NIC's name."""
    texts: dict[str, str] = {}
    for file in files:
        name = file.name.removesuffix(".toml")
        if name == file.name:
            raise DefinitionError(
                str(file), "", "the file has to be named NAME.toml, after the NIC. Rename it"
            )
        if name in texts:
            raise DefinitionError(str(file), "", f'"{name}" is defined by two of these files. Leave one out')
        texts[name] = _read(file)
    try:
        ask(folders, lambda client: client.define(texts))
    except DefinitionError as error:
        # The daemon knows names only; the person knows files.
        given = {file.name: str(file) for file in files}
        raise DefinitionError(given.get(error.file, error.file), error.field, error.problem) from None
    echo_changed(list(texts), as_json, f"defined {' '.join(texts)}")


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(_LIMIT + 1)
        if len(data) > _LIMIT:
            raise DefinitionError(str(file), "", f"found more than {_LIMIT // 1024} KiB; it is a few lines")
        return data.decode()
    except OSError as error:
        raise DefinitionError(str(file), "", f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DefinitionError(
            str(file),
            "",
            f"is not UTF-8: found byte 0x{data[error.start]:02x} at offset {error.start}. Save it as UTF-8",
        ) from None
