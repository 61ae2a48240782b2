"""Socket files: watching for them by inotify, and connecting to exactly the one that was looked at."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from asyncinotify import Event, Inotify, Mask, Watch

_log = logging.getLogger(__name__)

_MASK = (
    Mask.CREATE
    | Mask.DELETE
    | Mask.MOVE
    | Mask.ATTRIB  # for rights given later
    | Mask.DELETE_SELF
    | Mask.MOVE_SELF
    | Mask.ONLYDIR
)
_SELF = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.UNMOUNT | Mask.IGNORED

Identity = tuple[int, int]
"""Device and inode: a socket that somebody listens on keeps its inode, so a new one has another."""


class NoSocketError(Exception):
    """There is something at the path, but nothing to connect to; the text says what."""


def identify(path: str) -> Identity | None:
    """Which socket is at the path; None if there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None


def connect(path: str) -> tuple[socket.socket, Identity]:
    """Connect without waiting.

    Raises NoSocketError; OSError, among them FileNotFoundError, ConnectionRefusedError (nobody listens) and
    BlockingIOError (too many wait already).
    """
    there = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(there)
        if stat.S_ISLNK(found.st_mode):
            # Whoever runs the VM could lead us to another VM's socket.
            raise NoSocketError(f"{path} is a symbolic link; name the socket itself")
        if not stat.S_ISSOCK(found.st_mode):
            raise NoSocketError(f"{path} is no socket")
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # Through the descriptor it is this very socket, and its path may be longer than sun_path.
            connected.connect(f"/proc/self/fd/{there}")
        except BaseException:
            connected.close()
            raise
        return connected, (found.st_dev, found.st_ino)
    finally:
        os.close(there)


class Sockets:
    """Calls back when something has happened to a followed path, or to a folder on the way to it.

    One inotify instance for all paths: a user has 128 of them by default. `trouble` is not empty if not all
    can be watched, and says why.
    """

    def __init__(self) -> None:
        self.trouble = ""
        self._bells: dict[Path, Callable[[], None]] = {}
        self._targets: dict[int, dict[str, set[Path]]] = {}  # watch, name in its folder, paths behind that
        self._inotify: Inotify | None = None
        self._reading: asyncio.Task[None] | None = None

    def follow(self, bells: dict[str, Callable[[], None]]) -> None:
        """Watch these paths and no others. Call it from the event loop."""
        self._bells = {Path(path).absolute(): bell for path, bell in bells.items()}
        if self._inotify is None and bells:
            try:
                self._inotify = Inotify()
            except OSError as error:
                self._complain(error)
                return
            self._reading = asyncio.create_task(self._read(self._inotify), name="evertap-sockets")
        if self._inotify is not None:
            self._arm(self._inotify)

    async def close(self) -> None:
        """Watch nothing any more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._inotify is not None:
            self._inotify.close()
        self._inotify = self._reading = None

    async def _read(self, inotify: Inotify) -> None:
        while True:
            self._take(inotify, await inotify.get())

    def _take(self, inotify: Inotify, event: Event) -> None:
        if event.watch is None:  # the queue overflowed
            self._arm(inotify)
            self._ring(set(self._bells))
            return
        names = self._targets.get(event.watch.wd)
        if names is None:
            return  # the end of a watch that was given up
        if event.name is None:  # the folder itself
            if event.mask & _SELF:
                self._arm(inotify)
            self._ring(set().union(*names.values()))
            return
        paths = names.get(str(event.name), set())
        if any(path.name != str(event.name) or path.parent != event.watch.path for path in paths):
            self._arm(inotify)  # a folder on the way
        self._ring(paths)

    def _ring(self, paths: set[Path]) -> None:
        for path in paths:
            if bell := self._bells.get(path):
                bell()

    def _arm(self, inotify: Inotify) -> None:
        """Watch each path's folder, or the deepest folder on the way to it that exists."""
        self.trouble = ""
        targets: dict[int, dict[str, set[Path]]] = {}
        folders: dict[Path, Watch] = {}
        for path in self._bells:
            if path.parent in folders:  # most sockets have their folder in common
                targets[folders[path.parent].wd].setdefault(path.name, set()).add(path)
                continue
            try:
                watch, name = _watch(inotify, path)
            except OSError as error:
                self._complain(error)
                continue
            if name == path.name:
                folders[path.parent] = watch
            targets.setdefault(watch.wd, {}).setdefault(name, set()).add(path)
        for watch in inotify.watches:
            if watch.wd not in targets:
                with suppress(OSError):  # gone with its folder
                    inotify.rm_watch(watch)
        self._targets = targets

    def _complain(self, error: OSError) -> None:
        self.trouble = f"cannot watch for sockets: {error.strerror}"
        if error.errno in (errno.EMFILE, errno.ENOSPC):
            self.trouble += ". Raise fs.inotify.max_user_watches and fs.inotify.max_user_instances by sysctl"
        _log.error("%s", self.trouble)


def _watch(inotify: Inotify, path: Path) -> tuple[Watch, str]:
    """The watch, and the name to look out for in its folder."""
    for _ in range(10):
        folder, name = path.parent, path.name
        while True:
            try:
                watch = inotify.add_watch(folder, _MASK)
                break
            except (FileNotFoundError, NotADirectoryError):
                folder, name = folder.parent, folder.name
        if folder == path.parent or not (folder / name).is_dir():
            break
        # Made just before the watch stood: nobody would tell.
    return watch, name
