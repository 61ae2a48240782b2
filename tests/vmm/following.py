"""Following QEMUs in a test: what the engine would see, and waiting for it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from evertap.model.vmm import RxFilter, Vmm
from evertap.vmm.limits import Limits
from evertap.vmm.qmp import QemuMonitors

QUICK = Limits(answer=0.4, unplug=0.4, listening=0.3, backoff=0.1, backoff_most=0.4, calm=0.02)
"""For what has to fail by time."""


class Following:
    """QemuMonitors with an ear on it."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.vmms = QemuMonitors(limits)
        self.known: dict[str, Vmm] = {}
        self.repeated: list[tuple[str, Vmm]] = []
        self.history: list[tuple[str, Vmm]] = []
        self.filters: list[tuple[str, str, RxFilter]] = []
        self.listen()

    def listen(self) -> None:
        self.vmms.changed = self._changed
        self.vmms.filtered = lambda path, device, found: self.filters.append((path, device, found))

    def _changed(self, path: str, vmm: Vmm) -> None:
        if self.known.get(path) == vmm:
            self.repeated.append((path, vmm))
        self.known[path] = vmm
        self.history.append((path, vmm))

    def vmm(self, path: str) -> Vmm:
        return self.known.get(path, Vmm())

    async def running(self, path: str, within: float = 10) -> Vmm:
        await until(lambda: self.vmm(path).running, within)
        return self.vmm(path)

    async def not_running(self, path: str, words: str, within: float = 10) -> str:
        await until(lambda: not self.vmm(path).running and words in self.vmm(path).reason, within)
        return self.vmm(path).reason


async def until(condition: Callable[[], bool], within: float = 10) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)
    assert condition()


def follow(
    body: Callable[[Following], Awaitable[Any]], limits: Limits | None = None, *, debug: bool = True
) -> Any:
    """Run the body in a loop of its own; nothing may be left or have been lost at the end."""

    async def main() -> Any:
        failures: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        following = Following(limits)
        try:
            result = await body(following)
        finally:
            async with asyncio.timeout(5):
                await following.vmms.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left
        assert not failures
        assert not following.repeated, "was told again although nothing had changed"
        return result

    return asyncio.run(main(), debug=debug)
