"""What `adopt` and `release` share: which domains, and telling what comes of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from evertap.cli.common import Folders, ask, echo_json
from evertap.cli.render import clean
from evertap.model.views import AdoptionView

if TYPE_CHECKING:
    from evertap.api.client import Client


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments and options of both verbs."""
    decorators = (
        click.argument("domains", nargs=-1, metavar="DOMAIN..."),
        click.option("--all", "everything", is_flag=True, help="All domains."),
        click.option("--dry-run", is_flag=True, help="Only show what would be changed."),
        click.option("--live", is_flag=True, help="At once, by replugging: the guest sees it."),
    )
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def work(
    folders: Folders,
    domains: tuple[str, ...],
    everything: bool,
    as_json: bool,
    change: Callable[[Client, str], Awaitable[AdoptionView]],
    verb: str,
) -> None:
    """Change the domains one after another, and tell."""
    if bool(domains) == everything:
        raise click.UsageError("name domains, or say --all")

    async def changes(client: Client) -> list[AdoptionView]:
        names = await client.domains() if everything else domains
        return [await change(client, name) for name in names]

    views = ask(folders, changes)
    if as_json:
        echo_json({"domains": views})
        return
    for view in views:
        _tell(view, verb)


def _tell(view: AdoptionView, verb: str) -> None:
    nics = ", ".join(view.nics)
    click.echo(f"{clean(view.domain)}: " + (f"{verb} ({clean(nics)})" if nics else "nothing to do"))
    for title, lines in (("changes", view.changes), ("is lost", view.losses), ("stays", view.left)):
        for line in lines:
            click.echo(f"  {title}: {clean(line)}")
    if view.difference and verb == "would change":
        click.echo(view.difference)
