"""All followed QEMUs: the engine's port to them (ports.Vmms)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from evertap.model.errors import ActionError
from evertap.model.nic import Nic
from evertap.model.vmm import RxFilter, Vmm
from evertap.vmm import card, hub
from evertap.vmm.limits import Limits
from evertap.vmm.monitor import Monitor
from evertap.vmm.session import Session
from evertap.vmm.sockets import Sockets


class QemuMonitors:
    """Each QEMU by the path of its QMP socket. To be used, and closed, within one event loop.

    A call that is cancelled is carried out to its end nevertheless, so that nothing stays half done.
    `vhost`: the host's kernel has vhost-net, which `attach` then has QEMU use.
    """

    def __init__(self, limits: Limits | None = None, vhost: bool = False) -> None:
        self.changed: Callable[[str, Vmm], None] = _ignore
        # With path and the id of the guest's device (model.vmm.qemu_id), from which no name can be had back.
        self.filtered: Callable[[str, str, RxFilter], None] = _ignore_filter
        self._limits = limits or Limits()
        self._vhost = vhost
        self._sockets = Sockets()
        self._following: dict[str, tuple[Monitor, asyncio.Task[None]]] = {}
        self._tasks = set[asyncio.Task[None]]()

    def follow(self, paths: set[str]) -> None:
        """Keep a connection to each of these sockets while it exists, and to no other."""
        for path in self._following.keys() - paths:
            _, task = self._following.pop(path)
            task.cancel()
            self._keep(task)
        monitors = {path: monitor for path, (monitor, _) in self._following.items()}
        fresh = {path: self._monitor(path) for path in paths - self._following.keys()}
        self._sockets.follow({path: monitor.touch for path, monitor in (monitors | fresh).items()})
        # Only now that nothing can be missed.
        for path, monitor in fresh.items():
            self._following[path] = monitor, asyncio.create_task(monitor.run(), name=f"evertap-qmp {path}")

    async def plug(self, path: str, nic: str, index: int, descriptor: int) -> None:
        """Join an open macvtap, of that interface index, to the NIC's hub. Half done is undone."""
        await self._carry_out(
            path, nic, lambda session, own: hub.plug(session, nic, index, own[0]), [descriptor]
        )

    async def unplug(self, path: str, nic: str, index: int) -> None:
        """Take a macvtap off the NIC's hub again; no error if it is not on it."""
        await self._carry_out(path, nic, lambda session, _: hub.unplug(session, nic, index))

    async def set_link(self, path: str, nic: str, up: bool) -> None:
        """Let the guest see its card's carrier up or down."""
        await self._carry_out(path, nic, lambda session, _: card.set_link(session, nic, up))

    async def announce(self, path: str, nic: str) -> None:
        """Have QEMU send its own announcements for the guest's MAC (announce-self)."""
        await self._carry_out(path, nic, lambda session, _: card.announce(session, nic))

    async def attach(self, path: str, nic: Nic, descriptors: Sequence[int]) -> None:
        """Plug the guest's device: on its tap, whose open queues are given, or on a hub (none given)."""
        await self._carry_out(
            path, nic.name, lambda session, own: card.attach(session, nic, own, self._vhost), descriptors
        )

    async def detach(self, path: str, nic: Nic) -> None:
        """Unplug the guest's device, wait until the guest has let go, remove its netdevs."""
        await self._carry_out(path, nic.name, lambda session, _: card.detach(session, nic))

    async def close(self) -> None:
        """End all connections, and what is under way on them."""
        self.follow(set())
        await self._sockets.close()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _monitor(self, path: str) -> Monitor:
        return Monitor(
            path,
            self._limits,
            lambda: self._sockets.trouble,
            lambda vmm: self.changed(path, vmm),
            lambda device, found: self.filtered(path, device, found),
        )

    async def _carry_out(
        self,
        path: str,
        nic: str,
        work: Callable[[Session, Sequence[int]], Awaitable[None]],
        descriptors: Sequence[int] = (),
    ) -> None:
        monitor, _ = self._following.get(path, (None, None))
        if monitor is None:
            raise ActionError(f"QEMU of NIC {nic}: {path} is not followed")
        if monitor.session is None:
            reason = monitor.vmm.reason if monitor.vmm else "not connected yet"
            raise ActionError(f"QEMU of NIC {nic}: {reason}")
        # Copies: who has called may be cancelled, and close them and open others under their numbers.
        own: list[int] = []
        try:
            own.extend(map(os.dup, descriptors))
        except OSError as error:
            _close(own)  # those before the one that failed
            raise ActionError(f"QEMU of NIC {nic}: its descriptor: {error.strerror}") from error
        task = asyncio.create_task(_do(partial(work, monitor.session, own), nic, own))
        self._keep(task)
        await asyncio.shield(task)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, even if by nobody


async def _do(work: Callable[[], Awaitable[None]], nic: str, own: list[int]) -> None:
    try:
        await work()
    except ActionError as error:
        raise ActionError(f"QEMU of NIC {nic}: {error}") from error
    finally:
        _close(own)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _ignore(path: str, vmm: Vmm) -> None:
    """Before the engine has set its own."""


def _ignore_filter(path: str, device: str, found: RxFilter) -> None:
    """Before the engine has set its own."""
