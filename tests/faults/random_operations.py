"""Random operations from a seed. Each is a tuple that can be printed, and carried out on any host."""

from __future__ import annotations

import random
from typing import Any, Final

Operation = tuple[Any, ...]
"""Name of a method of World or Run, and its arguments."""

PAUSE: Final[Operation] = ("pause",)

_UPLINKS: Final = [f"u{number}" for number in range(20)]
_BRIDGES: Final = [f"br{number}" for number in range(4)]
_ALTNAMES: Final = [f"alt{number}" for number in range(4)]
_MACVLANS: Final = [f"m{number}" for number in range(4)]
_MACS: Final = [f"02:00:00:00:0a:{number:02x}" for number in range(6)]
_INDEXES: Final = range(100, 112)
_MTUS: Final = (1280, 1400, 1500, 1500, 1600, 9000)
_MODES: Final = ("bridge", "bridge", "vepa", "private")

_MEDDLING: Final = ("tap-down", "tap-rename", "tap-mtu", "tap-delete", "down", "mtu", "mac", "delete")
_BURSTS: Final = (1, 3, 10, 25)
"""Operations between two pauses."""

_WEIGHTS: Final = {
    "add": 80,
    "bridge": 12,
    "delete": 70,
    "again": 40,
    "rename": 60,
    "swap": 25,
    "away": 35,
    "add_away": 15,
    "back": 50,
    "up": 70,
    "down": 50,
    "bounce": 20,
    "carrier": 90,
    "mac": 40,
    "mtu": 50,
    "altname": 30,
    "alias": 10,
    "promisc": 10,
    "enslave": 40,
    "free": 40,
    "foreign": 20,
    "meddle": 25,
    "hold": 10,
    "let_go": 10,
    "define": 60,
    "file": 15,
    "undefine": 30,
    "retarget": 60,
    "disconnect": 12,
    "connect": 14,
    "kill": 4,
    "stop": 1,
}


class _Guess:
    """Which names there are, if the kernel agrees to all: most operations should not be refused."""

    def __init__(self) -> None:
        self.here: set[str] = set()
        self.away: set[str] = set()
        self.defined: set[int] = set()

    def take(self, kind: str, *arguments: Any) -> None:
        """The operation has been drawn."""
        name = arguments[0] if arguments else None
        if kind in ("add", "bridge", "foreign"):
            self.here.add(str(name))
        elif kind == "delete":
            self.here.discard(str(name))
        elif kind == "rename":
            self.here.discard(str(name))
            self.here.add(str(arguments[1]))
        elif kind == "away":
            self.here.discard(str(name))
            self.away.add(str(name))
        elif kind == "add_away":
            self.away.add(str(name))
        elif kind == "back":
            self.away.discard(str(name))
            self.here.add(str(name))
        elif kind == "define" and isinstance(name, int):
            self.defined.add(name)
        elif kind == "undefine" and isinstance(name, int):
            self.defined.discard(name)


def generate(seed: int, count: int, nics: int) -> list[Operation]:
    """`count` operations on `nics` NICs, with pauses in between that do not count."""
    chance, guess = random.Random(seed), _Guess()
    drawn: list[Operation] = [("add", name, 0, chance.random() < 0.8, "", 1500) for name in _UPLINKS[:14]]
    drawn += [("bridge", name, True) for name in _BRIDGES[:3]]
    drawn += [("define", number, definition(chance, number)) for number in range(nics)]
    for operation in drawn:
        guess.take(*operation)
    kinds, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    while len(drawn) < count:
        (kind,) = chance.choices(kinds, weights)
        operation = _operation(chance, kind, nics, guess)
        guess.take(*operation)
        drawn.append(operation)
    made: list[Operation] = []
    place = 0
    while place < count:
        burst = chance.choice(_BURSTS)
        made += [*drawn[place : min(place + burst, count)], PAUSE]
        place += burst
    return made


