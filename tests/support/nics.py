"""Short ways to write NICs in tests."""

from __future__ import annotations

from typing import Any

from evertap.model.nic import Nic, parse_nic

MAC = "52:54:00:12:34:56"


def nic(name: str = "web0", *uplinks: Any, **fields: Any) -> Nic:
    """A checked NIC; uplinks default to eth0, the MAC follows from the name."""
    mac = fields.pop("mac", None) or f"52:54:00:{sum(name.encode()) % 256:02x}:34:{len(name):02x}"
    return parse_nic(name, {"mac": mac, "uplinks": list(uplinks) or ["eth0"], **fields}, f"{name}.toml")
