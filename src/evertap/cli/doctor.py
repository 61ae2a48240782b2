"""`evertap doctor`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import click

from evertap.cli.common import Folders, echo_json
from evertap.cli.common import as_json as json_option
from evertap.cli.render import clean

if TYPE_CHECKING:
    from evertap.doctor.check import Check

_COLOURS: Final = {"ok": "green", "note": "blue", "warning": "yellow", "broken": "red"}
_WORST_FIRST: Final = ("broken", "warning", "note", "ok")
_FAILED: Final = 1


@click.command("doctor")
@json_option
@click.pass_obj
def command(folders: Folders, as_json: bool) -> int:
    """Check kernel, rights, QEMU, libvirt, and programs that would fight over the interfaces.

    Says how to mend each, changes nothing, and works with and without a daemon. What a user may not know is
    left for root. The exit code is 1 if something is broken.
    """
    from evertap.doctor import examine

    checks = list(examine(folders.config, folders.runtime))
    if as_json:
        echo_json([check._asdict() for check in checks])
    else:
        _print(sorted(checks, key=lambda check: _WORST_FIRST.index(check.result)))
    return _FAILED if any(check.result == "broken" for check in checks) else 0


def _print(checks: list[Check]) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        word = f"{check.result:<7}"
        if not os.environ.get("NO_COLOR"):
            word = click.style(word, fg=_COLOURS[check.result])
        click.echo(f"{word}  {clean(check.name):<{width}}  {clean(check.found)}")
        if check.remedy:
            click.echo(f"{'':<7}  {'':<{width}}  → {clean(check.remedy)}")
    counts = [sum(check.result == each for check in checks) for each in _WORST_FIRST]
    click.echo(", ".join(f"{count} {each}" for count, each in zip(counts, _WORST_FIRST, strict=True)))
