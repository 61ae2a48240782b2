"""An unnamed network namespace that lives exactly as long as the process which made it."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from evertap.lab.errors import LabError

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

# Runs after setpriv has armed the parent-death signal: had the parent died just before that, the
# signal would never come, but then the parent is no longer the one that we were told of.
_GUARD = '[ "$PPID" = "$1" ] || exit 125; '

# A fresh sysfs shows the devices of this namespace, as `ip netns exec` does it. The holder then waits
# on its standard input, so that it also ends when its pipe is closed.
_HOLDER = _GUARD + "mount -t sysfs sysfs /sys && ip link set lo up && echo ready && read -r _"

# Entering a mount namespace moves the process to /: go back to where the caller wants it.
_PROGRAM = _GUARD + 'cd "$2" || exit 125; shift 2; exec "$@"'

_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--", "sh", "-c")


class Namespace:
    """A network namespace without an entry in /run/netns, held by a small child process.

    The child and all programs started by `run` and `popen` get SIGKILL when their parent ends, however
    it ends (PR_SET_PDEATHSIG, prctl(2)); the kernel then takes the namespace with all its devices.

    Linux sends that signal when the *thread* which made the child ends. So make namespaces and start
    programs in the main thread, or in one that lives as long as they should.

    Needs root. `name` serves error messages only. Raises LabError when the namespace cannot be made.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        unshare = ("unshare", "--net", "--mount", "--propagation", "slave", "--")
        self._holder = subprocess.Popen(
            [*unshare, *_DIES_WITH_US, _HOLDER, "evertap-lab", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        _, output, errors = _streams(self._holder)
        if output.readline() != "ready\n":
            self._holder.kill()
            reason = errors.read().strip() or "the holder died"
            self.close()
            raise LabError(f"cannot make the network namespace {name!r} (needs root): {reason}")

    @property
    def pid(self) -> int:
        """The process that holds the namespace."""
        return self._holder.pid

    @property
    def path(self) -> Path:
        """The namespace's file, for setns(2) and `nsenter --net=`."""
        return Path(f"/proc/{self.pid}/ns/net")

    def run(
        self, *argv: str | os.PathLike[str], check: bool = True, timeout: float = 20, stdin: str = ""
    ) -> str:
        """Run a program in the namespace to its end and return its standard output.

        `timeout` is in seconds. Raises LabError, with the command and its standard error, when it exits
        with another code than 0 (unless `check` is off) or takes too long.
        """
        command = " ".join(map(str, argv))
        with self.popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                output, errors = process.communicate(stdin, timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise LabError(f"{command!r} in {self.name} took more than {timeout} s") from None
        if check and process.returncode:
            detail = errors.strip() or output.strip() or "no message"
            raise LabError(f"{command!r} in {self.name} failed with code {process.returncode}: {detail}")
        return str(output)

    def popen(self, argv: Sequence[str | os.PathLike[str]], **options: Any) -> "subprocess.Popen[Any]":
        """Start a program in the namespace; `options` are those of subprocess.Popen.

        The returned pid is the program's own: what stands before it on the way in only execs.
        """
        folder = str(options.pop("cwd", None) or Path.cwd())
        enter = ("nsenter", f"--net={self.path}", f"--mount=/proc/{self.pid}/ns/mnt", "--")
        guard = (*_DIES_WITH_US, _PROGRAM, "evertap-lab", str(os.getpid()), folder)
        return subprocess.Popen([*enter, *guard, *map(str, argv)], **options)

    def ip(self, *arguments: str) -> str:
        """Run iproute2's `ip` in the namespace and return its output."""
        return self.run("ip", *arguments)

    def ip_batch(self, lines: Iterable[str]) -> None:
        """Run several `ip` commands in one process; stops at the first that fails, with LabError."""
        self.run("ip", "-batch", "-", stdin="".join(f"{line}\n" for line in lines))

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Move the current thread into the network namespace for the length of the `with` block.

        Sockets opened inside belong to the namespace for good. Raises OSError as setns(2) does.
        """
        # os.setns came with Python 3.12, hence libc's.
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _setns(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _setns(back)
        finally:
            os.close(back)

    def close(self) -> None:
        """End the holder. Programs that still run inside keep the namespace until they end."""
        self._holder.kill()
        self._holder.wait()
        for stream in _streams(self._holder):
            stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def usable() -> str:
    """Say why no namespace can be made here (an empty text if one can): for tests that must be skipped."""
    for program in ("unshare", "nsenter", "setpriv", "ip"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    try:
        Namespace("probe").close()
    except LabError as error:
        return str(error)
    return ""


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _streams(process: "subprocess.Popen[str]") -> tuple[IO[str], IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    return process.stdin, process.stdout, process.stderr
