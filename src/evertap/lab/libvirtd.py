"""A libvirtd of one's own, with folders and processes that the host never sees, and a guest run by it."""

import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from xml.sax.saxutils import escape

from evertap.lab.console import Console
from evertap.lab.errors import LabError, need
from evertap.lab.image import GuestImage
from evertap.lab.netns import Namespace
from evertap.lab.qemu import GUEST_IPV4, GUEST_IPV6, command_line
from evertap.lab.shell import GuestShell

_START = 20.0  # seconds

# Private, so that no mount gets out, not even into the namespace that we start from.
_UNSHARE = (
    *("unshare", "--mount", "--propagation=private"),
    *("--pid", "--fork", "--kill-child", "--mount-proc", "--"),
)

# No virtlogd, no cgroups (which here are the host's) and no mount namespaces that would hide /tmp's sockets.
_QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""

# Libvirt's folders are compiled in. Where the host has none, their parent is covered, so that none has to
# be made on the host. libvirtd insists on the user libvirt-qemu, which libvirt-daemon-system would make.
#
# /dev/kvm becomes a file that nobody can write: libvirt asks at every look-up whether KVM can be used, and
# probes QEMU anew (4 s) if the answer differs from what QEMU found.
#
# It is the first process of a process namespace: with it end libvirtd and all its QEMUs, which are daemons
# that no other means reaches. It ignores SIGCHLD (which sh cannot), so that the kernel buries them at once:
# libvirt waits 15 s for a dead QEMU that nobody buries.
_INIT = """
set -e
cover() {
    [ -d "$2/libvirt" ] || { mount -t tmpfs tmpfs "$2"; mkdir "$2/libvirt"; }
    mount --bind "$D/$1" "$2/libvirt"
}
D=$1
cover run /run
cover lib /var/lib
cover cache /var/cache
cover log /var/log
cover etc /etc
for file in passwd group; do
    grep -q ^libvirt-qemu: /etc/$file && continue
    cp /etc/$file "$D/$file"
    mount --bind "$D/$file" /etc/$file
done
grep -q ^libvirt-qemu: /etc/passwd || echo libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin >> "$D/passwd"
grep -q ^libvirt-qemu: /etc/group || echo libvirt-qemu:x:64055: >> "$D/group"
if [ -e /dev/kvm ]; then
    mount --bind "$D/nothing" /dev/kvm
    mount -o remount,bind,ro "$D/nothing" /dev/kvm
fi
echo ready
exec env --ignore-signal=CHLD cat
"""

# Removes the folder if we are killed; of a session of its own, so that no Ctrl-C ends it.
_SWEEPER = 'cat > /dev/null; sleep 0.5; rm -rf -- "$1"'


