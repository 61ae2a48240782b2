"""`evertap retarget`."""

from __future__ import annotations

import click

from evertap.cli import completion
from evertap.cli.common import Folders, ask, echo_changed
from evertap.cli.common import as_json as json_option


@click.command("retarget")
@click.argument("nic", shell_complete=completion.nics)
@click.argument("uplinks", nargs=-1, required=True, metavar="UPLINK...", shell_complete=completion.uplinks)
@click.option("--live", is_flag=True, help="Change the running state alone, not the definition.")
@json_option
@click.pass_obj
def command(folders: Folders, nic: str, uplinks: tuple[str, ...], live: bool, as_json: bool) -> None:
    """Give a NIC other uplinks, in order of preference, while its VM runs.

    UPLINK is the name of an interface, an altname or a glob, or mac=..., path=..., bridge=... or name=...,
    with ,mode=... behind it where the mode differs from the NIC's: name=eth1,mode=vepa.
    """
    ask(folders, lambda client: client.retarget(nic, uplinks, live=live))
    echo_changed([nic], as_json, f"{nic} has new uplinks: {' '.join(uplinks)}")
