"""What a check says."""

from __future__ import annotations

from typing import Literal, NamedTuple

Result = Literal["ok", "note", "warning", "broken"]


class Check(NamedTuple):
    """`broken`: evertap cannot work; `warning`: it may fail or be disturbed; `note`: worth knowing."""

    name: str
    result: Result
    found: str
    remedy: str = ""
