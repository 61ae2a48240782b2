"""`evertap args`."""

from __future__ import annotations

import shlex

import click

from evertap.cli import completion
from evertap.cli.common import Folders, ask, echo_json
from evertap.cli.common import as_json as json_option


@click.command("args")
@click.argument("nics", nargs=-1, required=True, metavar="NIC...", shell_complete=completion.nics)
@json_option
@click.pass_obj
def command(folders: Folders, nics: tuple[str, ...], as_json: bool) -> None:
    """The QEMU arguments for NICs: one line, quoted for the shell (with --json an array)."""
    arguments = ask(folders, lambda client: client.arguments(nics))
    if as_json:
        echo_json(arguments)
    else:
        click.echo(shlex.join(arguments))
