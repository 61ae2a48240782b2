"""`evertap events`."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from evertap.cli import render
from evertap.cli.common import Folders, ask, echo_json
from evertap.cli.common import as_json as json_option

if TYPE_CHECKING:
    from evertap.api.client import Client
    from evertap.model.views import EventView


@click.command("events")
@click.option("--follow", is_flag=True, help="Print events from now on, as they happen.")
@click.option("--nic", metavar="NIC", help="Only those of this NIC.")
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
    if not as_json:
        render.event(event)
        return
    plain = {key: getattr(event, key) for key in ("time", "nic", "event", "uplink", "reason")}
    if event.latency_ms is not None:
        plain["latency_ms"] = event.latency_ms
    echo_json(plain)
