"""`evertap history`."""

from __future__ import annotations

import click

from evertap.cli import completion, render
from evertap.cli.common import Folders, ask, echo_json
from evertap.cli.common import as_json as json_option
from evertap.cli.events import plain


@click.command("history")
@click.argument("nic", shell_complete=completion.nics)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The last N events only.")
@json_option
@click.pass_obj
def command(folders: Folders, nic: str, limit: int | None, as_json: bool) -> None:
    """What happened to a NIC, when and why, oldest first, and how long it was without an uplink.

    Also from before the daemon or the host was started, and of a NIC that is no more.
    """
    events = ask(folders, lambda client: client.nic_history(nic, limit))
    if not as_json:
        render.history(events)
        return
    echo_json(
        [
            plain(event) | ({} if event.outage_seconds is None else {"outage_seconds": event.outage_seconds})
            for event in events
        ]
    )
