"""`evertap adopt`."""

from __future__ import annotations

import click

from evertap.cli.adoption import options, work
from evertap.cli.common import Folders
from evertap.cli.common import as_json as json_option


@click.command("adopt")
@options
@json_option
@click.pass_obj
def command(
    folders: Folders, domains: tuple[str, ...], everything: bool, dry_run: bool, live: bool, as_json: bool
) -> None:
    """Turn DOMAIN's interfaces of type='direct' into evertap's, from its next start on or at once."""
    work(
        folders,
        domains,
        everything,
        as_json,
        lambda client, domain: client.adopt(domain, dry_run=dry_run, live=live),
        "would change" if dry_run else "is adopted",
    )
