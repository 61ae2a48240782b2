"""What the daemon is doing when it is killed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from evertap.model.errors import NoSuchNicError

from .kill_stage import NIC, Stage

Step = Callable[[Stage], None]
SECOND = "web1"


class Scenario(NamedTuple):
    """From the state that `prepare` makes, `trigger` makes the daemon work, and `undo` leads back there.

    `whole`: a command, which is done wholly or not at all; else something that happens and is answered
    in any case. `guest`: one holds the NIC's tap.
    """

    prepare: Step
    trigger: Step
    undo: Step
    whole: bool = True
    guest: bool = True


def definition(mac: str, uplinks: Sequence[str], more: str) -> str:
    """Of a NIC that returns to its first uplink at once, and is not announced unless `more` says so."""
    lines = [f'mac = "{mac}"', f"uplinks = {json.dumps(uplinks)}", "failback_delay = 0"]
    return "\n".join([*lines, more or "announce = false", ""])


def define(*uplinks: str, more: str = "") -> Step:
    """Define the NIC."""
    return lambda stage: stage.define(NIC, definition(stage.mac, uplinks, more))


def retarget(*uplinks: str, live: bool = False) -> Step:
    """Retarget the NIC."""
    return lambda stage: stage.ask(lambda client: client.retarget(NIC, uplinks, live=live))


def undefine(stage: Stage) -> None:
    """Undefine the NIC, if it is defined."""
    with suppress(NoSuchNicError):
        stage.ask(lambda client: client.undefine([NIC]))


def connect(stage: Stage) -> None:
    """End the NIC's disconnection."""
    stage.ask(lambda client: client.connect(NIC))


def disconnect(stage: Stage) -> None:
    """Disconnect the NIC."""
    stage.ask(lambda client: client.disconnect(NIC))


def appear(stage: Stage) -> None:
    """eth0 is plugged in."""
    stage.uplink(0)


def vanish(stage: Stage) -> None:
    """eth0 is pulled out."""
    stage.lab.remove("eth0")


def fall_silent(stage: Stage) -> None:
    """Let the announcements come to their end."""
    time.sleep(1)


def carrier(on: bool) -> Step:
    """The cable of eth0 is pulled or put in again."""
    return lambda stage: stage.lab.carrier("eth0", on)


def then(*steps: Step) -> Step:
    """One after the other."""

    def step(stage: Stage) -> None:
        for each in steps:
            each(stage)

    return step


def _both(stage: Stage) -> None:
    texts = {
        NIC: definition(stage.mac, ["eth1"], ""),
        SECOND: definition(stage.second_mac, ["eth1"], ""),
    }
    stage.ask(lambda client: client.define(texts))


def _only_the_first(stage: Stage) -> None:
    with suppress(NoSuchNicError):
        stage.ask(lambda client: client.undefine([SECOND]))
    define("eth0")(stage)


def _macvtap(*uplinks: str, more: str = "announce = false") -> Step:
    return define(*uplinks, more=f'backend = "macvtap"\n{more}')


_LIVE = then(retarget("eth0"), retarget("eth1", live=True))
_ANNOUNCE = "announce = true"
_COLD = 'failover = "cold"\nannounce = false'
_OTHER = "mtu = 1400\nspoof_check = false\nannounce = false"
_QUEUES = "queues = 2\nannounce = false"

TAP = {
    "an uplink appears": Scenario(
        then(define("eth0", more=_ANNOUNCE), fall_silent, vanish), appear, vanish, whole=False
    ),
    "an uplink vanishes": Scenario(define("eth0"), vanish, appear, whole=False),
    "hot failover": Scenario(define("eth0", "eth1"), carrier(False), carrier(True), whole=False),
    "hot failback": Scenario(
        then(define("eth0", "eth1"), carrier(False)), carrier(True), carrier(False), whole=False
    ),
    "cold failover": Scenario(define("eth0", "eth1", more=_COLD), carrier(False), carrier(True), whole=False),
    "connect": Scenario(then(define("eth0"), disconnect), connect, disconnect),
    "disconnect": Scenario(define("eth0"), disconnect, connect),
    "retarget to another uplink": Scenario(define("eth0"), retarget("eth1"), retarget("eth0")),
    "retarget to a bridge": Scenario(define("eth0"), retarget("br0"), retarget("eth0")),
    "retarget from a bridge": Scenario(define("br0"), retarget("eth0"), retarget("br0")),
    "retarget --live": Scenario(define("eth0"), retarget("eth1", live=True), retarget("eth0")),
    "retarget after --live": Scenario(then(define("eth0"), _LIVE), retarget("br0"), _LIVE),
    "define a new NIC": Scenario(undefine, define("eth0", "eth1"), undefine, guest=False),
    "define another NIC and change one": Scenario(define("eth0"), _both, _only_the_first),
    "define it otherwise": Scenario(define("eth0"), define("eth1", more=_OTHER), define("eth0")),
    "define it with another tap": Scenario(
        define("eth0"), define("eth0", more=_QUEUES), define("eth0"), guest=False
    ),
    "undefine": Scenario(define("eth0"), undefine, define("eth0"), guest=False),
    "undefine with a guest": Scenario(define("eth0"), undefine, define("eth0")),
    "undefine what is disconnected": Scenario(
        then(define("eth0"), disconnect), undefine, then(define("eth0"), disconnect)
    ),
}

MACVTAP = {
    name: scenario._replace(guest=False)
    for name, scenario in {
        "an uplink appears": Scenario(
            then(_macvtap("eth0", more=_ANNOUNCE), fall_silent, vanish), appear, vanish, whole=False
        ),
        "an uplink vanishes": Scenario(_macvtap("eth0"), vanish, appear, whole=False),
        "failover": Scenario(_macvtap("eth0", "eth1"), carrier(False), carrier(True), whole=False),
        "connect": Scenario(then(_macvtap("eth0"), disconnect), connect, disconnect),
        "disconnect": Scenario(_macvtap("eth0"), disconnect, connect),
        "retarget": Scenario(_macvtap("eth0"), retarget("eth1"), retarget("eth0")),
        "define": Scenario(undefine, _macvtap("eth0"), undefine),
        "define it otherwise": Scenario(
            _macvtap("eth0"), _macvtap("eth0", more=_OTHER + '\nmode = "vepa"'), _macvtap("eth0")
        ),
        "undefine": Scenario(_macvtap("eth0"), undefine, _macvtap("eth0")),
    }.items()
}
