"""What `adopt` and `release` share: which domains, and telling what comes of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from evertap.cli import completion
from evertap.cli.common import Folders, ask, echo_json
from evertap.cli.common import as_json as json_option
from evertap.cli.render import clean
from evertap.model.views import AdoptionView

if TYPE_CHECKING:
    from evertap.api.client import Client

    Change = Callable[[Client, str, bool, bool], Awaitable[AdoptionView]]


def adoption(verb: str, summary: str, change: Change, done: str) -> click.Command:
    """The command `verb`; `change` is given domain, dry_run and live."""

    @click.command(verb, help=summary)
    @click.argument("domains", nargs=-1, metavar="DOMAIN...", shell_complete=completion.domains)
    @click.option("--all", "everything", is_flag=True, help="All domains.")
    @click.option("--dry-run", is_flag=True, help="Only show what would be changed.")
    @click.option("--live", is_flag=True, help="At once, by replugging: the guest sees it.")
    @json_option
    @click.pass_obj
    def command(
        folders: Folders, domains: tuple[str, ...], everything: bool, dry_run: bool, live: bool, as_json: bool
    ) -> None:
        if bool(domains) == everything:
            raise click.UsageError("name domains, or say --all")

        async def changes(client: Client) -> list[AdoptionView]:
            names = await client.domains() if everything else domains
            return [await change(client, name, dry_run, live) for name in names]

        views = ask(folders, changes)
        if as_json:
            echo_json({"domains": views})
            return
        for view in views:
            _tell(view, "would change" if dry_run else done, dry_run)

    return command


def _tell(view: AdoptionView, what: str, with_difference: bool) -> None:
    nics = ", ".join(view.nics)
    click.echo(f"{clean(view.domain)}: " + (f"{what} ({clean(nics)})" if nics else "nothing to do"))
    for title, lines in (("changes", view.changes), ("is lost", view.losses), ("stays", view.left)):
        for line in lines:
            click.echo(f"  {title}: {clean(line)}")
    if view.difference and with_difference:
        click.echo(view.difference)
