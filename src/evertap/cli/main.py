"""The command `evertap`: folders, verbs, and the exit code of every outcome."""

from __future__ import annotations

import importlib
import json
import os
import sys
from itertools import takewhile
from pathlib import Path
from typing import Final

import click

from evertap import __version__
from evertap.cli.common import Folders
from evertap.model.errors import DefinitionError, EvertapError, NoSuchNicError

FAILED, USAGE, NOT_REACHABLE, NO_SUCH_NIC, TIMED_OUT = 1, 2, 3, 4, 5
_INTERRUPTED: Final = 130  # as shells have it for SIGINT

_VERBS: Final = {
    "daemon": "run in the foreground, until SIGTERM",
    "define": "add or replace definitions",
    "undefine": "remove definitions",
    "list": "state of all NICs",
    "show": "state of one NIC, with its candidates",
    "uplinks": "the host interfaces and who uses them",
    "connect": "end an administrative disconnection",
    "disconnect": "take a NIC's backend down",
    "retarget": "give a NIC other uplinks while its VM runs",
    "attach": "plug a NIC's device into a running QEMU",
    "detach": "unplug it again",
    "args": "the QEMU arguments for NICs",
    "run": "start QEMU with NICs",
    "plan": "what the daemon would do now",
    "wait": "wait until a NIC is in a state",
    "events": "what happened, when and why",
    "history": "the same of one NIC, from before the daemon started too",
    "adopt": "turn a libvirt domain's direct interfaces into evertap's",
    "release": "give a libvirt domain its direct interfaces back",
    "libvirt-setup": "have libvirt make sure of taps before a domain starts",
    "libvirt-hook": "for libvirt's use: make sure of a domain's taps",
    "doctor": "what is wrong with this host, and how to mend it",
    "demo": "the whole story in two minutes, touching nothing of the host's",
}


class _Verbs(click.Group):
    """Verbs in modules of their own, each imported only when it is asked for: a command starts faster."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command = importlib.import_module(f"evertap.cli.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(_VERBS.items()))


def _folder(name: str, default: str, what: str) -> click.Option:
    return click.Option(
        [f"--{name}-dir"],
        envvar=f"EVERTAP_{name.upper()}_DIR",
        default=default,
        show_default=True,
        show_envvar=True,
        type=click.Path(path_type=Path),
        help=what,
    )


def _folders(config_dir: Path, runtime_dir: Path, state_dir: Path) -> None:
    click.get_current_context().obj = Folders(
        config_dir.absolute(), runtime_dir.absolute(), state_dir.absolute()
    )


_evertap = _Verbs(
    "evertap",
    callback=_folders,
    params=[
        _folder("config", "/etc/evertap", "definitions, in nics.d"),
        _folder("runtime", "/run/evertap", "the daemon's socket"),
        _folder("state", "/var/lib/evertap", "what the daemon remembers"),
    ],
    help="Keep virtual machines' NICs connected to host interfaces that come and go.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage or bad definition, 3 daemon not reachable, "
    "4 no such NIC, 5 timed out. Every verb takes --json.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_evertap = click.version_option(__version__, prog_name="evertap")(_evertap)


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        # Interfaces may have names that are not text.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; its exit code."""
    # What stands behind -- is not ours.
    as_json = "--json" in takewhile(lambda argument: argument != "--", arguments)
    try:
        code = _evertap.main(arguments, prog_name="evertap", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has what it wanted. The interpreter must not try to flush once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except click.UsageError as error:
        return _fail(error, "usage", USAGE, as_json, error.format_message())
    except click.ClickException as error:
        return _fail(error, "failed", FAILED, as_json, error.format_message())
    except (EvertapError, TimeoutError) as error:
        key, code = _kind(error)
        return _fail(error, key, code, as_json, str(error))
    return code if isinstance(code, int) else 0


def _kind(error: Exception) -> tuple[str, int]:
    from evertap.api.errors import NotReachableError, PermissionDeniedError

    match error:
        case NoSuchNicError():
            return "no_such_nic", NO_SUCH_NIC
        case DefinitionError():
            return "bad_definition", USAGE
        case NotReachableError():
            return "not_reachable", NOT_REACHABLE
        case PermissionDeniedError():
            return "permission_denied", FAILED
        case TimeoutError():
            return "timed_out", TIMED_OUT
    return "failed", FAILED


def _fail(error: Exception, key: str, code: int, as_json: bool, message: str) -> int:
    if as_json:
        told = {"error": key, "message": message}
        if isinstance(error, DefinitionError):
            told |= {"file": error.file, "field": error.field, "problem": error.problem}
        click.echo(json.dumps(told), err=True)
    elif isinstance(error, click.UsageError):
        error.show()
    else:
        click.echo(f"evertap: {message}", err=True)
    return code
