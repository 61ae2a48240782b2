"""A real guest: QEMU with the image of image.py, and a shell in it."""

import socket
import subprocess
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from evertap.lab.console import Console
from evertap.lab.errors import LabError, need
from evertap.lab.image import GuestImage
from evertap.lab.netns import Namespace
from evertap.lab.shell import GuestShell

GUEST_IPV4 = "192.0.2.10"
GUEST_IPV6 = "2001:db8::10"

# What makes the boot short, and what makes a panic end QEMU (with -no-reboot) instead of hanging.
_FAST = "quiet mitigations=off no_timer_check random.trust_cpu=on cryptomgr.notests panic=-1"


def command_line(image: GuestImage, ipv4: str = GUEST_IPV4, ipv6: str = GUEST_IPV6) -> list[str]:
    """QEMU's arguments for the guest without NICs; its serial line is QEMU's standard input and output.

    TCG, since stock kernels hang under some nested KVMs, and since it is there on every machine.
    """
    kernel_line = f"console=ttyS0 {_FAST} evertap.ip={ipv4}/24 evertap.ip6={ipv6}/64"
    return [
        *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-M", "q35", "-m", "256"),
        *("-display", "none", "-nodefaults", "-no-reboot"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", kernel_line),
        *("-chardev", "stdio,id=line,signal=off", "-serial", "chardev:line"),
    ]


class QemuGuest(GuestShell):
    """A guest in `namespace`; `arguments` are QEMU's for its NICs, as `evertap args` prints them.

    `launcher` stands before QEMU's command, such as ("evertap", "run", "--nic", "web0", "--").
    `pass_fds` are descriptors that `arguments` name. eth0 of the guest has `ipv4` (/24) and `ipv6` (/64).
    QEMU dies with the thread that calls `boot` (see Namespace) and leaves no file behind.
    """

    def __init__(
        self,
        namespace: Namespace,
        image: GuestImage,
        arguments: Sequence[str] = (),
        *,
        ipv4: str = GUEST_IPV4,
        ipv6: str = GUEST_IPV6,
        launcher: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self._namespace = namespace
        self._command = [*launcher, *command_line(image, ipv4, ipv6), *arguments]
        self._pass_fds = pass_fds
        self._process: subprocess.Popen[bytes] | None = None

    def boot(self, timeout: float = 40) -> None:
        """Start QEMU and wait until the guest's shell is there.

        Raises LabError, with what QEMU and the guest's kernel said, when that fails or takes longer than
        `timeout` seconds.
        """
        need("qemu-system-x86_64", "qemu-system-x86")
        if self._process is not None:
            raise LabError("the guest runs already")
        near, far = socket.socketpair()
        # An unnamed file: a pipe that nobody reads would stop QEMU once it is full.
        with far, tempfile.TemporaryFile() as errors:
            self._console = Console(near)
            self._process = self._namespace.popen(
                self._command, stdin=far, stdout=far, stderr=errors, pass_fds=self._pass_fds
            )
            far.close()
            try:
                self._console.wait_ready(timeout)
            except (EOFError, TimeoutError) as error:
                tail = self._console.tail()
                self.stop()
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip() or "nothing"
                raise LabError(f"the guest did not boot: {error}; QEMU said: {said}\n{tail}") from error
            except BaseException:
                self.stop()
                raise

    @property
    def pid(self) -> int:
        """The process that was started: QEMU, unless a launcher stays between."""
        if self._process is None:
            raise LabError("the guest does not run")
        return self._process.pid

    def stop(self) -> None:
        """End QEMU, gently at first, so that a launcher can clean up. May be called twice."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(3)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._console is not None:
            self._console.close()
            self._console = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
