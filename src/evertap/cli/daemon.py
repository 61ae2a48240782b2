"""`evertap daemon`."""

from __future__ import annotations

import click

from evertap.cli.common import Folders
from evertap.cli.common import as_json as json_option


@click.command("daemon")
@json_option
@click.pass_obj
def command(folders: Folders, as_json: bool) -> None:  # noqa: ARG001
    """Run the daemon in the foreground.

    SIGHUP or a change in nics.d rereads the definitions; SIGTERM stops it and leaves traffic flowing. With
    --json, the error that keeps it from starting is printed as JSON.
    """
    from evertap.daemon import run

    run(folders.config, folders.runtime, folders.state)
