"""How long, how much and how often: what is granted to a QEMU, so that it can harm nobody but itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LINE: Final = 1 << 20
"""Bytes that one QMP message may have. The longest here are query-pci's, about 1 kB for each PCI device."""
RATE: Final = 1000.0
"""Messages a second, for good; each kilobyte counts as one more."""
BURST: Final = 4000.0
"""Messages at once, counted the same way."""
PARTS: Final = 4096
"""Devices and netdevs of ours in one QEMU."""
WORDS: Final = 300
"""Characters of QEMU's words that are passed on."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds; the tests shorten them."""

    answer: float = 5.0  # for the greeting and for each command
    unplug: float = 10.0  # for the guest to let go of a device
    listening: float = 1.0  # from a socket file's creation (bind) until somebody listens
    backoff: float = 1.0  # before the first new try; doubles
    backoff_most: float = 30.0
    calm: float = 0.1  # between two readings of what a guest can change at will
