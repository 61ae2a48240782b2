"""`evertap run` with a real daemon, kernel and QEMU: as root and as somebody else, and every way to end."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import evertap
from evertap.lab.image import GuestImage
from evertap.lab.pinger import Pinger
from evertap.lab.qemu import QemuGuest
from evertap.lab.trial import Trial
from evertap.lab.wires import Lab

pytestmark = pytest.mark.timeout(120)

DEFINITION = """
mac = "52:54:00:12:34:56"
uplinks = ["eth0"]
"""
SOURCES = str(Path(evertap.__file__).parents[1])

# A QEMU that does nothing and is there at once.
QEMU = [
    *("qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-display", "none", "-nodefaults", "-S"),
]

# The interpreter and the sources may lie where others may not read: all is imported before the user changes.
AS_NOBODY = """
import ctypes, os, pwd, signal, sys
import asyncio, json, evertap.api.client, evertap.cli.args, evertap.cli.run, evertap.model.arguments
from evertap.cli.main import run
user = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, which setuid has cleared
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def guest_image(guest_image: GuestImage) -> Iterator[GuestImage]:
    """The guest where anybody can read it: the cache may lie in a private folder."""
    with tempfile.TemporaryDirectory(prefix="evertap-") as folder:
        Path(folder).chmod(0o755)
        kernel = Path(shutil.copy(guest_image.kernel, folder))
        initrd = Path(shutil.copy(guest_image.initrd, folder))
        kernel.chmod(0o644)
        initrd.chmod(0o644)
        yield GuestImage(kernel, initrd)


def eventually(condition: Callable[[], object], timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def as_root(trial: Trial) -> list[str]:
    """`evertap` as the test's user."""
    return ["env", f"PYTHONPATH={SOURCES}", *trial.command]


def as_nobody(trial: Trial) -> list[str]:
    """`evertap` as a user without any rights."""
    trial.path.chmod(0o711)
    _, _, _, *folders = trial.command
    return ["env", f"PYTHONPATH={SOURCES}", sys.executable, "-c", AS_NOBODY, *folders]


def held(lab: Lab) -> bool:
    """Whether a VMM has the tap open."""
    return "LOWER_UP" in lab.host.ip("link", "show", "web0")


def catches(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


@contextmanager
def running(lab: Lab, command: list[str], stdin: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[str]]:
    """A QEMU that has the tap, and its signal handlers, which it takes last."""
    with lab.host.popen(command, stdin=stdin, stderr=subprocess.PIPE, text=True) as process:
        try:
            eventually(lambda: catches(process.pid, signal.SIGTERM))
            assert held(lab)
            yield process
        finally:
            process.kill()


def outcome(lab: Lab, command: list[str]) -> tuple[int, str]:
    """Exit code and errors of what should end by itself."""
    with lab.host.popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    return process.returncode, errors


def uid_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def program_of(pid: int) -> str:
    return Path(f"/proc/{pid}/exe").readlink().name


# A real guest


@pytest.mark.parametrize(("user", "owner"), [(as_root, ""), (as_nobody, 'owner = "nobody"')])
def test_a_guest_boots_deferred_and_is_connected_when_its_uplink_comes(
    lab: Lab, trial: Trial, guest_image: GuestImage, user: Callable[[Trial], list[str]], owner: str
) -> None:
    trial.define("web0", DEFINITION + owner)
    launcher = [*user(trial), "run", "--nic", "web0", "--"]
    with QemuGuest(lab.host, guest_image, launcher=launcher) as guest, Pinger(lab.wire) as pinger:
        guest.boot()
        assert program_of(guest.pid) == "qemu-system-x86_64"
        assert uid_of(guest.pid) == (pwd.getpwnam("nobody").pw_uid if owner else os.getuid())
        assert trial.nic("web0").state == "waiting"
        lab.uplink("eth0")
        pinger.wait_reply(5)
        lab.remove("eth0")
        trial.wait("web0", "waiting")
        lab.uplink("eth0")
        pinger.wait_reply(5)
        # Neither the daemon nor anybody else keeps it open: this is QEMU's.
        os.kill(guest.pid, signal.SIGKILL)
        eventually(lambda: not held(lab))


def test_two_queues_and_two_nics(lab: Lab, trial: Trial, guest_image: GuestImage) -> None:
    trial.define("web0", DEFINITION + 'queues = 2\nowner = "nobody"')
    trial.define("web1", 'mac = "52:54:00:12:34:57"\nuplinks = ["eth1"]\nowner = "nobody"')
    lab.uplink("eth0")
    launcher = [*as_nobody(trial), "run", "--nic", "web0", "--nic", "web1", "--"]
    with (
        QemuGuest(lab.host, guest_image, ["-smp", "2"], launcher=launcher) as guest,
        Pinger(lab.wire) as pinger,
    ):
        guest.boot()
        pinger.wait_reply(5)
        assert guest.sh("ls /sys/class/net/eth0/queues").split() == ["rx-0", "rx-1", "tx-0", "tx-1"]
        assert guest.sh("cat /sys/class/net/eth1/address").strip() == "52:54:00:12:34:57"


# Ends


def test_a_killed_qemu_ends_as_killed_and_the_next_one_gets_its_nic(lab: Lab, trial: Trial) -> None:
    trial.define("web0", DEFINITION)
    command = [*as_root(trial), "run", "--nic", "web0", "--", *QEMU]
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT):
        with running(lab, command) as process:
            assert program_of(process.pid) == "qemu-system-x86_64"
            process.send_signal(number)
            assert process.wait(10) == -number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_qemu_handles_is_qemus(lab: Lab, trial: Trial, number: signal.Signals) -> None:
    trial.define("web0", DEFINITION)
    with running(lab, [*as_root(trial), "run", "--nic", "web0", "--", *QEMU]) as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors.count(f"terminating on signal {number.value}")) == (0, 1)


