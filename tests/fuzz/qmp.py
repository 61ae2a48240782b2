"""QEMU's side of a monitor: a whole session in which QEMU answers what it is told to."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from evertap.model.errors import ActionError
from evertap.model.nic import Nic, UplinkSpec
from evertap.vmm import card, reading
from evertap.vmm.connection import Opening, clean
from evertap.vmm.limits import Limits
from evertap.vmm.session import Session
from tests.vmm.fake_qmp import GREETING, RX_FILTER

_LIMITS = Limits(answer=1.0, unplug=0.002, calm=0.0)
_GREETING = json.dumps(GREETING).encode() + b"\n"
_NIC = Nic(name="web0", mac="52:54:00:12:34:56", uplinks=(UplinkSpec("eth0"),), backend="macvtap")


class Qmp:
    """Runs sessions in a loop of its own."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._trouble: list[dict[str, Any]] = []

    def answers(self, data: bytes) -> None:
        """Read lines as answers, whatever they answer, and as events."""
        session = Session(_LIMITS, lambda vmm: None, lambda device, rx: None)
        session.devices.add("evertap-web0")
        for line in data.split(b"\n"):
            try:
                answer = json.loads(line)
            except (ValueError, RecursionError):  # the session ends
                continue
            said = answer.get("return") if isinstance(answer, dict) else None
            if isinstance(answer, dict):
                event, about = answer.get("event"), answer.get("data")
                if isinstance(event, str) and isinstance(about, dict):
                    session.hear(event, about)
            for value in (answer, said):
                reading.parts(value)
                reading.commands(value)
                reading.version(value)
                reading.rx_filter(value)
                reading.free_ports(value)
                clean(repr(value))

    def sessions(self, data: bytes) -> None:
        """Answer one command after another with a line of `data`; $ID stands for the command's id.

        The first line is the greeting, where it starts with "!". When there are no more, QEMU ends.
        """
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._loop.set_exception_handler(lambda _, context: self._trouble.append(context))
        self._loop.run_until_complete(asyncio.wait_for(self._session(data), 20))
        trouble, self._trouble = self._trouble, []
        assert not trouble, trouble

    def close(self) -> None:
        """End the loop."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    async def _session(self, data: bytes) -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        ours.setblocking(False)
        serving = asyncio.ensure_future(_serve(theirs, data))
        session = Session(_LIMITS, lambda vmm: None, lambda device, rx: None)
        opening = Opening(ours, _LIMITS, session.hear)
        try:
            connection = await opening.open()
        except ActionError:
            await serving
            return
        ending = asyncio.ensure_future(connection.ended())
        try:
            with suppress(ActionError):
                await session.begin(connection)
                session.publish()
                for device in sorted(session.devices)[:2]:
                    await session._read_filter(device)
                with suppress(ActionError):
                    await card.attach(session, _NIC, (), vhost=False)
                with suppress(ActionError):
                    await card.detach(session, _NIC)
                await card.announce(session, "web0")
        finally:
            session.end("over")
            connection.close("over")
            await ending
            await serving


async def _serve(sock: socket.socket, data: bytes) -> None:
    loop = asyncio.get_running_loop()
    answers = _answers(data)
    with suppress(OSError):
        await loop.sock_sendall(sock, next(answers))
        while command := await loop.sock_recv(sock, 65536):  # short ones, and one at a time
            if b"qmp_capabilities" in command:
                answer = b'{"return": {}}\n'
            elif not (answer := next(answers, b"")):
                break
            ident = str(json.loads(command).get("id")).encode()
            await loop.sock_sendall(sock, answer.replace(b"$ID", ident))
    sock.close()


def _answers(data: bytes) -> Iterator[bytes]:
    lines = data.split(b"\n")
    yield lines.pop(0)[1:] + b"\n" if lines[0].startswith(b"!") else _GREETING
    for line in lines:
        # Where it is no answer there is one behind it, so that nobody has to wait for it.
        answers = re.search(rb'"(return|error)".*\$ID', line)
        yield line + b"\n" + (b"" if answers else b'{"error": {"class": "X", "desc": "no"}, "id": "$ID"}\n')


def qmp_seeds() -> list[bytes]:
    """Sessions of a QEMU that does as it should."""

    def answer(value: object) -> bytes:
        return json.dumps({"return": value, "id": "$ID"}).encode()

    version = answer(GREETING["QMP"]["version"])
    commands = answer([])
    card_ = "evertap-web0: index=0,type=nic,model=virtio-net-pci\r\n"
    network = answer(card_ + " \\ evertap-web0-card: index=0,type=hubport\r\n")
    event = b'{"event": "NIC_RX_FILTER_CHANGED", "data": {"name": "evertap-web0"}, "timestamp": {}}'
    gone = event.replace(b"NIC_RX_FILTER_CHANGED", b"DEVICE_DELETED").replace(b'"name"', b'"device"')
    refusal = {"class": "GenericError", "desc": "Bus 'pcie.0' does not support hotplugging"}
    refused = json.dumps({"error": refusal, "id": "$ID"}).encode()
    bridge = {"qdev_id": "rp0", "class_info": {"class": 0x0604}, "pci_bridge": {"bus": {}, "devices": []}}
    pci = answer([{"bus": 0, "devices": [bridge, {"qdev_id": "", "class_info": {"class": 512}}]}])
    good = [version, commands, network, answer([RX_FILTER])]
    return [
        b"\n".join([*good, answer({})]),
        b"\n".join(
            [version, commands, answer(""), answer({}), answer({}), refused, pci, answer({}), answer({})]
        ),
        b"\n".join([version, commands, network, event, *good, gone, answer({}), gone]),
        b"!" + _GREETING + b"\n".join(good),
        b"\n".join([version, answer([{"name": "query-version"}]), network]),
        b"\n".join([version, commands, b'{"return": ' + b"[" * 3000]),
        b"\n".join([version, commands, b'{"return": ' + b"9" * 5000 + b', "id": "$ID"}']),
        b"\n".join([version, b'{"return": "\xff", "id": "$ID"}']),
    ]
