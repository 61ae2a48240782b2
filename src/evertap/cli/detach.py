"""`evertap detach`."""

from __future__ import annotations

import click

from evertap.cli import completion
from evertap.cli.common import Folders, ask, echo_changed
from evertap.cli.common import as_json as json_option


@click.command("detach")
@click.argument("nic", shell_complete=completion.nics)
@json_option
@click.pass_obj
def command(folders: Folders, nic: str, as_json: bool) -> None:
    """Unplug a NIC's device from its running QEMU. The definition stays, ready for the next `attach`."""
    ask(folders, lambda client: client.detach(nic))
    echo_changed([nic], as_json, f"{nic} is detached")
