"""evertap libvirt-hook: called by libvirt before it starts a domain; a fault of ours never stops a VM."""

from __future__ import annotations

import logging
import sys

import click

from evertap.cli.common import Folders


@click.command("libvirt-hook")
@click.argument("domain")
@click.argument("operation")
@click.argument("rest", nargs=-1)
@click.option("--json", "as_json", is_flag=True, hidden=True)
@click.pass_obj
def command(folders: Folders, domain: str, operation: str, rest: tuple[str, ...], as_json: bool) -> None:
    """Make sure that the taps of DOMAIN exist, when OPERATION is prepare; its XML comes on standard input.

    Exits with 0 whatever happens (libvirt.org/hooks.html: anything else would stop the start).
    """
    del rest, as_json
    if operation != "prepare":
        return
    logging.basicConfig(stream=sys.stderr, format="evertap: %(message)s")
    try:
        from evertap.hook import prepare

        prepare(sys.stdin.read(), folders.config, folders.runtime, folders.state)
    except Exception as error:
        click.echo(f"evertap: the taps of domain {domain} could not be made sure of: {error}", err=True)
