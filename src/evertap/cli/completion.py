"""What shells offer on a tab: names that the daemon knows. Without a daemon, or in a hurry, nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from evertap.api.client import Client

_PATIENCE: Final = 0.2
"""Seconds: a person waits for it."""


def nics(context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Names of NICs, without those that are there already."""
    there = {word for value in context.params.values() if isinstance(value, tuple) for word in value}
    return [name for name in _names(context, _nics) if name.startswith(begun) and name not in there]


def uplinks(context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Names of interfaces; behind `bridge=` of bridges. bash takes that word apart, others do not."""
    begun = begun.removeprefix("=")
    if begun.startswith("bridge="):
        return [f"bridge={name}" for name in _names(context, _bridges) if f"bridge={name}".startswith(begun)]
    return [name for name in _names(context, _uplinks) if name.startswith(begun)]


def domains(context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Names of libvirt's domains."""
    return [name for name in _names(context, lambda client: client.domains()) if name.startswith(begun)]


def _names(context: click.Context, question: Callable[[Client], Awaitable[list[str]]]) -> list[str]:
    import asyncio

    from evertap.api.client import connect
    from evertap.model.errors import EvertapError

    async def ask() -> list[str]:
        folder = context.find_root().params["runtime_dir"]
        async with asyncio.timeout(_PATIENCE), connect(Path(folder)) as client:
            return await question(client)

    try:
        return asyncio.run(ask())
    except (EvertapError, TimeoutError):
        return []


async def _nics(client: Client) -> list[str]:
    return [nic.name for nic in await client.nics()]


async def _uplinks(client: Client) -> list[str]:
    return [uplink.name for uplink in await client.uplinks()]


async def _bridges(client: Client) -> list[str]:
    return [uplink.name for uplink in await client.uplinks() if uplink.kind == "bridge"]
