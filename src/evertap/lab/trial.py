"""A daemon of its own in a laboratory, and the command line to it: for the demo and the tests."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from evertap.api.client import Client, connect
from evertap.lab.errors import LabError
from evertap.lab.netns import Namespace
from evertap.model.errors import EvertapError
from evertap.model.views import NicView

_SOURCES = Path(__file__).parents[2]
_START = 10.0  # seconds

_T = TypeVar("_T")


class Trial:
    """Runs `evertap daemon` in `namespace` with folders of its own, which go when it is closed.

    It follows the libvirt of `libvirt_uri`, by default none: the host's own is no business of a laboratory.
    """

    def __init__(self, namespace: Namespace, libvirt_uri: str = "none") -> None:
        self._namespace = namespace
        self._libvirt_uri = libvirt_uri
        self._folder = tempfile.TemporaryDirectory(prefix="evertap-")
        self.path = Path(self._folder.name)
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def nics_d(self) -> Path:
        """The folder of definitions."""
        return self.path / "config" / "nics.d"

    @property
    def log(self) -> str:
        """What the daemon has said so far."""
        file = self.path / "daemon.log"
        return file.read_text() if file.exists() else ""

    @property
    def pid(self) -> int:
        """The daemon's process."""
        assert self._daemon is not None
        return self._daemon.pid

    def start(self) -> None:
        """Start the daemon and wait until it answers. LabError, with what it said, if it does not."""
        with (self.path / "daemon.log").open("ab") as log:
            self._daemon = self._namespace.popen(
                self.daemon_command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
            )
        deadline = time.monotonic() + _START
        while self._daemon.poll() is None and time.monotonic() < deadline:
            if self._answers():
                return
            time.sleep(0.02)
        self.kill()
        raise LabError(f"the daemon did not start:\n{self.log}")

    def _answers(self) -> bool:
        with suppress(EvertapError):
            self.ask(lambda client: client.nics())
            return True
        return False

    def stop(self) -> int:
        """Stop the daemon gently; its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the daemon as a crash would."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        daemon, self._daemon = self._daemon, None
        if daemon is None:
            return 0
        daemon.send_signal(number)
        try:
            return daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
            raise LabError(f"the daemon ignored {number.name}:\n{self.log}") from None

    @property
    def command(self) -> list[str]:
        """`evertap` with this daemon's folders."""
        folders = [f"--{kind}-dir={self.path / kind}" for kind in ("config", "runtime", "state")]
        return [sys.executable, "-m", "evertap", *folders]

    @property
    def daemon_command(self) -> list[str]:
        """The daemon's own."""
        return [*self.command, "daemon", "--libvirt-uri", self._libvirt_uri]

    @property
    def _environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(_SOURCES), "PYTHONUNBUFFERED": "1"}

    def try_run(self, *arguments: str, timeout: float = 20) -> subprocess.CompletedProcess[str]:
        """Run an `evertap` command to its end, whatever that is."""
        return subprocess.run(
            [*self.command, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self._environment,
            check=False,
        )

    def run(self, *arguments: str) -> str:
        """Run an `evertap` command and give its output; LabError, with what it said, if it fails."""
        done = self.try_run(*arguments)
        if done.returncode:
            raise LabError(
                f"evertap {shlex.join(arguments)} failed with code {done.returncode}: {done.stderr.strip()}"
            )
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """The same with --json, decoded."""
        return json.loads(self.run(*arguments, "--json"))

    def events(self, name: str) -> list[dict[str, Any]]:
        """What happened to the NIC."""
        return [json.loads(line) for line in self.run("events", "--nic", name, "--json").splitlines()]

    def define(self, name: str, text: str) -> None:
        """Define a NIC from TOML text."""
        file = self.path / f"{name}.toml"
        file.write_text(text)
        self.run("define", str(file))

    def wait(self, name: str, state: str, timeout: float = 10) -> None:
        """Wait until the NIC is in the state; TimeoutError."""
        self.ask(lambda client: client.wait(name, state, timeout))

    def nic(self, name: str) -> NicView:
        """The NIC as `show` has it, without the tenth of a second that a command takes to start."""
        return self.ask(lambda client: client.nic(name))

    def ask(self, question: Callable[[Client], Awaitable[_T]]) -> _T:
        """Ask or tell the daemon something by its API (EvertapError)."""

        async def asking() -> _T:
            async with connect(self.path / "runtime") as client:
                return await question(client)

        return asyncio.run(asking())

    def arguments(self, *names: str) -> list[str]:
        """The QEMU arguments for the NICs."""
        return shlex.split(self.run("args", *names))

    def close(self) -> None:
        """End the daemon and remove its folders."""
        self._end(signal.SIGKILL)
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
