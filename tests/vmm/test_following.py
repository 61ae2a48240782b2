"""Sockets that come, go, are replaced, or are none: always followed by events."""

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest

from evertap.vmm.limits import Limits
from tests.vmm.fake_qmp import FakeQmp
from tests.vmm.following import QUICK, Following, follow, until


def test_a_socket_is_connected_when_it_appears_wherever_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "vm.qmp"

    async def body(following: Following) -> None:
        following.vmms.follow({str(path)})
        await following.not_running(str(path), "no QMP socket yet")
        (tmp_path / "a").mkdir()
        await until(lambda: True)
        (tmp_path / "a" / "b").mkdir()
        fake = FakeQmp(path)
        fake.netdevs = {"evertap-x-host": {"type": "tap"}, "other": {"type": "tap"}}
        with fake:
            vmm = await following.running(str(path))
            assert vmm.parts == {"evertap-x-host"}
            assert vmm.reason == ""
        await following.not_running(str(path), "QEMU has ended")
        (tmp_path / "a" / "b").rmdir()
        (tmp_path / "a").rename(tmp_path / "c")
        (tmp_path / "a" / "b").mkdir(parents=True)
        with FakeQmp(path):
            await following.running(str(path))

    follow(body)


def test_qemu_may_listen_a_moment_after_it_made_the_socket(tmp_path: Path) -> None:
    fake = FakeQmp(tmp_path / "vm.qmp")

    async def body(following: Following) -> None:
        following.vmms.follow({fake.path})
        fake.start(listen=False)
        await asyncio.sleep(0.1)
        fake.listen()
        await following.running(fake.path)
        assert all(vmm.running or vmm.reason == "no QMP socket yet" for _, vmm in following.history)

    follow(body)
    fake.stop()


def test_a_socket_on_which_nobody_listens_waits_for_a_new_one(tmp_path: Path) -> None:
    fake = FakeQmp(tmp_path / "vm.qmp")
    fake.start(listen=False)
    fake.stop(leave_file=True)

    async def body(following: Following) -> None:
        following.vmms.follow({fake.path})
        await following.not_running(fake.path, "nobody listens")
        fake.start()
        await following.running(fake.path)
        fake.stop(leave_file=True)
        await following.not_running(fake.path, "QEMU has ended")
        fake.start()
        await following.running(fake.path)

    follow(body, QUICK)
    fake.stop()


def test_a_new_socket_in_the_place_of_one_in_use_is_the_one_that_counts(tmp_path: Path) -> None:
    old, new = FakeQmp(tmp_path / "vm.qmp"), FakeQmp(tmp_path / "vm.qmp")

    async def body(following: Following) -> None:
        following.vmms.follow({old.path})
        with old:
            await following.running(old.path)
            os.unlink(old.path)  # noqa: PTH108
            new.netdevs = {"evertap-new": {"type": "tap"}}
            with new:
                await until(lambda: "evertap-new" in following.vmm(new.path).parts)

    follow(body)


def test_what_is_no_socket_is_said_to_be_none(tmp_path: Path) -> None:
    plain, link, folder, through, missing = (
        str(tmp_path / name) for name in ("plain", "link", "folder", "plain/vm.qmp", "missing")
    )
    Path(plain).write_text("")
    Path(folder).mkdir()

    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "real") as real:
            os.symlink(real.path, link)  # noqa: PTH211
            following.vmms.follow({plain, link, folder, through, missing})
            await following.not_running(plain, "is no socket")
            await following.not_running(folder, "is no socket")
            await following.not_running(link, "symbolic link")
            await following.not_running(through, "Not a directory")
            await following.not_running(missing, "no QMP socket yet")
            assert real.clients == 0
        os.unlink(plain)  # noqa: PTH108
        with FakeQmp(plain):
            await following.running(plain)

    follow(body)


def test_a_path_may_be_longer_than_a_sockets_address(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    back = Path.cwd()
    fake = FakeQmp("vm.qmp")
    os.chdir(folder)
    try:
        with fake:
            os.chdir(back)
            follow(lambda following: _connects(following, str(folder / "vm.qmp")))
            os.chdir(folder)
    finally:
        os.chdir(back)


async def _connects(following: Following, path: str) -> None:
    following.vmms.follow({path})
    await following.running(path)


def test_a_socket_that_another_client_holds_is_used_once_that_one_leaves(tmp_path: Path) -> None:
    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake:
            other = socket.socket(socket.AF_UNIX)
            other.connect(fake.path)
            following.vmms.follow({fake.path})
            reason = await following.not_running(fake.path, "another program holds this QMP socket")
            assert "within 0.4 s" in reason
            other.close()
            await following.running(fake.path)
            assert fake.clients == 2

    follow(body, QUICK)


def test_a_full_queue_is_tried_again(tmp_path: Path) -> None:
    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake:
            others = [socket.socket(socket.AF_UNIX) for _ in range(4)]
            for other in others:
                other.setblocking(False)
                try:
                    other.connect(fake.path)
                except BlockingIOError:
                    break
            following.vmms.follow({fake.path})
            await following.not_running(fake.path, "another program holds this QMP socket")
            for other in others:
                other.close()
            await following.running(fake.path)

    follow(body, QUICK)


def test_what_is_no_longer_followed_is_let_go(tmp_path: Path) -> None:
    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "a") as one, FakeQmp(tmp_path / "b") as two:
            following.vmms.follow({one.path, two.path})
            await following.running(one.path)
            await following.running(two.path)
            following.vmms.follow({two.path})
            await until(lambda: one.peer is None)
            told = len(following.history)
            assert two.peer is not None
            del following.known[one.path]
            following.vmms.follow({one.path, two.path})
            await until(lambda: len(following.history) > told)
            assert following.history[-1][0] == one.path
            assert following.history[-1][1].running

    follow(body)


def test_following_costs_no_descriptors(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))

    async def body(following: Following) -> None:
        fake = FakeQmp(tmp_path / "vm.qmp")
        following.vmms.follow({fake.path})
        for _ in range(20):
            with fake:
                await following.running(fake.path)
            await following.not_running(fake.path, "QEMU has ended")

    follow(body, Limits(calm=0))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_without_inotify_it_is_tried_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("evertap.vmm.sockets.Inotify", refuse)

    async def body(following: Following) -> None:
        path = str(tmp_path / "vm.qmp")
        following.vmms.follow({path})
        await following.not_running(
            path, "no QMP socket yet; cannot watch for sockets: Too many open files. Raise"
        )
        with FakeQmp(path):
            await following.running(path)

    follow(body, QUICK)


def test_an_idle_socket_file_causes_no_work(tmp_path: Path) -> None:
    async def body(following: Following) -> None:
        path = tmp_path / "vm.qmp"
        path.write_text("")
        following.vmms.follow({str(path)})
        await following.not_running(str(path), "is no socket")
        monitor = following.vmms._following[str(path)][0]
        looked = 0
        once = monitor._once

        async def count() -> bool:
            nonlocal looked
            looked += 1
            return await once()

        monitor._once = count  # type: ignore[method-assign]
        await until(lambda: True)
        path.touch()
        await until(lambda: looked > 0)
        seen = looked
        await asyncio.sleep(0.5)
        assert looked <= seen + 1

    follow(body, QUICK)
