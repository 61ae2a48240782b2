"""Whether systemd's .network and .link files would match a device of evertap's (systemd.network(5))."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple

_Sections = dict[str, dict[str, str]]

# What our devices do not have, or what nobody but ourselves writes with regard to them.
_SPECIFIC: Final = frozenset(
    (
        "MACAddress",
        "PermanentMACAddress",
        "Path",
        "Property",
        "WLANInterfaceType",
        "SSID",
        "BSSID",
        "Firmware",
    )
)


class Device(NamedTuple):
    """What the files may ask for."""

    name: str
    kind: str  # tun, macvlan
    type: str = "ether"


def parse(path: Path) -> _Sections:
    """The sections; keys that come twice are joined, as these files have it."""
    sections: _Sections = {}
    current: dict[str, str] = {}
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return {}
    for line in map(str.strip, text.splitlines()):
        if line.startswith(("#", ";")):
            continue
        if line.startswith("[") and line.endswith("]"):
            current = sections.setdefault(line[1:-1], {})
        elif "=" in line:
            key, _, value = line.partition("=")
            before = current.get(key.strip(), "")
            current[key.strip()] = f"{before} {value.strip()}".strip()
    return sections


def first_match(files: Iterable[Path], device: Device) -> tuple[Path, _Sections] | None:
    """The file that decides about the device: the first that matches."""
    for path in files:
        sections = parse(path)
        if _matches(sections.get("Match", {}), device):
            return path, sections
    return None


def _matches(match: dict[str, str], device: Device) -> bool:
    # Of the rest (Host=, Virtualization=, ...) nothing is known here: it may well be so.
    wanted = {key: value.split() for key, value in match.items() if value}
    if not wanted or _SPECIFIC & wanted.keys():
        return False
    facts = {"Name": device.name, "OriginalName": device.name, "Kind": device.kind, "Driver": device.kind}
    facts |= {"Type": device.type}
    return all(_any(wanted[key], fact) for key, fact in facts.items() if key in wanted)


def _any(globs: list[str], fact: str) -> bool:
    if globs[0].startswith("!"):
        return not _any([globs[0][1:], *globs[1:]], fact)
    return any(fnmatchcase(fact, glob) for glob in globs)
