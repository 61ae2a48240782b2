"""Examines a host for what evertap needs and for programs that would take its devices. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from evertap.doctor.check import Check
from evertap.doctor.host import Host


def examine(config_dir: Path, runtime_dir: Path, host: Host | None = None) -> Iterator[Check]:
    """All checks, one by one; the definitions are `config_dir`'s, the daemon is asked in `runtime_dir`."""
    from evertap.doctor import daemon, definitions, kernel, managers, network, rights, vmms

    host = host or Host()
    found = definitions.read(config_dir)
    yield from kernel.checks(host)
    yield from rights.checks(host)
    yield from daemon.checks(host, config_dir, runtime_dir)
    yield from definitions.checks(host, found)
    yield from managers.checks(host, found)
    yield from network.checks(host, found)
    yield from vmms.checks(host)
