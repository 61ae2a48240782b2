"""How long and how often: what is granted to libvirt, so that it can delay nobody but its own NICs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds; the tests shorten them."""

    answer: float = 10.0  # for each call
    probe: float = 2.0  # for a call that needs no QEMU, once another one has taken too long
    unplug: float = 10.0  # for the guest to let go of a device
    listening: float = 0.02  # from a socket's creation (bind) until somebody listens; doubles
    backoff_most: float = 30.0
