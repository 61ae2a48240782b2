"""`evertap wait`."""

from __future__ import annotations

import math

import click

from evertap.cli import completion, render
from evertap.cli.common import Folders, ask, echo_json
from evertap.cli.common import as_json as json_option

STATES = ("connected", "waiting", "disconnected", "failed")


@click.command("wait")
@click.argument("nic", shell_complete=completion.nics)
@click.option("--for", "state", required=True, type=click.Choice(STATES), help="The state to wait for.")
@click.option("--timeout", type=click.FloatRange(min=0, max=3e7), metavar="S", help="Seconds; else for ever.")
@json_option
@click.pass_obj
def command(folders: Folders, nic: str, state: str, timeout: float | None, as_json: bool) -> None:
    """Wait until a NIC is in a state; exit code 5 if it is not in time."""
    if timeout is not None and math.isnan(timeout):  # which is in no range, and out of none
        raise click.BadParameter("nan is no number of seconds", param_hint="--timeout")
    view = ask(folders, lambda client: client.wait(nic, state, timeout))
    if as_json:
        echo_json(view)
    else:
        render.state(view)