def _operation(chance: random.Random, kind: str, nics: int, guess: _Guess) -> Operation:
    some, nic = chance.choice, chance.randrange(nics)
    if kind not in ("define", "file") and guess.defined and chance.random() < 0.9:
        nic = some(sorted(guess.defined))
    name = some(sorted(guess.here) or _UPLINKS) if chance.random() < 0.95 else some(_UPLINKS)
    new = some(sorted({*_UPLINKS} - guess.here) or _UPLINKS)
    if chance.random() < 0.07:  # others take the name that a NIC's tap has, or a bridge's
        new = some([*_BRIDGES, f"nic:{nic}"])
    arguments: dict[str, tuple[Any, ...]] = {
        "add": (new, some(_INDEXES) if chance.random() < 0.3 else 0, chance.random() < 0.6, "", some(_MTUS)),
        "bridge": (some(_BRIDGES) if chance.random() < 0.8 else new, chance.random() < 0.7),
        "again": (name, chance.random() < 0.6),
        "rename": (name, new),
        "swap": (name, some(sorted(guess.here) or _UPLINKS)),
        "add_away": (new, some(_INDEXES)),
        "back": (some(sorted(guess.away - guess.here or guess.away) or _UPLINKS),),
        "carrier": (name, chance.random() < 0.6),
        "mac": (name, some(_MACS) if chance.random() < 0.8 else mac_of(nic)),
        "mtu": (name, some(_MTUS)),
        "altname": (name, some(_ALTNAMES), chance.random() < 0.7),
        "alias": (name, some(("office", "", "evertap"))),
        "promisc": (name, chance.random() < 0.5),
        "enslave": (name, some(_BRIDGES)),
        "foreign": (
            some([*_MACVLANS, new, f"nic:{nic}"]),
            name,
            some((mac_of(nic), "02:00:00:00:0b:01")),
            some((*_MODES, "passthru")),
        ),
        "meddle": (nic, some(_MEDDLING)),
        "hold": (nic,),
        "let_go": (nic,),
        "define": (nic, definition(chance, nic)),
        "file": (nic, definition(chance, nic) if chance.random() < 0.7 else None),
        "undefine": (nic,),
        "retarget": (nic, _uplinks(chance, command_line=True), chance.random() < 0.4),
        "disconnect": (nic,),
        "connect": (nic,),
        "kill": (),
        "stop": (),
    }
    if kind == "add" and chance.random() < 0.3:
        arguments["add"] = (*arguments["add"][:3], some(_MACS), 1500)
    return (kind, *arguments.get(kind, (name,)))


def mac_of(number: int) -> str:
    """The MAC address of a NIC."""
    return f"52:54:00:00:00:{number:02x}"


def definition(chance: random.Random, number: int) -> dict[str, Any]:
    """A definition of the NIC: what determines what is right, with no delays (but for a few NICs)."""
    made: dict[str, Any] = {"mac": mac_of(number), "failback_delay": 0, "flap_hold": 0}
    if number % 12 == 11:  # what it is to be on depends on the past: any usable uplink is right
        made |= {"failback_delay": chance.choice((0.2, -1)), "flap_hold": chance.choice((0, 0.5))}
    if number % 17 == 16:
        return {**made, "backend": "macvtap", "uplinks": _uplinks(chance)}
    if number % 16 == 15:  # an interface in mode passthru may be named so by one NIC only
        return {**made, "mode": "passthru", "uplinks": [{"mac": _MACS[number // 16]}, f"u{number % 20}*"]}
    return {
        **made,
        "mode": chance.choice(_MODES),
        "failover": chance.choice(("hot", "hot", "cold")),
        "mtu": chance.choice((1400, 1500, 1500, 9000)),
        "spoof_check": chance.random() < 0.8,
        "bring_up": chance.random() < 0.7,
        "announce": chance.random() < 0.5,
        "uplinks": _uplinks(chance),
    }


def _uplinks(chance: random.Random, *, command_line: bool = False) -> list[Any]:
    """One to four uplinks, as a definition's list or as the command line's words."""
    some = chance.choice
    drawn: dict[tuple[str, str], str] = {}
    for _ in range(some((1, 2, 2, 3, 4))):
        key = some(("name",) * 7 + ("mac", "bridge"))
        names = some((_UPLINKS, _UPLINKS, _UPLINKS, _UPLINKS, _ALTNAMES, _BRIDGES, ["u1[0-3]", "*9", "alt*"]))
        value = some({"name": names, "mac": _MACS[4:], "bridge": _BRIDGES}[key])
        drawn[key, value] = some(_MODES) if key != "bridge" and chance.random() < 0.15 else ""
    if command_line:
        return [f"{key}={value}" + (f",mode={mode}" if mode else "") for (key, value), mode in drawn.items()]
    return [
        value if key == "name" and not mode else {key: value} | ({"mode": mode} if mode else {})
        for (key, value), mode in drawn.items()
    ]
