"""`evertap events`."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import click

from evertap.cli import completion, render
from evertap.cli.common import Folders, ask, echo_json
from evertap.cli.common import as_json as json_option

if TYPE_CHECKING:
    from evertap.api.client import Client
    from evertap.model.views import EventView


@click.command("events")
@click.option("--follow", is_flag=True, help="Print events from now on, as they happen.")
@click.option("--nic", metavar="NIC", shell_complete=completion.nics, help="Only those of this NIC.")
@json_option
@click.pass_obj
def command(folders: Folders, follow: bool, nic: str | None, as_json: bool) -> None:
    """What happened, when and why, oldest first."""
    if not follow:
        for event in ask(folders, lambda client: client.history(nic)):
            _print(event, as_json)
        return

    async def following(client: Client) -> None:
        async with aclosing(client.follow(nic)) as events:
            async for event in events:
                _print(event, as_json)

    ask(folders, following)


def _print(event: EventView, as_json: bool) -> None:
    if as_json:
        echo_json(plain(event))
    else:
        render.event(event)


def plain(event: EventView) -> dict[str, Any]:
    """The event as its JSON has it."""
    told = {key: getattr(event, key) for key in ("time", "nic", "event", "uplink", "reason")}
    return told if event.latency_ms is None else told | {"latency_ms": event.latency_ms}
