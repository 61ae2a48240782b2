"""How things look to people: tables with colours on a terminal, plain aligned text elsewhere."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from evertap.model.views import ActionView, EventView, NicView, UplinkView

_COLOURS: Final = {
    "connected": "green",
    "yes": "green",
    "waiting": "yellow",
    "no": "yellow",
    "failed": "red",
    "disconnected": "blue",
}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """The text without what would steer the terminal: names of interfaces may hold anything."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; a state or yes/no has its colour."""
    cells = [[clean(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich(headers, cells)
    else:
        _plain(headers, cells)


def _rich(headers: Sequence[str], rows: list[list[str]]) -> None:
    # 60 ms to import, and only terminals need it.
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        drawn.add_column(header, overflow="fold")
    for row in rows:
        # Text, not str: square brackets in names are no markup.
        drawn.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    Console(highlight=False).print(drawn)


def _plain(headers: Sequence[str], rows: list[list[str]]) -> None:
    lines = [[header.upper() for header in headers], *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def nics(views: Sequence[NicView]) -> None:
    """`list`."""
    if not views:
        click.echo("No NICs are defined. Add one: evertap define NAME.toml")
        return
    rows = [(nic.name, nic.state, nic.uplink or "-", nic.mac, nic.reason) for nic in views]
    table(("NIC", "State", "Uplink", "MAC", "Why"), rows)


def nic(view: NicView) -> None:
    """`show`: a short page."""
    state(view)
    if view.reason:
        click.echo(clean(view.reason))
    if view.problem and view.problem != view.reason:
        click.echo(clean(f"The last good definition is in force, as the file was refused: {view.problem}"))
    facts = {
        "MAC": view.mac,
        "backend": view.backend,
        "mode": view.mode,
        "tap": view.tap or "not made yet",
        "uplinks": " ".join(view.uplinks) + (" (running state only)" if view.live else ""),
        "outages": str(view.outages),
    }
    click.echo()
    for key, value in facts.items():
        click.echo(f"{key:<8} {clean(value)}")
    click.echo()
    rows = [
        (each.uplink, each.interface or "-", each.mode, "yes" if each.usable else "no", each.reason)
        for each in view.candidates
    ]
    table(("Uplink", "Interface", "Mode", "Usable", "Why"), rows)


def state(view: NicView) -> None:
    """`wait`, and the first line of `show`."""
    on = f" to {view.uplink}" if view.uplink else ""
    click.echo(f"{clean(view.name)} is {_coloured(view.state)}{clean(on)} since {view.since}")


def _coloured(state: str) -> str:
    # click drops the colour where there is no terminal, but does not know NO_COLOR (no-color.org).
    return state if os.environ.get("NO_COLOR") else click.style(state, fg=_COLOURS.get(state))


def uplinks(views: Sequence[UplinkView]) -> None:
    """`uplinks`."""
    rows = [
        (
            uplink.name,
            uplink.kind or "-",
            "carrier" if uplink.carrier else "no carrier" if uplink.up else "down",
            uplink.mac,
            str(uplink.mtu),
            " ".join(uplink.nics) or "-",
            " ".join(uplink.standby) or "-",
            " ".join(uplink.wanted_by) or "-",
        )
        for uplink in views
    ]
    table(("Uplink", "Kind", "Link", "MAC", "MTU", "NICs", "Stand-by", "Wanted by"), rows)


def actions(views: Sequence[ActionView]) -> None:
    """`plan`."""
    if not views:
        click.echo("Nothing to do.")
        return
    table(("NIC", "Step"), [(action.nic, action.text) for action in views])


def event(view: EventView) -> None:
    """`events`: one line."""
    parts = [view.time, view.nic, view.event, f"({view.uplink})" if view.uplink else "", view.reason]
    if view.latency_ms is not None:
        parts.append(f"[{view.latency_ms:.2f} ms]")
    click.echo(clean(" ".join(part for part in parts if part)))


def history(views: Sequence[EventView]) -> None:
    """`history`: the events, and what they come to."""
    if not views:
        click.echo("Nothing has happened yet.")
        return
    rows = [
        (
            view.time,
            view.event,
            view.uplink or "-",
            "-" if view.latency_ms is None else f"{view.latency_ms:.2f} ms",
            "-" if view.outage_seconds is None else duration(view.outage_seconds),
            view.reason,
        )
        for view in views
    ]
    table(("Time", "Event", "Uplink", "Latency", "Without uplink", "Why"), rows)
    over = [view.outage_seconds for view in views if view.outage_seconds is not None]
    click.echo()
    if over:
        times = "once" if len(over) == 1 else f"{len(over)} times"
        longest = f", {duration(max(over))} the longest" if len(over) > 1 else ""
        click.echo(f"Without an uplink {times}: {duration(sum(over))} in all{longest}.")
    running = list(takewhile(lambda view: view.event in ("waiting", "failed"), reversed(views)))
    if running:
        click.echo(f"Without an uplink since {running[-1].time}.")
    elif not over:
        click.echo("Never without an uplink.")


def duration(seconds: float) -> str:
    """So many seconds in the two units that matter."""
    if seconds < 1:
        return f"{seconds * 1000:.2f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
