"""Watching nics.d for changes, by inotify."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from asyncinotify import Event, Inotify, Mask

from evertap.config.files import is_definition

_log = logging.getLogger(__name__)

QUIET: Final = 0.1
"""Seconds without a change after which the definitions are read: a copy of many files is one change."""
PATIENCE: Final = 1.0
"""Seconds after which they are read although the changes go on."""

_INSIDE = Mask.CLOSE_WRITE | Mask.CREATE | Mask.DELETE | Mask.MOVE
_FOLDERS = Mask.CREATE | Mask.DELETE | Mask.MOVE | Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.ONLYDIR


@asynccontextmanager
async def watch(config_dir: Path, changed: Callable[[], None]) -> AsyncIterator[None]:
    """Call `changed` whenever `config_dir`/nics.d has changed, and once at the start.

    The folders need not exist yet, and may be removed and made anew; `config_dir` has to be absolute. A
    symbolic link among them that is led elsewhere is not noticed: SIGHUP is for that.
    """
    watching = asyncio.ensure_future(_watch(config_dir / "nics.d", _Bell(changed)))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _watch(folder: Path, bell: _Bell) -> None:
    try:
        while True:
            with Inotify() as inotify:
                _arm(inotify, folder)
                bell.ring()  # for what happened before the watch stood
                async for event in inotify:
                    if Mask.IGNORED in event.mask:
                        continue  # follows the end of a watch
                    if _moves_folders(event, folder):
                        break
                    if event.name is None or is_definition(str(event.name)):
                        bell.ring()
    except OSError as error:
        _log.error(
            "cannot watch %s: %s. Raise fs.inotify.max_user_watches and fs.inotify.max_user_instances by "
            "sysctl; until the daemon is started again, SIGHUP reloads the definitions",
            folder,
            error.strerror,
        )
    finally:
        bell.silence()


def _arm(inotify: Inotify, folder: Path) -> None:
    """Watch the folder and its parent, or the deepest folder on the way to it that exists."""
    # From the top down: what is made meanwhile is below a folder that is watched already.
    above = None
    for path in (*reversed(folder.parents), folder):
        try:
            here = inotify.add_watch(path, _FOLDERS | _INSIDE if path == folder else _FOLDERS)
        except (FileNotFoundError, NotADirectoryError):
            return
        except PermissionError:
            if path == folder:
                raise
            continue  # for a daemon without root's rights; the folders nearer to nics.d matter more
        if above and path != folder:
            with suppress(OSError):  # deleted just now
                inotify.rm_watch(above)
        above = here


def _moves_folders(event: Event, folder: Path) -> bool:
    """Whether the folder, or one on the way to it, was made, removed or renamed."""
    if event.watch is None:
        return True  # the queue overflowed
    if event.mask & (Mask.DELETE_SELF | Mask.MOVE_SELF):
        return True
    return event.watch.path != folder and event.path in (folder, *folder.parents)


class _Bell:
    """Calls back once after a burst of changes."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._first = 0.0

    def ring(self) -> None:
        now = self._loop.time()
        if self._timer is None:
            self._first = now
        else:
            self._timer.cancel()
        self._timer = self._loop.call_at(min(now + QUIET, self._first + PATIENCE), self._call)

    def silence(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _call(self) -> None:
        self._timer = None
        self._changed()
