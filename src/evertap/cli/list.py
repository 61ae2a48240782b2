"""`evertap list`."""

from __future__ import annotations

import click

from evertap.cli import render
from evertap.cli.common import Folders, ask, echo_json
from evertap.cli.common import as_json as json_option


@click.command("list")
@json_option
@click.pass_obj
def command(folders: Folders, as_json: bool) -> None:
    """State of all NICs."""
    nics = ask(folders, lambda client: client.nics())
    if as_json:
        echo_json(nics)
    else:
        render.nics(nics)
