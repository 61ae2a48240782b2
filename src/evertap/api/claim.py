"""The daemon's claim to a runtime folder: one daemon a folder, and its listening socket."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from evertap.api import SOCKET
from evertap.model.errors import EvertapError

_BACKLOG = 128
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def claim(runtime_dir: Path) -> Iterator[socket.socket]:
    """Take the folder for this process and listen on its socket (EvertapError: another daemon has it).

    Clients may connect from now on and wait until they are served. A lock, not the socket, tells whether a
    daemon lives: the kernel lets go of it whenever the daemon dies, and two that start at once cannot both
    have it. The socket of a dead daemon is replaced.
    """
    path = runtime_dir / SOCKET
    with ExitStack() as held:
        try:
            _make(runtime_dir)
            lock = os.open(runtime_dir / "evertap.lock", _LOCK_FLAGS, 0o644)
            held.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise EvertapError(
                    f"another evertap daemon is running in {runtime_dir}; stop it, or name another "
                    "--runtime-dir"
                ) from None
            listener = held.enter_context(socket.socket(socket.AF_UNIX))
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            held.callback(path.unlink, missing_ok=True)
            _open_to_all(path)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise EvertapError(f"cannot listen on {path}: {error.strerror or error}") from error
        listener.setblocking(False)
        yield listener


def _open_to_all(path: Path) -> None:
    """Whoever wants may connect: rights go by who he is. A link in the socket's place is not followed."""
    here = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.chmod(f"/proc/self/fd/{here}", 0o666)  # noqa: PTH101  # ELOOP for a link
    finally:
        os.close(here)


def _make(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True)
        folder.chmod(0o755)  # whatever the umask: everybody may ask
