"""evertap libvirt-setup: installs and removes libvirt's hook."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

import click

from evertap.cli.common import Folders, as_json, echo_json
from evertap.model.errors import EvertapError

_MARK: Final = "# installed by evertap libvirt-setup"
_DROP_INS: Final = (6, 5)


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

    The hook is a drop-in, hooks/qemu.d/evertap, beside whatever hook is there. A libvirt before 6.5 has no
    drop-ins: there the hook is hooks/qemu, and one that is there already is kept and called by ours. libvirtd
    looks for hooks when it starts: the first time, restart it.
    """
    hook = hooks_dir / "qemu.d" / "evertap" if _has_drop_ins() else hooks_dir / "qemu"
    try:
        _only_ours(hook)
        if remove:
            _remove(hook)
        else:
            _install(hook, folders)
    except OSError as error:
        raise EvertapError(f"{hook}: {error.strerror}. Are you root?") from error
    if as_json:
        echo_json({"hook": str(hook), "installed": not remove})
    else:
        click.echo(f"removed {hook}" if remove else f"installed {hook}; restart libvirtd so that it looks")


def _has_drop_ins() -> bool:
    """Whether libvirt runs what is in hooks/qemu.d (libvirt.org/hooks.html); if it cannot be asked, yes."""
    try:
        answer = subprocess.run(["virsh", "--version"], capture_output=True, text=True, check=True).stdout
        version = tuple(int(part) for part in answer.strip().split(".")[:2])
    except (OSError, ValueError, subprocess.CalledProcessError):
        return True
    return version >= _DROP_INS


def _install(hook: Path, folders: Folders) -> None:
    given = zip(("config", "runtime", "state"), folders, strict=True)
    evertap = [sys.executable, "-m", "evertap", *(f"--{name}-dir={folder}" for name, folder in given)]
    path = os.environ.get("PYTHONPATH")
    setting = f"PYTHONPATH={shlex.quote(path)} " if path else ""
    hook.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    saved = _saved(hook)
    if hook.exists() and _MARK not in hook.read_text(errors="replace"):
        hook.rename(saved)
    fresh = hook.with_name(f".{hook.name}.new")
    fresh.write_text(
        f"#!/bin/sh\n{_MARK}\nxml=$(cat)\n"
        f'printf "%s\\n" "$xml" | {setting}{shlex.join(evertap)} libvirt-hook "$@"\n'
        f"saved={shlex.quote(str(saved))}\n"
        '[ -x "$saved" ] || exit 0\n'
        'printf "%s\\n" "$xml" | "$saved" "$@"\n'
    )
    fresh.chmod(0o755)
    fresh.replace(hook)


def _remove(hook: Path) -> None:
    saved = _saved(hook)
    if saved.exists():
        saved.replace(hook)
    else:
        hook.unlink(missing_ok=True)


def _saved(hook: Path) -> Path:
    """Where a hook goes that was there before, and is still called. Not in qemu.d: libvirt runs all there."""
    return hook.with_name(f"{hook.name}.before-evertap")


def _only_ours(hook: Path) -> None:
    """In qemu.d our name is ours alone: what somebody else has put there is not touched."""
    if hook.parent.name == "qemu.d" and hook.exists() and _MARK not in hook.read_text(errors="replace"):
        raise EvertapError(f"{hook} was not made by evertap; move it away first")
