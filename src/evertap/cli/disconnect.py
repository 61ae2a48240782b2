"""`evertap disconnect`."""

from __future__ import annotations

import click

from evertap.cli import completion
from evertap.cli.common import Folders, ask, echo_changed
from evertap.cli.common import as_json as json_option


@click.command("disconnect")
@click.argument("nic", shell_complete=completion.nics)
@json_option
@click.pass_obj
def command(folders: Folders, nic: str, as_json: bool) -> None:
    """Take a NIC's backend down until `connect`. The guest's device is untouched."""
    ask(folders, lambda client: client.disconnect(nic))
    echo_changed([nic], as_json, f"{nic} is disconnected")
