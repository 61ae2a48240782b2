"""What libvirt's `qemu` hook does: before a domain starts, its taps exist, with the daemon or without it."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import Final

from evertap.api.client import connect
from evertap.api.errors import NotReachableError
from evertap.config.store import Store
from evertap.kernel.codec import del_link
from evertap.kernel.rtnetlink import Rtnetlink
from evertap.kernel.tap import make_tap
from evertap.model.domain_nics import taps_of
from evertap.model.domain_parse import parse_domain, tap_names
from evertap.model.nic import Nic

_log = logging.getLogger(__name__)

_PATIENCE: Final = 10.0
"""Seconds for the daemon to make the taps; libvirt waits for its hook without a limit of its own."""


def prepare(xml: str, config_dir: Path, runtime_dir: Path, state_dir: Path) -> None:
    """Make sure of the taps of the domain that libvirt is about to start. Raises whatever goes wrong."""
    try:
        asyncio.run(_by_daemon(xml, runtime_dir))
    except (NotReachableError, TimeoutError) as error:
        _log.warning("%s; making the taps without it", error)
        _by_ourselves(xml, Store(config_dir, runtime_dir, state_dir))


async def _by_daemon(xml: str, runtime_dir: Path) -> None:
    async with asyncio.timeout(_PATIENCE), connect(runtime_dir) as client:
        await client.prepare_domain(xml)


def _by_ourselves(xml: str, store: Store) -> None:
    domain = parse_domain(xml)
    wanted: dict[str, Nic] = {**store.load().nics, **taps_of(domain)}
    with Rtnetlink() as rtnetlink:
        for name in tap_names(xml):
            if name in wanted and not _exists(name):
                # Macvlans of a tap that is gone lead to it, and would never lead to the new one.
                for link in rtnetlink.dump_links():
                    if link.owner == name:
                        rtnetlink.request([[del_link(link.index)]])
                make_tap(wanted[name], rtnetlink).close()


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True
