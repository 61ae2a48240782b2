"""`evertap undefine`."""

from __future__ import annotations

import click

from evertap.cli import completion
from evertap.cli.common import Folders, ask, echo_changed
from evertap.cli.common import as_json as json_option


@click.command("undefine")
@click.argument("nics", nargs=-1, required=True, metavar="NIC...", shell_complete=completion.nics)
@json_option
@click.pass_obj
def command(folders: Folders, nics: tuple[str, ...], as_json: bool) -> None:
    """Remove definitions, all or none. A tap that a VM holds stays until the VM has gone."""
    names = list(dict.fromkeys(nics))
    ask(folders, lambda client: client.undefine(names))
    echo_changed(names, as_json, f"undefined {' '.join(names)}")
