"""What the verbs share: the folders, --json, and asking the daemon."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    from evertap.api.client import Client

_T = TypeVar("_T")


class Folders(NamedTuple):
    """Where definitions, socket and memory are."""

    config: Path
    runtime: Path
    state: Path


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, errors too.")


def ask(folders: Folders, question: Callable[[Client], Awaitable[_T]]) -> _T:
    """Put a question to the daemon (EvertapError, TimeoutError)."""
    # These take 0.1 s to import, which `--help` need not wait for.
    import asyncio

    from evertap.api.client import connect

    async def asking() -> _T:
        async with connect(folders.runtime) as client:
            return await question(client)

    return asyncio.run(asking())


def echo_json(value: Any) -> None:
    """Print views, or what is made of them, as JSON on one line, at once."""
    import msgspec

    plain = msgspec.to_builtins(value)
    click.echo(json.dumps(plain))


def echo_changed(names: list[str], as_json: bool, text: str) -> None:
    """Tell of a change that is done."""
    if as_json:
        echo_json({"nics": names})
    else:
        click.echo(text)
