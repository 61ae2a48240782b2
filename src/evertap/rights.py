"""What the daemon may do, and who else could meddle with its folders: checked once, when it starts."""

from __future__ import annotations

import logging
import os
import pwd
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from evertap.api.peer import group_id
from evertap.model.errors import EvertapError

_log = logging.getLogger(__name__)

USER: Final = "evertap"
"""The user that the packaged unit runs the daemon as."""


class Capability(NamedTuple):
    """A capability of the daemon's (capabilities(7))."""

    name: str
    number: int
    purpose: str


NEEDED: Final = (
    Capability("CAP_NET_ADMIN", 12, "to make taps, macvlans and their programs"),
    Capability("CAP_NET_RAW", 13, "to announce NICs to the network"),
    Capability("CAP_SYS_ADMIN", 21, "to find the maps of the taps that are there"),
)
"""Without one of these the daemon does not start. CAP_SYS_ADMIN includes CAP_BPF."""

WANTED: Final = (
    Capability(
        "CAP_DAC_OVERRIDE",
        1,
        "to open macvtaps, to reach QMP sockets of other users' QEMUs, and to change definitions that root "
        "wrote",
    ),
)
"""Without these it starts, and says what will not work."""


def check_capabilities() -> None:
    """EvertapError, with the names, if the process lacks what the daemon needs."""
    if lacking := missing(NEEDED):
        raise EvertapError(
            f"the daemon lacks {_told(lacking)}: the daemon has to run as root, or as evertap.service runs it"
        )
    if lacking := missing(WANTED):
        _log.warning("the daemon lacks %s: that will fail", _told(lacking))


def missing(capabilities: Iterable[Capability]) -> list[Capability]:
    """Those of them that are not effective."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
            return [each for each in capabilities if not effective >> each.number & 1]
    raise AssertionError("proc(5) has no CapEff")


def _told(capabilities: Iterable[Capability]) -> str:
    return ", ".join(f"{each.name} ({each.purpose})" for each in capabilities)


def check_folder(folder: Path) -> None:
    """EvertapError if a user could exchange what the daemon keeps in it, by links or otherwise.

    That may only root, the daemon's own user, and those who may change things anyway. No folder is fine.
    """
    if problem := meddlers(folder):
        raise EvertapError(
            f"{folder} {problem}, who could mislead the daemon. Name another folder, or mend it: "
            f"chown root: {folder}; chmod go-w {folder}"
        )


def meddlers(folder: Path) -> str:
    """Who else can change what is in the folder, in words; empty: nobody."""
    try:
        link, found = folder.lstat(), folder.stat()
    except FileNotFoundError:
        return ""
    for owner in (link.st_uid, found.st_uid):  # a link is his who made it: he can lead it elsewhere
        if owner not in (0, os.geteuid(), _user_id()):
            return f"belongs to user {owner}"
    if found.st_mode & stat.S_IWOTH:
        return "can be written by every user"
    if found.st_mode & stat.S_IWGRP and found.st_gid not in (0, os.getegid(), group_id()):
        return f"can be written by group {found.st_gid}"
    return ""


def _user_id() -> int | None:
    try:
        return pwd.getpwnam(USER).pw_uid
    except KeyError:
        return None
