"""libvirt's event loop, in a thread of its own, once a process.

libvirtaio would run it on asyncio's loop, but is not safe with threads: a blocking call, for which we need
threads, registers its descriptors and timers from its own thread (asyncio in debug mode refuses that). And
libvirtd sends each client a keepalive every 5 s, which is answered in C here, without waking our loop.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import libvirt

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_thread: threading.Thread | None = None


def start() -> None:
    """Start it, if it does not run yet, before the first connection. It ends with the process."""
    global _thread
    with _lock:
        if _thread is None:
            libvirt.registerErrorHandler(_ignore, None)
            libvirt.virEventRegisterDefaultImpl()
            _thread = threading.Thread(target=_run, name="evertap-libvirt-events", daemon=True)
            _thread.start()


def _run() -> None:
    try:
        while True:
            libvirt.virEventRunDefaultImpl()  # waits without limit for a descriptor or a timer
    except libvirt.libvirtError:
        _log.exception("libvirt's event loop has ended: nothing is heard from libvirt any more")


def _ignore(_context: None, _error: Any) -> None:
    """Keeps libvirt from printing every error to standard error: they are raised as well."""
