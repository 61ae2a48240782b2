"""Watching nics.d, on real folders."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from evertap.config import watch as module
from evertap.config.watch import watch

Heard = Callable[[], Awaitable[None]]


def watched(config: Path, story: Callable[[list[float], Heard], Awaitable[None]]) -> None:
    """Run a story under watch; it gets the times of the calls, and what waits for the next."""

    async def all_of_it() -> None:
        calls: list[float] = []
        more = asyncio.Event()

        def changed() -> None:
            calls.append(time.monotonic())
            more.set()

        async def heard() -> None:
            async with asyncio.timeout(5):
                await more.wait()
            more.clear()

        async with watch(config, changed):
            await heard()  # once at the start
            calls.clear()
            await story(calls, heard)

    asyncio.run(all_of_it(), debug=True)


async def silence(calls: list[float]) -> None:
    number = len(calls)
    await asyncio.sleep(0.3)
    assert len(calls) == number


def test_every_kind_of_change_is_heard(tmp_path: Path) -> None:
    folder = tmp_path / "nics.d"
    folder.mkdir()

    async def story(calls: list[float], heard: Heard) -> None:
        (folder / "a.toml").write_text("x")
        await heard()
        (folder / "a.toml").rename(folder / "b.toml")
        await heard()
        (folder / "c.toml").symlink_to("b.toml")
        await heard()
        (folder / "b.toml").unlink()
        await heard()

    watched(tmp_path, story)


def test_a_burst_is_one_change_after_a_quiet_time(tmp_path: Path) -> None:
    folder = tmp_path / "nics.d"
    folder.mkdir()

    async def story(calls: list[float], heard: Heard) -> None:
        for number in range(20):
            (folder / f"n{number}.toml").write_text("x")
            await asyncio.sleep(0.01)
        last = time.monotonic()
        await heard()
        assert 0.05 < calls[0] - last < 1
        await silence(calls)
        assert len(calls) == 1

    watched(tmp_path, story)


def test_changes_without_a_pause_are_heard_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    folder = tmp_path / "nics.d"
    folder.mkdir()

    async def story(calls: list[float], heard: Heard) -> None:
        async with asyncio.timeout(5):
            while not calls:
                (folder / "a.toml").write_text("x")
                await asyncio.sleep(0.02)

    watched(tmp_path, story)


def test_files_that_are_no_definitions_are_not_heard(tmp_path: Path) -> None:
    folder = tmp_path / "nics.d"
    folder.mkdir()

    async def story(calls: list[float], heard: Heard) -> None:
        for name in (".a.toml.new", "a.toml~", "notes"):
            (folder / name).write_text("x")
        (tmp_path / "other").mkdir()
        await silence(calls)

    watched(tmp_path, story)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_folder_may_come_later_go_and_come_again(tmp_path: Path, depth: int) -> None:
    config = tmp_path.joinpath(*"abc"[:depth])
    folder = config / "nics.d"

    async def story(calls: list[float], heard: Heard) -> None:
        for _ in range(2):
            folder.mkdir(parents=True)
            await heard()
            (folder / "a.toml").write_text("x")
            await heard()
            shutil.rmtree(tmp_path / "a" if depth else folder)
            await heard()
            await silence(calls)

    watched(config, story)


def test_folder_may_be_exchanged_for_another(tmp_path: Path) -> None:
    (tmp_path / "etc" / "nics.d").mkdir(parents=True)
    (tmp_path / "other" / "nics.d").mkdir(parents=True)

    async def story(calls: list[float], heard: Heard) -> None:
        (tmp_path / "etc").rename(tmp_path / "old")
        (tmp_path / "other").rename(tmp_path / "etc")
        await heard()
        await silence(calls)
        (tmp_path / "etc" / "nics.d" / "a.toml").write_text("x")
        await heard()
        await silence(calls)
        (tmp_path / "old" / "nics.d" / "a.toml").write_text("x")
        await silence(calls)

    watched(tmp_path / "etc", story)


def test_without_inotify_the_daemon_goes_on_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(module, "Inotify", refused)

    async def story() -> None:
        async with watch(tmp_path, lambda: None):
            await asyncio.sleep(0.05)

    asyncio.run(story())
    assert "fs.inotify.max_user_instances" in caplog.text
    assert "SIGHUP" in caplog.text
