"""The one frame that evertap itself sends."""

from __future__ import annotations

import struct
from typing import Final

_ETH_P_RARP: Final = 0x8035
_REVERSE_REQUEST: Final = 3
_SHORTEST: Final = 60


def announcement(mac: str) -> bytes:
    """A broadcast RARP request from and for `mac`, as QEMU's announce-self sends it (RFC 903)."""
    address = bytes.fromhex(mac.replace(":", ""))
    header = b"\xff" * 6 + address + struct.pack("!H", _ETH_P_RARP)
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, _REVERSE_REQUEST)
    return (header + body + address + bytes(4) + address + bytes(4)).ljust(_SHORTEST, b"\0")
