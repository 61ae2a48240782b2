"""evertap demo: the whole story in two minutes in private network namespaces."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from evertap.cli.common import as_json

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from evertap.lab.demo import Backend, Guest, Step, Story

_PINGS_SHOWN = 60


@click.command("demo")
@click.option(
    "--guest",
    type=click.Choice(["qemu", "builtin"]),
    default="qemu",
    show_default=True,
    help="A real guest, or a small process on the tap that answers pings.",
)
@click.option(
    "--backend",
    type=click.Choice(["tap", "macvtap"]),
    default="tap",
    show_default=True,
    help="A tap spliced to macvlans, or a macvtap behind a hub in QEMU.",
)
@as_json
def command(guest: Guest, backend: Backend, as_json: bool) -> None:
    """Show a guest that keeps its network while its uplink comes, goes and changes.

    Runs in network namespaces of its own and touches nothing of the host's; needs root.
    """
    from evertap.lab.demo import Story
    from evertap.lab.errors import LabError
    from evertap.model.errors import EvertapError

    try:
        if as_json:
            with Story(guest, backend, lambda line: click.echo(line, err=True)) as story:
                from msgspec import to_builtins

                click.echo(json.dumps({"steps": to_builtins(list(story.steps()))}))
            return
        _show(guest, backend)
    except (LabError, TimeoutError) as error:
        raise EvertapError(f"the demo failed: {error}") from error


def _show(guest: Guest, backend: Backend) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from evertap.lab.demo import Story

    console = Console(highlight=False)
    with Story(
        guest, backend, lambda line: console.print(Text("» " + line, style="dim"), soft_wrap=True)
    ) as story:

        def pings() -> Text:
            return _pings(story)

        steps = []
        # The line of pings is alive on a terminal; elsewhere each step shows it once.
        with Live(get_renderable=pings, console=console, refresh_per_second=10, transient=True) as live:
            for step in story.steps():
                steps.append(step)
                console.print(Text(f"✔ {step.title}: {_outcome(step)}", style="bold green"))
                if not console.is_terminal:
                    console.print(pings())
            live.stop()
        console.print(_table(steps))
        unchanged = len({step.boot_id for step in steps}) == 1
        changes = max(step.carrier_changes for step in steps)
        if not unchanged or changes:
            console.print(Text("the guest noticed: another boot id or carrier changes", style="bold red"))
            sys.exit(1)
        console.print(
            Text("The guest noticed nothing: the same boot id throughout, no carrier change.", style="bold")
        )


def _pings(story: Story) -> Text:
    from rich.text import Text

    line = Text("pings ")
    if story.pinger is None:
        return line.append("(not yet)", style="dim")
    # The newest are still under way.
    for answered in story.pinger.recent(_PINGS_SHOWN + 3)[:-3]:
        line.append("•" if answered else "✗", style="green" if answered else "red")
    return line


def _outcome(step: Step) -> str:
    if step.reachable_after is None:
        return "no answer, as expected"
    return f"reachable, {step.lost} pings lost"


def _table(steps: list[Step]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from evertap.lab.demo import INTERVAL

    table = Table(
        title=f"A ping every {INTERVAL * 1000:.0f} ms, from outside",
        caption="reachable: from the start of the change to the first answer. evertap: its part of that, "
        "from the kernel's notification. carrier: changes that the guest has seen.",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("step", no_wrap=True)
    for heading in ("reachable", "lost", "evertap", "boot id", "carrier"):
        table.add_column(heading, justify="right", no_wrap=True)
    for step in steps:
        table.add_row(
            step.title,
            "—" if step.reachable_after is None else f"{step.reachable_after * 1000:.0f} ms",
            "all" if step.reachable_after is None else str(step.lost),
            "—" if step.latency_ms is None else f"{step.latency_ms:.2f} ms",
            step.boot_id[:8],
            str(step.carrier_changes),
        )
    return table
