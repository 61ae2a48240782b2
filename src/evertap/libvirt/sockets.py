"""Where libvirt listens, and watching for that by inotify."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from asyncinotify import Inotify, Mask

from evertap.model.errors import EvertapError

_log = logging.getLogger(__name__)

_NAMES = ("libvirt-sock", "virtqemud-sock")
"""Of the one daemon for all (libvirtd), and of the modular daemon for QEMU."""

_MASK = (
    Mask.CREATE
    | Mask.DELETE
    | Mask.MOVE
    | Mask.ATTRIB  # for rights given later
    | Mask.DELETE_SELF
    | Mask.MOVE_SELF
    | Mask.ONLYDIR
)
_SELF = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.UNMOUNT


def candidates(uri: str) -> list[Path]:
    """The sockets at which a URI's libvirt may listen; EvertapError if it is not QEMU's on this host."""
    parts = urlsplit(uri)
    if parts.scheme not in ("qemu", "qemu+unix") or parts.netloc:
        raise EvertapError(
            f'libvirt URI "{uri}": only QEMU on this host can be followed, such as qemu:///system'
        )
    if named := parse_qs(parts.query).get("socket"):
        return [Path(named[0]).absolute()]
    if parts.path == "/session":
        runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
        return [Path(runtime, "libvirt", name) for name in _NAMES]
    return [Path("/run/libvirt", name) for name in _NAMES]


def identify(paths: Sequence[Path]) -> frozenset[tuple[int, int]]:
    """Which sockets there are (device and inode: one that is made anew has another)."""
    found = set()
    for path in paths:
        try:
            state = path.stat()
        except OSError:
            continue
        if stat.S_ISSOCK(state.st_mode):
            found.add((state.st_dev, state.st_ino))
    return frozenset(found)


async def watch(paths: Sequence[Path], touched: Callable[[], None]) -> None:
    """Call `touched` at the start and whenever something has happened to one of the paths, until cancelled.

    Folders on the way may be missing, and made later. Returns if that cannot be watched.
    """
    try:
        while True:
            with Inotify() as inotify:
                names = set().union(*(_arm(inotify, path) for path in paths))
                touched()  # for what happened before the watches stood
                async for event in inotify:
                    if event.watch is None or event.mask & _SELF:
                        break  # the queue overflowed, or a folder is gone
                    if event.path in names:
                        touched()
                        if event.path not in paths:
                            break  # a folder on the way
    except OSError as error:
        _log.error(
            "cannot watch for libvirt's socket: %s. Raise fs.inotify.max_user_watches and "
            "fs.inotify.max_user_instances by sysctl; until the daemon is started again, libvirt is looked "
            "for now and then",
            error.strerror,
        )


def _arm(inotify: Inotify, path: Path) -> set[Path]:
    """Watch the path's folder, or the deepest folder on the way to it that exists; what to look out for."""
    while True:
        wanted = path
        while True:
            try:
                inotify.add_watch(wanted.parent, _MASK)
                break
            except (FileNotFoundError, NotADirectoryError):
                wanted = wanted.parent
        if wanted == path or not wanted.is_dir():
            return {wanted}
        # Made just before the watch stood: nobody would tell.
