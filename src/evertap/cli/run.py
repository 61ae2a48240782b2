"""`evertap run`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

from evertap.cli import completion
from evertap.cli.common import Folders, ask
from evertap.cli.common import as_json as json_option
from evertap.model.errors import EvertapError

if TYPE_CHECKING:
    from evertap.api.client import Client

_VHOST: Final = "/dev/vhost-net"


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option(
    "--nic",
    "nics",
    metavar="NIC",
    multiple=True,
    shell_complete=completion.nics,
    help="A NIC for the VM; may be repeated.",
)
@click.argument("qemu", nargs=-1, required=True, metavar="-- QEMU...")
@json_option
@click.pass_obj
def command(folders: Folders, nics: tuple[str, ...], qemu: tuple[str, ...], as_json: bool) -> None:  # noqa: ARG001
    """Start QEMU with these NICs, at once, whether or not they have uplinks yet.

    QEMU is the command as it would be without evertap; the arguments for the NICs are added behind. This
    process becomes QEMU: signals, terminal and exit code are QEMU's own. When it ends, its NICs are free
    again. The user whom a NIC's definition names as owner needs no other rights. With --json, an error that
    keeps QEMU from starting is printed as JSON.
    """
    names = list(dict.fromkeys(nics))
    added = ask(folders, lambda client: _prepare(client, names)) if names else []
    _check_sockets(added)
    _become([*qemu, *added])


async def _prepare(client: Client, names: list[str]) -> list[str]:
    """Have the NICs' taps opened, for QEMU to inherit; QEMU's arguments for them.

    The daemon opens them, also for root, who could do it by name: one way for all, from any network
    namespace. And QEMU would make a tap that is not there, which nobody then connects. None has to be closed:
    either QEMU has them, or this process ends.
    """
    descriptors: dict[str, list[int]] = {}
    for nic in [await client.nic(name) for name in names]:
        if nic.backend == "tap":
            descriptors[nic.name] = await client.open_tap(nic.name)
            for descriptor in descriptors[nic.name]:
                os.set_inheritable(descriptor, True)
    return await client.arguments(names, descriptors, vhost=os.access(_VHOST, os.R_OK | os.W_OK))


def _check_sockets(arguments: list[str]) -> None:
    """QEMU makes evertap's QMP sockets, with the rights of whoever starts it."""
    from evertap.model.arguments import qmp_sockets

    for path in qmp_sockets(arguments):
        folder = Path(path).parent
        if not os.access(folder, os.W_OK | os.X_OK):
            problem = "you may not make it there" if folder.is_dir() else f"there is no folder {folder}"
            raise EvertapError(
                f"QEMU has to make the QMP socket {path} for evertap, but {problem}: name a path where you "
                'may in the NIC\'s definition, [vm] qmp = "/path"'
            )


def _become(command: list[str]) -> NoReturn:
    """Replace this process by the command."""
    # Python ignores these, and what is ignored stays so.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise EvertapError(f"cannot start {command[0]}: {error.strerror}. Is it installed?") from error
