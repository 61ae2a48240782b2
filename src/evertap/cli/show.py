"""`evertap show`."""

from __future__ import annotations

import click

from evertap.cli import completion, render
from evertap.cli.common import Folders, ask, echo_json
from evertap.cli.common import as_json as json_option


@click.command("show")
@click.argument("nic", shell_complete=completion.nics)
@json_option
@click.pass_obj
def command(folders: Folders, nic: str, as_json: bool) -> None:
    """State of one NIC, with its candidates and why each is or is not usable."""
    view = ask(folders, lambda client: client.nic(nic))
    if as_json:
        echo_json(view)
    else:
        render.nic(view)