def test_ctrl_c_on_a_terminal_reaches_qemu_once(lab: Lab, trial: Trial) -> None:
    trial.define("web0", DEFINITION)
    leader, terminal = os.openpty()
    command = ["setsid", "--ctty", *as_root(trial), "run", "--nic", "web0", "--", *QEMU]
    try:
        with running(lab, command, stdin=terminal) as process:
            os.write(leader, b"\x03")
            _, errors = process.communicate(timeout=10)
    finally:
        os.close(leader)
        os.close(terminal)
    assert process.returncode == 0
    assert errors.count("terminating on signal") == 1


def test_stop_and_continue_are_qemus(lab: Lab, trial: Trial) -> None:
    trial.define("web0", DEFINITION)
    with running(lab, [*as_root(trial), "run", "--nic", "web0", "--", *QEMU]) as process:
        status = Path(f"/proc/{process.pid}/stat")
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: status.read_text().rpartition(")")[2].split()[0] == "T")
        process.send_signal(signal.SIGCONT)
        eventually(lambda: status.read_text().rpartition(")")[2].split()[0] != "T")
        assert process.poll() is None


# What keeps it from starting


def test_wrong_arguments_get_qemus_own_message_and_code(lab: Lab, trial: Trial) -> None:
    trial.define("web0", DEFINITION)
    command = [*as_root(trial), "run", "--nic", "web0", "--"]
    code, errors = outcome(lab, [*command, *QEMU, "-no-such-option"])
    assert (code, errors.count("-no-such-option: invalid option")) == (1, 1)
    code, errors = outcome(lab, [*command, "false"])
    assert (code, errors) == (1, "")
    assert not held(lab)


def test_qemu_missing_is_1_and_the_nic_stays_free(lab: Lab, trial: Trial) -> None:
    trial.define("web0", DEFINITION)
    code, errors = outcome(lab, [*as_root(trial), "run", "--nic", "web0", "--", "qemu-system-zx81"])
    message = "cannot start qemu-system-zx81: No such file or directory. Is it installed?"
    assert (code, errors) == (1, f"evertap: {message}\n")
    assert not held(lab)


def test_a_nic_that_another_vm_has_is_1_and_that_vm_goes_on(lab: Lab, trial: Trial) -> None:
    trial.define("web0", DEFINITION)
    command = [*as_root(trial), "run", "--nic", "web0", "--", *QEMU]
    with running(lab, command) as process:
        code, errors = outcome(lab, command)
        assert code == 1
        assert "open tap web0" in errors
        assert "busy" in errors
        assert process.poll() is None


def test_somebody_else_than_the_owner_is_refused(lab: Lab, trial: Trial) -> None:
    trial.define("web0", DEFINITION + 'owner = "daemon"')
    code, errors = outcome(lab, [*as_nobody(trial), "run", "--nic", "web0", "--", *QEMU])
    assert code == 1
    assert 'may not open the tap of NIC "web0"' in errors
    assert "Traceback" not in errors


def test_without_rights_a_qmp_socket_needs_a_folder_of_ones_own(lab: Lab, trial: Trial) -> None:
    trial.define("web0", DEFINITION + 'backend = "macvtap"')
    command = [*as_nobody(trial), "run", "--nic", "web0", "--"]
    path = trial.path / "runtime" / "qmp" / "web0"
    assert outcome(lab, [*command, *QEMU]) == (
        1,
        f"evertap: QEMU has to make the QMP socket {path} for evertap, but you may not make it there: name a "
        'path where you may in the NIC\'s definition, [vm] qmp = "/path"\n',
    )
    own = trial.path / "own"
    own.mkdir()
    own.chmod(0o777)
    trial.define("web0", f'{DEFINITION}backend = "macvtap"\n[vm]\nqmp = "{own}/web0.qmp"')
    with lab.host.popen([*command, *QEMU], stdin=subprocess.DEVNULL) as process:
        try:
            eventually((own / "web0.qmp").is_socket)
            lab.uplink("eth0")
            trial.wait("web0", "connected")
            assert process.poll() is None
        finally:
            process.kill()
