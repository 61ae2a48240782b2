"""`evertap uplinks`."""

from __future__ import annotations

import click

from evertap.cli import render
from evertap.cli.common import Folders, ask, echo_json
from evertap.cli.common import as_json as json_option


@click.command("uplinks")
@json_option
@click.pass_obj
def command(folders: Folders, as_json: bool) -> None:
    """The host interfaces and who uses them."""
    uplinks = ask(folders, lambda client: client.uplinks())
    if as_json:
        echo_json(uplinks)
    else:
        render.uplinks(uplinks)
