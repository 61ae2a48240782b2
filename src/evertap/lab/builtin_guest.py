"""A guest of 20 ms instead of 4 s: the builtin guest's process, with the surface of a QEMU guest."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from evertap.lab.errors import LabError
from evertap.lab.netns import Namespace
from evertap.lab.qemu import GUEST_IPV4, GUEST_IPV6

_SOURCES = Path(__file__).parents[2]


class BuiltinGuest:
    """Holds the persistent `tap` in `namespace` as a VMM would, and answers ARP, ping and IPv6 ping.

    It sees no carrier and no PCI: for those take QemuGuest. All methods raise LabError when the
    process has died, with what it said.
    """

    def __init__(
        self, namespace: Namespace, tap: str, mac: str, ipv4: str = GUEST_IPV4, ipv6: str = GUEST_IPV6
    ) -> None:
        self._namespace = namespace
        self._arguments = (tap, mac, ipv4, ipv6)
        self._process: subprocess.Popen[str] | None = None

    def boot(self) -> None:
        """Start the process; returns once it holds the tap."""
        self._process = self._namespace.popen(
            [sys.executable, "-m", "evertap.lab.builtin", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(_SOURCES)},
        )
        if _stream(self._process.stdout).readline() != "ready\n":
            raise self._dead()

    @property
    def pid(self) -> int:
        """The process that holds the tap."""
        return self._running().pid

    def boot_id(self) -> str:
        """A text that is another one after every boot."""
        return str(self._ask("state")["boot_id"])

    def carrier_changes(self) -> int:
        """How often the tap failed under the guest: 0, or 1 once it is dead."""
        return int(self._ask("state")["failures"])

    def answered(self) -> int:
        """How many frames the guest has answered."""
        return int(self._ask("state")["answered"])

    def uptime(self) -> float:
        """Seconds since the boot."""
        return float(self._ask("state")["uptime"])

    def send(self, frame: bytes) -> None:
        """Let the guest send a frame, whatever is in it."""
        self._ask(f"send {frame.hex()}")

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            _stream(stream).close()
        self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is None:
            raise LabError("the builtin guest is not booted")
        return self._process

    def _ask(self, question: str) -> dict[str, Any]:
        process = self._running()
        try:
            print(question, file=_stream(process.stdin), flush=True)
        except OSError:
            raise self._dead() from None
        answer = _stream(process.stdout).readline()
        if not answer:
            raise self._dead()
        state: dict[str, Any] = json.loads(answer)
        return state

    def _dead(self) -> LabError:
        process = self._running()
        process.kill()
        said = _stream(process.stderr).read().strip()
        self.stop()
        return LabError(f"the builtin guest on {self._arguments[0]} died: {said or 'no message'}")


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
