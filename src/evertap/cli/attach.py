"""`evertap attach`."""

from __future__ import annotations

from pathlib import Path

import click

from evertap.cli import completion
from evertap.cli.common import Folders, ask, echo_changed
from evertap.cli.common import as_json as json_option


@click.command("attach")
@click.argument("nic", shell_complete=completion.nics)
@click.option(
    "--qmp",
    metavar="SOCKET",
    type=click.Path(path_type=Path),
    help="A QMP socket of the running QEMU that nobody else uses: each serves one client.",
)
@click.option(
    "--domain",
    metavar="NAME",
    shell_complete=completion.domains,
    help="A libvirt domain, running or not.",
)
@json_option
@click.pass_obj
def command(folders: Folders, nic: str, qmp: Path | None, domain: str | None, as_json: bool) -> None:
    """Plug a NIC's device into a running QEMU, or into a libvirt domain.

    The guest sees it, even while no uplink exists yet.
    """
    if (qmp is None) == (domain is None):
        raise click.UsageError("give either --qmp SOCKET or --domain NAME")
    if domain is not None:
        name = domain
        ask(folders, lambda client: client.attach_domain(nic, name))
        echo_changed([nic], as_json, f"{nic} is attached to the domain {name}")
        return
    assert qmp is not None
    socket = str(qmp.absolute())  # the daemon has another working folder
    ask(folders, lambda client: client.attach(nic, socket))
    echo_changed([nic], as_json, f"{nic} is attached to the QEMU at {socket}")
