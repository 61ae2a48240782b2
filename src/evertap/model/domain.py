"""A libvirt domain as evertap sees it."""

from __future__ import annotations

import msgspec


class Domain(msgspec.Struct, frozen=True):
    """One domain: its two descriptions, of which either may be missing."""

    uuid: str
    name: str
    running: bool = False
    live_xml: str = ""  # of the running state; empty while it does not run
    config_xml: str = ""  # of the next start; empty for a transient domain
