"""Repeats a NIC's announcement, as QEMU's announce-self does: a switch port may drop the first."""

from __future__ import annotations

import asyncio
from typing import Final

from evertap.engine.ports import Kernel
from evertap.model.actions import Announce

_PAUSES: Final = (0.05, 0.15, 0.25, 0.35)
"""Seconds between rounds, as in AnnounceParameters (initial 50 ms, step 100 ms, 5 rounds; qapi/net.json)."""


class Announcer:
    """Runs the repetitions; a newer announcement of the NIC ends those of an older one."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def announce(self, action: Announce) -> None:
        """Schedule the rounds that follow the first."""
        self.cancel(action.nic)
        self._schedule(action, 0)

    def cancel(self, nic: str) -> None:
        """Announce the NIC no more."""
        if timer := self._timers.pop(nic, None):
            timer.cancel()

    def stop(self) -> None:
        """Announce nothing more."""
        for nic in list(self._timers):
            self.cancel(nic)

    def _schedule(self, action: Announce, turn: int) -> None:
        loop = asyncio.get_running_loop()
        self._timers[action.nic] = loop.call_later(_PAUSES[turn], self._send, action, turn)

    def _send(self, action: Announce, turn: int) -> None:
        self._kernel.announce(action)
        del self._timers[action.nic]
        if turn + 1 < len(_PAUSES):
            self._schedule(action, turn + 1)
