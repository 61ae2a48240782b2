"""From a definition's bytes to a NIC, and the change of its uplinks that keeps the rest of the text."""

from __future__ import annotations

import tomllib
from typing import Any

from evertap.model.errors import DefinitionError
from evertap.model.nic import Nic, parse_nic

_NOT_TOML = "is not TOML: {}. Correct it there"


def parse(name: str, data: bytes, file: str) -> Nic:
    """The NIC that a definition's bytes describe (DefinitionError)."""
    try:
        raw = tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise DefinitionError(
            file,
            "",
            f"is not UTF-8: found byte 0x{data[error.start]:02x} at offset {error.start}. Save it as UTF-8",
        ) from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and numbers too long for int()
        problem = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise DefinitionError(file, "", _NOT_TOML.format(problem)) from None
    return parse_nic(name, raw, file)


def with_uplinks(data: bytes, uplinks: list[dict[str, str] | str]) -> bytes:
    """The same text, comments and layout included, with other uplinks. `data` is a good definition."""
    import tomlkit  # 40 ms, and only needed here
    from tomlkit.items import AoT

    document = tomlkit.parse(data.decode())
    if isinstance(document["uplinks"], AoT):
        # [[uplinks]] may stand after another table's header, where an array would become that table's.
        tables = tomlkit.aot()
        for uplink in uplinks:
            tables.append(tomlkit.item(_table(uplink)))
        document["uplinks"] = tables
    else:
        array = tomlkit.array()
        for uplink in uplinks:
            array.append(_inline(uplink))
        document["uplinks"] = array
    return tomlkit.dumps(document).encode()


def _table(uplink: dict[str, str] | str) -> dict[str, str]:
    return {"name": uplink} if isinstance(uplink, str) else uplink


def _inline(uplink: dict[str, str] | str) -> Any:
    import tomlkit

    if isinstance(uplink, str):
        return uplink
    table = tomlkit.inline_table()
    table.update(uplink)
    return table
