"""Wires everything: the one place that knows all parts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from evertap import systemd
from evertap.api.server import serve
from evertap.config.store import Store
from evertap.config.watch import watch
from evertap.engine.chronicle import Chronicle
from evertap.engine.domains import DomainBook
from evertap.engine.figures import figures
from evertap.engine.journal import Journal
from evertap.engine.libvirt_side import LibvirtSide
from evertap.engine.reconciler import Reconciler
from evertap.engine.routing import Routing
from evertap.engine.service import Service
from evertap.history.file import HistoryFile
from evertap.kernel.host import Host
from evertap.libvirt import available
from evertap.model.errors import EvertapError
from evertap.rights import check_capabilities, check_folder, meddlers
from evertap.vmm.qmp import QemuMonitors

if TYPE_CHECKING:
    from evertap.libvirt.domains import LibvirtDomains

_log = logging.getLogger("evertap")


def run(
    config_dir: Path,
    runtime_dir: Path,
    state_dir: Path,
    libvirt_uri: str = "none",
    *,
    replug_all: bool = False,
    metrics: tuple[str, int] | None = None,
) -> None:
    """Run the daemon in the foreground until SIGTERM or SIGINT. EvertapError if it cannot start.

    `libvirt_uri`: the libvirt to follow, "none" for none; `replug_all`: replug lost direct interfaces of all
    its domains; `metrics`: the IP address and port to serve metrics at.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    _allow_many_descriptors()
    check_capabilities()
    check_folders(config_dir, runtime_dir, state_dir)
    with _only_one_here():
        asyncio.run(_main(config_dir, runtime_dir, state_dir, libvirt_uri, replug_all, metrics))


async def _main(
    config_dir: Path,
    runtime_dir: Path,
    state_dir: Path,
    libvirt_uri: str,
    replug_all: bool,
    metrics: tuple[str, int] | None,
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        chronicle = Chronicle(HistoryFile(state_dir / "history.db"))
        stack.push_async_callback(chronicle.close)
        await chronicle.start()
        journal = Journal(chronicle)
        try:
            host = stack.enter_context(contextlib.closing(Host()))
        except PermissionError as error:
            raise EvertapError(f"{error}: the daemon has to run as root") from None
        vhost = os.access("/dev/vhost-net", os.R_OK | os.W_OK)
        monitors = QemuMonitors(vhost=vhost)
        stack.push_async_callback(monitors.close)
        book = DomainBook(replug_all=replug_all)
        domains = _domains(libvirt_uri)
        vmms = Routing(monitors, domains, book)
        stack.push_async_callback(vmms.close)
        qmp_folder = runtime_dir / "qmp"
        try:
            qmp_folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EvertapError(f"{qmp_folder}: cannot be made: {error.strerror}") from error
        reconciler = Reconciler(host, vmms, journal)
        service = Service(
            reconciler,
            journal,
            Store(config_dir, runtime_dir, state_dir),
            host,
            vmms,
            book,
            qmp_folder=str(qmp_folder),
            vhost=vhost,
        )
        reloads = _Reloads(service)
        await service.start()
        stack.push_async_callback(service.stop)
        if domains:
            side = LibvirtSide(domains, service, reconciler, vmms, journal)
            service.libvirt = side
            side.start()
            stack.push_async_callback(side.stop)
            domains.start()
            stack.push_async_callback(domains.close)
        clients = await stack.enter_async_context(serve(service, runtime_dir))
        if metrics:
            from evertap.metrics.server import serve_metrics  # 0.1 s to import

            await stack.enter_async_context(
                serve_metrics(*metrics, lambda: figures(reconciler, journal, service.refused(), clients()))
            )
        await stack.enter_async_context(watch(config_dir, reloads.request))
        loop.add_signal_handler(signal.SIGHUP, reloads.request)
        stack.enter_context(systemd.watchdog())
        systemd.notify("READY=1")
        _log.info("ready: definitions in %s, socket in %s", config_dir / "nics.d", runtime_dir)
        await stop.wait()
        systemd.notify("STOPPING=1")
        _log.info("stopping; traffic goes on")


def _domains(uri: str) -> LibvirtDomains | None:
    """The adapter to libvirt, where it is wanted and the binding is installed."""
    if uri == "none":
        return None
    if not available():
        _log.info("libvirt-python is not installed (evertap[libvirt]): libvirt's domains are not followed")
        return None
    from evertap.libvirt.domains import LibvirtDomains  # needs the binding

    return LibvirtDomains(uri)


class _Reloads:
    """Rereads the definitions when asked, once for any number of requests that come meanwhile."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def request(self) -> None:
        """Have the definitions reread."""
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._reload())

    async def _reload(self) -> None:
        while self._again:
            self._again = False
            try:
                await self._service.reload()
            except Exception:
                _log.exception("rereading the definitions failed; those in force stay")


@contextlib.contextmanager
def _only_one_here() -> Iterator[None]:
    """Two daemons would take each other's devices for remains. Abstract names are per network namespace."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
        try:
            claim.bind("\0evertap-daemon")
        except OSError:
            raise EvertapError(
                "another evertap daemon runs in this network namespace; stop it first"
            ) from None
        yield


def _allow_many_descriptors() -> None:
    """A NIC takes two descriptors: raise the soft limit as far as it goes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def check_folders(config_dir: Path, runtime_dir: Path, state_dir: Path) -> None:
    """Nobody else may exchange what the daemon keeps; definitions are whose the administrator wants."""
    kept = (runtime_dir, runtime_dir / "live", state_dir, state_dir / "accepted", state_dir / "domains")
    for folder in kept:
        check_folder(folder)
    for folder in (config_dir, config_dir / "nics.d"):
        if problem := meddlers(folder):
            _log.warning("%s %s, who can change NICs", folder, problem)
