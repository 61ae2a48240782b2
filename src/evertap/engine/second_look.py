"""Looks again at interfaces that appeared down: of an altname given to one, the kernel tells nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from evertap.model.observed import Change

_PAUSES: Final = (1.0, 4.0)
"""Seconds after the appearance, and after the first look; udev gives altnames within the first."""


class SecondLook:
    """Has interfaces read again some time after they appeared, as long as they are down.

    netdev_state_change (net/core/dev.c) notifies of a new altname only if the interface is up.
    """

    def __init__(self, look: Callable[[set[int]], set[int]]) -> None:
        self._look = look  # reads those of these indices that are still down, and gives them
        self._waiting: tuple[set[int], ...] = tuple(set() for _ in _PAUSES)
        self._timers: list[asyncio.TimerHandle | None] = [None for _ in _PAUSES]

    def note(self, change: Change) -> None:
        """Remember the interface of the change, if it has appeared, or got its name, while down."""
        old, new = change
        if new and not new.up and not new.owner and (old is None or old.name != new.name):
            self._add({new.index}, 0)

    def stop(self) -> None:
        """Look no more."""
        for timer in filter(None, self._timers):
            timer.cancel()

    def _add(self, indexes: set[int], turn: int) -> None:
        waiting = self._waiting[turn]
        if not waiting:  # those that come together are looked at together
            loop = asyncio.get_running_loop()
            self._timers[turn] = loop.call_later(_PAUSES[turn], self._due, turn)
        waiting |= indexes

    def _due(self, turn: int) -> None:
        indexes = set(self._waiting[turn])
        self._waiting[turn].clear()
        still_down = self._look(indexes)
        if still_down and turn + 1 < len(_PAUSES):
            self._add(still_down, turn + 1)
