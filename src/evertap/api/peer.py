"""Who is at the other end of a connection, and whether he may change things."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from collections import Counter
from typing import Final, NamedTuple

GROUP: Final = "evertap"
"""Its members may change things, as root and the daemon's own user may. Looked up when the daemon starts."""

_SO_PEERGROUPS: Final = 59  # asm-generic/socket.h, Linux 4.13
_BUFFER: Final = 1024  # bytes; all that Python lets getsockopt have: 256 groups


class Peer(NamedTuple):
    """A client's process, as the kernel saw it when it connected (unix(7))."""

    uid: int
    groups: frozenset[int]  # its primary and supplementary groups

    def may_change(self, group: int | None) -> bool:
        """Whether it may change things; `group` is the id of GROUP."""
        return self.uid in (0, os.geteuid()) or group in self.groups


def peer_of(connection: socket.socket) -> Peer:
    """The peer of a connected Unix socket.

    The groups are the process's own (SO_PEERGROUPS): a look-up in the user database could block the loop, and
    would miss groups taken on by newgrp.
    """
    _pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _BUFFER)
    except OSError:  # more groups than that: only the primary one counts
        data = b""
    return Peer(uid, frozenset((gid, *struct.unpack(f"{len(data) // 4}I", data))))


def group_id() -> int | None:
    """The id of GROUP; None if there is no such group."""
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def is_user(uid: int, name: str) -> bool:
    """Whether the user of that name has this id. Asks the user database, so it may block."""
    try:
        return pwd.getpwnam(name).pw_uid == uid
    except KeyError:
        return False


class Places:
    """A number of places, shared so that nobody can lock others out by taking them all.

    Of those who may not change things, one user has at most a quarter, and all together three quarters.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._taken = 0
        self._of_user: Counter[int] = Counter()  # of those who may not change things

    def take(self, uid: int, trusted: bool) -> bool:
        """Take a place; false if there is none. `trusted`: he may change things."""
        if self._taken >= (self._number if trusted else self._number * 3 // 4):
            return False
        if not trusted:
            if self._of_user[uid] >= max(self._number // 4, 1):
                return False
            self._of_user[uid] += 1
        self._taken += 1
        return True

    def leave(self, uid: int, trusted: bool) -> None:
        """Give it back."""
        self._taken -= 1
        if not trusted:
            self._of_user[uid] -= 1
            if not self._of_user[uid]:
                del self._of_user[uid]  # uids are many
