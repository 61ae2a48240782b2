"""A libvirtd that ends, comes back, hangs, or was never there; and one that has nothing to say."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evertap.lab.libvirtd import Libvirtd
from evertap.libvirt.limits import Limits
from evertap.libvirt.sockets import candidates
from evertap.model.errors import ActionError, EvertapError
from tests.libvirt.conftest import MAC, Blank
from tests.libvirt.following import Following, follow, until

SOURCES = Path(__file__).parents[2] / "src"


@pytest.fixture
def mended(libvirtd: Libvirtd) -> Iterator[Libvirtd]:
    """Runs again afterwards, whatever the test has done."""
    yield libvirtd
    libvirtd.kill()
    libvirtd.start()


def test_a_libvirtd_that_was_killed_is_read_again_when_it_is_back(mended: Libvirtd, paused: Blank) -> None:
    async def body(following: Following) -> None:
        await asyncio.to_thread(mended.kill)
        await following.lost("libvirt has ended")
        with pytest.raises(ActionError, match="setting the link, domain blank: "):
            await following.domains.set_link(paused.uuid, MAC, False)
        assert following.known[paused.uuid].running, "what was known stays known"
        await asyncio.to_thread(mended.start)
        await following.connected(1)
        # What happened meanwhile, and what happens now.
        await following.domains.set_link(paused.uuid, MAC, False)
        await following.see(paused.uuid, lambda it: "<link state='down'/>" in it.live_xml)

    follow(mended.uri, body)


def test_changes_while_disconnected_are_found(mended: Libvirtd, blank: Blank) -> None:
    other = Blank(mended, "other")

    async def body(following: Following) -> None:
        await asyncio.to_thread(mended.stop)
        await following.lost("no libvirt socket yet")
        (mended.path / "etc" / "qemu" / "blank.xml").rename(mended.path / "blank.xml")
        await asyncio.to_thread(mended.start)
        await until(lambda: blank.uuid not in following.known)
        await following.connected()
        await asyncio.to_thread(mended.define, other.xml)
        await following.see(other.uuid, lambda it: it.name == "other")

    follow(mended.uri, body)
    mended.virsh("undefine", "other")


def test_the_socket_may_come_later_with_its_folder(mended: Libvirtd, tmp_path: Path) -> None:
    path = tmp_path / "run" / "libvirt" / "sock"

    async def main() -> None:
        following = Following(f"qemu:///system?socket={path}")
        following.domains.start()
        try:
            await following.lost("no libvirt socket yet")
            assert str(path) in following.reasons[-1]
            path.parent.mkdir(parents=True)
            await asyncio.sleep(0.1)
            path.hardlink_to(mended.socket)
            await following.connected(1)
        finally:
            await following.domains.close()
        assert not following.wrong

    if tmp_path.stat().st_dev != mended.path.stat().st_dev:
        pytest.skip("the temporary folders are on different file systems")
    asyncio.run(main(), debug=True)


def test_a_libvirtd_that_hangs_delays_nobody(mended: Libvirtd, paused: Blank) -> None:
    longest = 0.0

    async def measure() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - before)

    async def body(following: Following) -> None:
        domains = following.domains
        mended.pause()
        measuring = asyncio.create_task(measure())
        started = time.monotonic()
        with pytest.raises(ActionError, match="libvirt does not answer within 1 s"):
            await domains.set_link(paused.uuid, MAC, False)
        assert 0.9 < time.monotonic() - started < 1.5
        await following.lost("libvirt does not answer within 1 s")
        started = time.monotonic()
        with pytest.raises(ActionError, match="libvirt does not answer within 1 s"):
            await domains.set_link(paused.uuid, MAC, False)
        assert time.monotonic() - started < 0.1
        await asyncio.sleep(1.5)
        threads = threading.active_count()
        await asyncio.sleep(1)
        assert threading.active_count() == threads, "one attempt is enough"
        measuring.cancel()
        assert longest < 0.2
        mended.resume()
        await following.connected(2)
        await domains.set_link(paused.uuid, MAC, False)
        await following.see(paused.uuid, lambda it: "<link state='down'/>" in it.live_xml)
        await domains.set_link(paused.uuid, MAC, True)

    follow(mended.uri, body, Limits(answer=1, probe=0.3))


def test_closing_does_not_wait_for_a_libvirtd_that_hangs(mended: Libvirtd) -> None:
    async def body(following: Following) -> None:
        mended.pause()

    started = time.monotonic()
    follow(mended.uri, body, Limits(probe=0.3))
    assert time.monotonic() - started < 1.5
    mended.resume()


def test_nothing_is_left_of_ten_lost_connections(mended: Libvirtd, paused: Blank) -> None:
    def count() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208

    async def body(following: Following) -> None:
        async def again() -> None:
            await asyncio.to_thread(mended.kill)
            await until(lambda: following.reasons[-1] != "")
            await asyncio.to_thread(mended.start)
            await following.connected()
            await following.domains.set_link(paused.uuid, MAC, False)
            await following.domains.set_link(paused.uuid, MAC, True)

        for _ in range(3):  # until all threads are there that are used at a time
            await again()
        await asyncio.sleep(0.1)
        before = count()
        for _ in range(10):
            await again()
        await asyncio.sleep(0.1)
        after = count()
        assert after[0] == before[0]
        assert after[1] <= before[1] + 2  # one more at a time, by chance, but not ten

    follow(mended.uri, body)


def test_uris_that_cannot_be_followed_are_refused() -> None:
    for uri in ("qemu+ssh://host/system", "qemu+tls:///system", "lxc:///", "test:///default", "nonsense"):
        with pytest.raises(EvertapError, match="only QEMU on this host"):
            candidates(uri)
    assert [path.name for path in candidates("qemu:///system")] == ["libvirt-sock", "virtqemud-sock"]
    assert candidates("qemu:///system?socket=/x/y") == [Path("/x/y")]


FOLLOWER = """
import asyncio, sys
from evertap.libvirt.domains import LibvirtDomains

async def main():
    domains = LibvirtDomains(sys.argv[1])
    domains.connected = lambda reason: reason or print("connected", flush=True)
    domains.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextmanager
def follower(uri: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", FOLLOWER, uri],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SOURCES)},
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "connected\n"
            yield process
        finally:
            process.kill()


def test_with_nothing_happening_there_are_no_wake_ups(
    libvirtd: Libvirtd, paused: Blank, tmp_path: Path
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: apt-get install strace")
    trace = tmp_path / "trace"
    with follower(libvirtd.uri) as process:
        time.sleep(0.5)
        command = ["strace", "-f", "-qq", "-o", str(trace), "-p", str(process.pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            time.sleep(5)
            if strace.poll() is not None:
                pytest.skip(f"strace cannot attach: {strace.communicate()[1]}")
            strace.terminate()
        threads = len(list(Path(f"/proc/{process.pid}/task").iterdir()))
    # At first strace shows, once a thread, the call that it is found waiting in; its end is of the detaching.
    lines = [line for line in trace.read_text().splitlines() if "<detached ...>" not in line]
    assert len(lines) <= threads, lines
    assert all("<unfinished ...>" in line for line in lines), lines
