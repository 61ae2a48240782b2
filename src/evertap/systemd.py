"""What systemd is told of the daemon (sd_notify(3)), and its watchdog; without systemd, nobody is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator


def notify(message: str) -> None:
    """Tell systemd, if it has started us."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.sendall(message.encode())


@contextlib.contextmanager
def watchdog() -> Iterator[None]:
    """Show systemd that the event loop turns, twice in each interval that it asks for (WatchdogSec=).

    Where it asks for none, no timer wakes an idle daemon.
    """
    interval = _interval()
    if interval is None:
        yield
        return
    loop = asyncio.get_running_loop()
    timer: asyncio.Handle

    def show() -> None:
        nonlocal timer
        notify("WATCHDOG=1")
        timer = loop.call_later(interval / 2, show)

    timer = loop.call_soon(show)
    try:
        yield
    finally:
        timer.cancel()


def _interval() -> float | None:
    """Seconds after which systemd takes us for hung; None: it does not watch us."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # meant for whoever started us
    try:
        microseconds = int(os.environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 else None
