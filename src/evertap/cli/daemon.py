"""`evertap daemon`."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address

import click

from evertap.cli.common import Folders
from evertap.cli.common import as_json as json_option


def _address(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """The IP address and the port of ADDRESS:PORT."""
    if value is None:
        return None
    host, _, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = IPv6Address(host[1:-1]) if bracketed else IPv4Address(host)
        number = int(port) if re.fullmatch("[0-9]{1,5}", port) else 0
        if not 1 <= number <= 65535:
            raise ValueError(port)
    except ValueError:
        raise click.BadParameter(
            f'found "{value}"; allowed: an IP address and a port, such as 127.0.0.1:9177 or [::1]:9177'
        ) from None
    return str(address), number


@click.command("daemon")
@click.option(
    "--libvirt-uri",
    default="qemu:///system",
    show_default=True,
    help='The libvirt to follow, where evertap[libvirt] is installed; "none" for none.',
)
@click.option(
    "--metrics",
    envvar="EVERTAP_METRICS",
    show_envvar=True,
    metavar="ADDRESS:PORT",
    callback=_address,
    help="Serve metrics for Prometheus there, at /metrics; without it, nowhere.",
)
@click.option("--replug-all", is_flag=True, help="Replug lost direct interfaces of all domains.")
@json_option
@click.pass_obj
def command(
    folders: Folders,
    libvirt_uri: str,
    metrics: tuple[str, int] | None,
    replug_all: bool,
    as_json: bool,  # noqa: ARG001
) -> None:
    """Run the daemon in the foreground.

    SIGHUP or a change in nics.d rereads the definitions; SIGTERM stops it and leaves traffic flowing. With
    --json, the error that keeps it from starting is printed as JSON.
    """
    from evertap.daemon import run

    run(
        folders.config,
        folders.runtime,
        folders.state,
        libvirt_uri,
        replug_all=replug_all,
        metrics=metrics,
    )
