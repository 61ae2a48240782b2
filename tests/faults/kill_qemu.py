"""A QEMU without a guest, for the backend macvtap: its cards, hubs and what is plugged into them are real."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path

from evertap.lab.answering import Station
from evertap.lab.errors import need
from evertap.lab.frames import mac_bytes
from evertap.lab.netns import Namespace

from .kill_look import descriptors

_NEAR, _FAR = 4001, 4002  # UDP ports in the private namespace
_PROMPT = b"(qemu) "
_PATIENCE = 20.0  # seconds


class Qemu:
    """Runs until it is closed. On hub `hub` there is one who answers, with `mac` and `ipv4`.

    `folder`: for its monitor's socket; `arguments`: of the NICs.
    """

    def __init__(
        self, namespace: Namespace, folder: Path, arguments: Sequence[str], hub: int, mac: str, ipv4: str
    ) -> None:
        need("qemu-system-x86_64", "qemu-system-x86")
        self._stack = contextlib.ExitStack()
        try:
            with namespace.enter():
                near = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            near.bind(("127.0.0.1", _NEAR))
            self._stack.callback(near.shutdown, socket.SHUT_RD)
            near.connect(("127.0.0.1", _FAR))
            station = Station(mac_bytes(mac), IPv4Address(ipv4))
            threading.Thread(target=_answer, args=(near, station), daemon=True).start()
            path = folder / "monitor"
            self._process = namespace.popen(
                [
                    *("qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-m", "32", "-nodefaults"),
                    *("-display", "none", "-global", "virtio-net-pci.romfile="),  # nothing to boot from
                    *("-chardev", f"socket,id=hmp,path={path},server=on,wait=off", "-mon", "chardev=hmp"),
                    *("-netdev", f"socket,id=far,udp=127.0.0.1:{_NEAR},localaddr=127.0.0.1:{_FAR}"),
                    *("-netdev", f"hubport,id=far-port,hubid={hub},netdev=far"),
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            self._stack.callback(self._process.wait)
            self._stack.callback(self._process.kill)
            self._monitor = self._stack.enter_context(socket.socket(socket.AF_UNIX))
            self._monitor.settimeout(_PATIENCE)
            self._connect(path)
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        """End it."""
        self._stack.close()

    def lines(self) -> list[str]:
        """What its hubs have on them, and the descriptors that it holds."""
        self._monitor.sendall(b"info network\n")
        said = re.sub(r"-(up|hub)\d+", r"-\1#", self._read())
        network = [line.strip() for line in said.splitlines() if "index=" in line or "hub " in line]
        held = descriptors(self._process.pid)
        taps = sum(count for target, count in held.items() if target.startswith("/dev/tap"))
        return [
            *(re.sub(r"fd=\d+", "fd=#", f"QEMU: {line}") for line in network),
            f"QEMU holds {taps} macvtaps",
        ]

    def _connect(self, path: Path) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._monitor.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.02)
        self._read()

    def _read(self) -> str:
        said = b""
        while not said.endswith(_PROMPT):
            data = self._monitor.recv(65536)
            if not data:
                raise EOFError("QEMU has ended")
            said += data
        return said.decode(errors="replace")


def _answer(near: socket.socket, station: Station) -> None:
    while frame := near.recv(65536):
        if answer := station.answer(frame):
            with contextlib.suppress(OSError):
                near.send(answer)
