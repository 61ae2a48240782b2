"""The daemon: whether it answers, how its NICs are, and what starts it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from evertap.api import SOCKET
from evertap.api.client import connect
from evertap.api.peer import GROUP, group_id
from evertap.doctor.check import Check
from evertap.doctor.host import Host
from evertap.model.errors import EvertapError
from evertap.model.views import NicView
from evertap.rights import meddlers

_PATIENCE: Final = 5.0  # seconds
_UNIT: Final = "evertap.service"


def checks(host: Host, config_dir: Path, runtime_dir: Path) -> Iterator[Check]:
    """The daemon, its folders, its socket, its group, its unit."""
    unit = _unit(host)
    for folder in (config_dir, runtime_dir):
        if problem := meddlers(folder):
            found = f"{folder} {problem}: the daemon does not start with it"
            yield Check("folder", "broken", found, f"chown root: {folder}; chmod go-w {folder}")
    try:
        nics = asyncio.run(_nics(runtime_dir))
    except (EvertapError, TimeoutError) as error:
        start = f"systemctl start {_UNIT}" if unit and unit.result == "ok" else "evertap daemon"
        yield Check("daemon", "warning", f"does not answer: {_reason(error)}", start)
    else:
        yield Check("daemon", "ok", f"answers at {runtime_dir / SOCKET}; it has {len(nics)} NICs")
        yield from (
            Check("NIC", "warning", f"{nic.name} has failed: {nic.reason}", f"evertap show {nic.name}")
            for nic in nics
            if nic.state == "failed"
        )
        yield _socket(runtime_dir / SOCKET)
    yield _group()
    if unit:
        yield unit


def _reason(error: Exception) -> str:
    return str(error).partition(". Start it")[0] or f"it has not for {_PATIENCE:g} s"


async def _nics(runtime_dir: Path) -> list[NicView]:
    async with asyncio.timeout(_PATIENCE), connect(runtime_dir) as client:
        return await client.nics()


def _socket(path: Path) -> Check:
    """Who connects is told apart by the kernel, so everybody may: the file's rights keep nobody out."""
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        return Check("socket", "note", f"{path}: {error.strerror}")
    if mode & 0o006 != 0o006:
        remedy = f"chmod 666 {path}: root and group {GROUP} may change things, others only ask"
        return Check("socket", "warning", f"{path} has mode {mode:o}: users cannot ask", remedy)
    return Check("socket", "ok", f"everybody may ask; root and group {GROUP} may change things")


def _group() -> Check:
    if group_id() is None:
        found = f"there is no group {GROUP}: only root may change things"
        return Check("group", "note", found, f"groupadd --system {GROUP}, and restart the daemon")
    return Check("group", "ok", f"members of group {GROUP} may change things")


def _unit(host: Host) -> Check | None:
    if not host.path("/run/systemd/system").is_dir():
        return None
    enabled = host.run("systemctl", "is-enabled", _UNIT).output
    active = host.run("systemctl", "is-active", _UNIT).output
    if enabled not in ("enabled", "enabled-runtime"):
        word = f"{_UNIT} is {enabled or 'not installed'}: the daemon does not start with the host"
        return Check("unit", "note", word, f"systemctl enable --now {_UNIT}")
    if active == "failed":
        return Check("unit", "warning", f"{_UNIT} has failed", f"journalctl -u {_UNIT}")
    return Check("unit", "ok", f"{_UNIT} is enabled and {active or 'in an unknown state'}")
