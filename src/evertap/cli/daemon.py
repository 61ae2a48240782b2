"""`evertap daemon`."""

from __future__ import annotations

import click

from evertap.cli.common import Folders
from evertap.cli.common import as_json as json_option


@click.command("daemon")
@click.option(
    "--libvirt-uri",
    default="qemu:///system",
    show_default=True,
    help='The libvirt to follow, where evertap[libvirt] is installed; "none" for none.',
)
@click.option("--replug-all", is_flag=True, help="Replug lost direct interfaces of all domains.")
@json_option
@click.pass_obj
def command(folders: Folders, libvirt_uri: str, replug_all: bool, as_json: bool) -> None:  # noqa: ARG001
    """Run the daemon in the foreground.

    SIGHUP or a change in nics.d rereads the definitions; SIGTERM stops it and leaves traffic flowing. With
    --json, the error that keeps it from starting is printed as JSON.
    """
    from evertap.daemon import run

    run(folders.config, folders.runtime, folders.state, libvirt_uri, replug_all=replug_all)
