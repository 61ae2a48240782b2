"""`evertap plan`."""

from __future__ import annotations

import click

from evertap.cli import render
from evertap.cli.common import Folders, ask, echo_json
from evertap.cli.common import as_json as json_option


@click.command("plan")
@json_option
@click.pass_obj
def command(folders: Folders, as_json: bool) -> None:
    """What the daemon would do now. Nothing, as long as all is as it should be."""
    actions = ask(folders, lambda client: client.plan())
    if as_json:
        echo_json({"actions": actions})
    else:
        render.actions(actions)
