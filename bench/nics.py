"""The NICs of the benchmark: many, all alike."""

from __future__ import annotations

import resource


def nic_name(number: int) -> str:
    """The name of one of many NICs."""
    return f"vm{number}"


def nic_mac(number: int) -> str:
    """Its MAC address."""
    return f"52:54:00:{(number >> 16) & 255:02x}:{(number >> 8) & 255:02x}:{number & 255:02x}"


def definition(number: int, uplinks: list[str], extra: str = "") -> str:
    """Its definition; `extra` are more lines of TOML."""
    names = ", ".join(f'"{uplink}"' for uplink in uplinks)
    return f'mac = "{nic_mac(number)}"\nuplinks = [{names}]\n{extra}'


def raise_file_limit() -> None:
    """A map takes a descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