class Libvirtd:
    """Runs libvirtd in the network namespace, with mounts and processes of its own.

    Its domains survive `stop` and `kill`, as on a real host; `close`, and the end of the process (of the
    thread: see Namespace) that made this object, however it comes, ends them all. Several may run at once.
    `keepalive` is libvirtd.conf's keepalive_interval in seconds: -1 lets an idle connection be silent.
    Raises LabError.
    """

    def __init__(self, namespace: Namespace, keepalive: int = -1) -> None:
        need("libvirtd", "libvirt-daemon libvirt-daemon-driver-qemu")
        need("virsh", "libvirt-clients")
        self._namespace = namespace
        self._folder = tempfile.TemporaryDirectory(prefix="evertap-libvirt-")
        self.path = Path(self._folder.name)
        for name in ("run", "lib", "cache", "log", "etc"):
            (self.path / name).mkdir()
        (self.path / "nothing").touch()
        (self.path / "etc/qemu.conf").write_text(_QEMU_CONF)
        (self.path / "etc/libvirtd.conf").write_text(
            f'keepalive_interval = {keepalive}\nlog_outputs = "3:file:{self.path}/log/libvirtd.log"\n'
        )
        self._sweeper = subprocess.Popen(
            ["sh", "-c", _SWEEPER, "evertap-lab", str(self.path)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._pid = 0
        self._pidfd = -1
        self._init = namespace.popen(
            [*_UNSHARE, "sh", "-c", _INIT, "evertap-lab", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._init.stdout is not None
        assert self._init.stderr is not None
        if self._init.stdout.readline() != b"ready\n":
            reason = self._init.stderr.read().decode(errors="replace").strip()
            self.close()
            raise LabError(f"cannot prepare folders for libvirtd (needs root): {reason}")

    @property
    def socket(self) -> Path:
        """The socket's path, the same inside and outside of the namespace."""
        return self.path / "run" / "libvirt-sock"

    @property
    def uri(self) -> str:
        """For `virsh -c`, libvirt.open() and `evertap daemon --libvirt-uri`."""
        return f"qemu:///system?socket={self.socket}"

    @property
    def pid(self) -> int:
        """libvirtd's process, as it is seen from here."""
        if not self._pid:
            raise LabError("libvirtd does not run")
        return self._pid

    @property
    def log(self) -> str:
        """What libvirtd has said so far."""
        file = self.path / "log" / "libvirtd.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def start(self) -> None:
        """Start libvirtd and wait until it answers."""
        if self._pid:
            raise LabError("libvirtd runs already")
        # The mounts are unshare's as well, and its children's process namespace is the one. As a daemon
        # libvirtd leaves nsenter, which would stop itself whenever libvirtd is stopped.
        there = f"/proc/{self._init.pid}/ns"
        enter = ("nsenter", f"--mount={there}/mnt", f"--pid={there}/pid_for_children", "--")
        self._namespace.run(*enter, "libvirtd", "--daemon", timeout=_START)
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError as error:
                raise LabError(f"libvirtd did not start: {error}\n{self.log}") from None
            # The listener's pid, which the kernel translates to our namespace.
            answer = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self._pid = struct.unpack("3i", answer)[0]
        self._pidfd = os.pidfd_open(self._pid)
        try:
            self.virsh("version", timeout=_START)
        except LabError as error:
            self.kill()
            raise LabError(f"libvirtd did not start: {error}\n{self.log}") from None

    def stop(self) -> None:
        """Stop libvirtd gently; its domains run on."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill libvirtd as a crash would; its domains run on."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let libvirtd hang."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if not self._pid:
            return
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)
            signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)
        ended, _, _ = select.select([self._pidfd], [], [], 10)
        if not ended:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.close(self._pidfd)
        self._pid, self._pidfd = 0, -1
        if not ended:
            raise LabError(f"libvirtd ignored {number.name}:\n{self.log}")

    def try_virsh(self, *arguments: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """Run a virsh command to its end, whatever that is."""
        return subprocess.run(
            ["virsh", "--quiet", "--connect", self.uri, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def virsh(self, *arguments: str, timeout: float = 30) -> str:
        """Run a virsh command and give its output; LabError, with what it said, if it fails."""
        done = self.try_virsh(*arguments, timeout=timeout)
        if done.returncode:
            raise LabError(f"virsh {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def define(self, xml: str) -> None:
        """Define a domain."""
        with self._file(xml) as file:
            self.virsh("define", file.name)

    def create(self, xml: str, *options: str) -> None:
        """Start a transient domain, such as with `--paused`."""
        with self._file(xml) as file:
            self.virsh("create", file.name, *options)

    def _file(self, xml: str) -> "tempfile._TemporaryFileWrapper[str]":
        file = tempfile.NamedTemporaryFile("w", dir=self.path, suffix=".xml")  # noqa: SIM115
        file.write(xml)
        file.flush()
        return file

    def serial(self, name: str) -> Path:
        """The socket of a domain's serial line."""
        return self.path / f"{name}.serial"

    def domain_xml(
        self,
        name: str,
        image: GuestImage | None = None,
        devices: str = "",
        extra: str = "",
        *,
        ipv4: str = GUEST_IPV4,
        ipv6: str = GUEST_IPV6,
    ) -> str:
        """A domain of lab.qemu's guest; without an image one with nothing to boot, for `--paused`.

        `devices` are its interfaces, as XML; `extra`, such as <metadata>, and <uuid>, stands beside them.
        """
        boot = ""
        if image is not None:
            arguments = command_line(image, ipv4, ipv6)
            line = arguments[arguments.index("-append") + 1]
            boot = (
                f"<kernel>{escape(str(image.kernel))}</kernel><initrd>{escape(str(image.initrd))}</initrd>"
                f"<cmdline>{escape(line)}</cmdline>"
            )
        return f"""\
<domain type='qemu'>
  <name>{escape(name)}</name>
  {extra}
  <memory unit='MiB'>{256 if image else 32}</memory>
  <cpu mode='maximum'/>
  <os><type arch='x86_64' machine='q35'>hvm</type>{boot}</os>
  <features><acpi/></features>
  <devices>
    <emulator>{need("qemu-system-x86_64", "qemu-system-x86")}</emulator>
    <controller type='pci' index='0' model='pcie-root'/>
    {"<controller type='pci' model='pcie-root-port'/>" * 6}
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='unix'><source mode='bind' path='{escape(str(self.serial(name)))}'/></serial>
    {devices}
  </devices>
</domain>
"""

    def close(self) -> None:
        """End libvirtd and all domains, and remove the folders. May be called twice."""
        init = self._init
        for stream in (init.stdin, init.stdout, init.stderr):
            if stream is not None:
                stream.close()  # the first ends the first process, and with it the kernel ends the others
        try:
            init.wait(10)
        except subprocess.TimeoutExpired:
            init.kill()
            init.wait()
        if self._pid:
            os.close(self._pidfd)
            self._pid, self._pidfd = 0, -1
        self._folder.cleanup()
        self._sweeper.kill()
        self._sweeper.wait()
        if self._sweeper.stdin is not None:
            self._sweeper.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DomainGuest(GuestShell):
    """lab.qemu's guest as a domain of `libvirtd`, with the surface of QemuGuest; `devices`: its interfaces.

    `boot` defines and starts it. Whoever starts, restores or reboots it otherwise calls `reconnect`.
    """

    def __init__(
        self,
        libvirtd: Libvirtd,
        image: GuestImage,
        devices: str = "",
        extra: str = "",
        *,
        name: str = "guest",
        ipv4: str = GUEST_IPV4,
        ipv6: str = GUEST_IPV6,
    ) -> None:
        super().__init__()
        self.name = name
        self.xml = libvirtd.domain_xml(name, image, devices, extra, ipv4=ipv4, ipv6=ipv6)
        self._libvirtd = libvirtd

    def boot(self, timeout: float = 40) -> None:
        """Define and start the domain and wait until the guest's shell is there; LabError."""
        self._libvirtd.define(self.xml)
        self._libvirtd.virsh("start", self.name)
        self.reconnect()
        self.wait_ready(timeout)

    def reconnect(self) -> None:
        """Open the serial line of a QEMU that was started meanwhile."""
        if self._console is not None:
            self._console.close()
        line = socket.socket(socket.AF_UNIX)
        try:
            line.connect(str(self._libvirtd.serial(self.name)))
        except OSError as error:
            line.close()
            raise LabError(f"the serial line of {self.name}: {error}") from error
        self._console = Console(line)

    def wait_ready(self, timeout: float = 40) -> None:
        """Wait until the guest has booted; LabError, with what its kernel said."""
        console = self._running()
        try:
            console.wait_ready(timeout)
        except (EOFError, TimeoutError) as error:
            tail = console.tail()
            self.stop()
            raise LabError(f"the guest did not boot: {error}\n{tail}") from error

    def stop(self) -> None:
        """End the domain, if it runs, and forget its definition. May be called twice."""
        if self._console is not None:
            self._console.close()
            self._console = None
        # What is not there (any more) cannot be ended.
        self._libvirtd.try_virsh("destroy", self.name)
        self._libvirtd.try_virsh("undefine", self.name, "--managed-save")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def installed() -> str:
    """Say why no libvirtd can be run here (an empty text if one can): for tests that must be skipped."""
    for program, package in (("libvirtd", "libvirt-daemon"), ("virsh", "libvirt-clients")):
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install {package}"
    return ""
