"""A namespace lives as long as its maker, whatever becomes of that."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evertap.lab.errors import LabError
from evertap.lab.netns import Namespace

SOURCES = Path(__file__).parents[2] / "src"

# Makes two namespaces with a long-running program in one, says which they are, and waits.
VICTIM = """
import os, time
from evertap.lab.netns import Namespace
one, two = Namespace("one"), Namespace("two")
two.popen(["sleep", "1000"])
print(os.stat(one.path).st_ino, os.stat(two.path).st_ino, flush=True)
time.sleep(1000)
"""


def users(inode: int) -> list[int]:
    """The processes in a network namespace."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns/net").stat().st_ino == inode:
                found.append(int(process.name))
        except OSError:
            continue  # it has just ended
    return found


def eventually(condition: Callable[[], bool], timeout: float = 5) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_it_is_another_network_with_loopback_up(namespace: Namespace) -> None:
    assert namespace.path.stat().st_ino != Path("/proc/self/ns/net").stat().st_ino
    assert [link.split()[0] for link in namespace.ip("-br", "link").splitlines()] == ["lo"]
    namespace.run("ping", "-c1", "127.0.0.1")


def test_sysfs_shows_its_own_devices(namespace: Namespace) -> None:
    namespace.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    assert namespace.run("ls", "/sys/class/net").split() == ["lo", "veth0", "veth1"]
    assert not Path("/sys/class/net/veth0").exists()


def test_nobody_is_in_it_after_close(namespaces: None) -> None:
    namespace = Namespace("closed")
    inode = namespace.path.stat().st_ino
    assert users(inode) == [namespace.pid]
    namespace.close()
    assert users(inode) == []


def test_its_devices_go_with_it(namespace: Namespace) -> None:
    with Namespace("other") as other:
        namespace.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", str(other.pid))
        assert "veth0" in namespace.ip("-br", "link")
    assert eventually(lambda: "veth0" not in namespace.ip("-br", "link"))


def test_it_is_gone_after_its_maker_was_killed(namespaces: None) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", VICTIM],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SOURCES)},
    ) as victim:
        assert victim.stdout is not None
        first, second = map(int, victim.stdout.readline().split())
        assert len(users(first)) == 1
        assert len(users(second)) == 2
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert eventually(lambda: users(first) + users(second) == [])


def test_a_failed_program_is_reported_with_its_words(namespace: Namespace) -> None:
    with pytest.raises(LabError, match=r"'ip link show dev none0' in test failed with code 1: .*none0"):
        namespace.ip("link", "show", "dev", "none0")
    assert namespace.run("false", check=False) == ""


def test_a_slow_program_is_ended(namespace: Namespace) -> None:
    with pytest.raises(LabError, match=r"'sleep 1000' in test took more than 0\.1 s"):
        namespace.run("sleep", "1000", timeout=0.1)
    assert eventually(lambda: users(namespace.path.stat().st_ino) == [namespace.pid])


def test_programs_run_in_the_callers_folder_with_the_programs_own_pid(
    namespace: Namespace, tmp_path: Path
) -> None:
    with namespace.popen(
        ["sh", "-c", "pwd; echo $$"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.communicate()[0].split() == [str(tmp_path), str(process.pid)]
    assert namespace.run("pwd").strip() == str(Path.cwd())


def test_a_thread_goes_in_and_comes_back(namespace: Namespace) -> None:
    home = Path("/proc/thread-self/ns/net").stat().st_ino
    with namespace.enter():
        assert Path("/proc/thread-self/ns/net").stat().st_ino == namespace.path.stat().st_ino
        assert [name for _, name in socket.if_nameindex()] == ["lo"]
    assert Path("/proc/thread-self/ns/net").stat().st_ino == home
    with pytest.raises(ZeroDivisionError), namespace.enter():
        _ = 1 / 0
    assert Path("/proc/thread-self/ns/net").stat().st_ino == home
