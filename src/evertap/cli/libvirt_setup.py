"""evertap libvirt-setup: installs and removes libvirt's hook."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Final

import click

from evertap.cli.common import Folders, as_json, echo_json
from evertap.model.errors import EvertapError

_MARK: Final = "# installed by evertap libvirt-setup"
_DROP_IN: Final = "evertap"


@click.command("libvirt-setup")
@click.option("--remove", is_flag=True, help="Remove the hook again.")
@click.option(
    "--hooks-dir",
    type=click.Path(path_type=Path),
    default="/etc/libvirt/hooks",
    show_default=True,
    help="libvirt's folder of hooks.",
)
@as_json
@click.pass_obj
def command(folders: Folders, remove: bool, hooks_dir: Path, as_json: bool) -> None:
    """Have libvirt make sure of NICs' taps before it starts a domain, even when the daemon is down.

    The hook is a drop-in, hooks/qemu.d/evertap (libvirt 6.5 and newer), beside whatever hook is there.
    libvirtd looks for hooks when it starts: the first time, restart it.
    """
    hook = hooks_dir / "qemu.d" / _DROP_IN
    try:
        if remove:
            _remove(hook)
        else:
            _install(hook, folders)
    except OSError as error:
        raise EvertapError(f"{hook}: {error.strerror}. Are you root?") from error
    if as_json:
        echo_json({"hook": str(hook), "installed": not remove})
    else:
        click.echo(
            f"removed {hook}" if remove else f"installed {hook}; restart libvirtd to have it looked for"
        )


def _install(hook: Path, folders: Folders) -> None:
    _only_ours(hook)
    given = zip(("config", "runtime", "state"), folders, strict=True)
    evertap = [sys.executable, "-m", "evertap", *(f"--{name}-dir={folder}" for name, folder in given)]
    path = os.environ.get("PYTHONPATH")
    setting = f"PYTHONPATH={shlex.quote(path)} " if path else ""
    hook.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = hook.with_name(f".{hook.name}.new")
    fresh.write_text(f'#!/bin/sh\n{_MARK}\n{setting}{shlex.join(evertap)} libvirt-hook "$@"\nexit 0\n')
    fresh.chmod(0o755)
    fresh.replace(hook)


def _remove(hook: Path) -> None:
    _only_ours(hook)
    hook.unlink(missing_ok=True)


def _only_ours(hook: Path) -> None:
    """A file of that name that somebody else has made is not touched."""
    if hook.exists() and _MARK not in hook.read_text(errors="replace"):
        raise EvertapError(f"{hook} was not made by evertap; move it away first")
