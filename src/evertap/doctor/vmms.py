"""What runs the VMs: QEMU and libvirt. Neither has to be there: a VMM that can open a tap is enough."""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Iterator
from typing import Final

from evertap.doctor.check import Check
from evertap.doctor.host import Host
from evertap.libvirt import available

_URI: Final = "qemu:///system"
_QEMU_FLOOR: Final = (7, 2)
_WITH_FILES: Final = (8, 2)
_HOOKS: Final = ("/etc/libvirt/hooks/qemu.d/evertap", "/etc/libvirt/hooks/qemu")
_MARK: Final = "evertap libvirt-setup"
_DAEMONS: Final = ("libvirtd", "virtqemud")


def checks(host: Host) -> Iterator[Check]:
    """QEMU, vhost-net, libvirt."""
    yield _qemu(host)
    yield _vhost(host)
    yield from _libvirt(host)


def _qemu(host: Host) -> Check:
    names = (f"qemu-system-{platform.machine()}", "qemu-kvm", "/usr/libexec/qemu-kvm")
    path = next((path for name in names if (path := shutil.which(name))), None)
    if path is None:
        found = "no QEMU in the PATH: fine if another VMM, or another user's QEMU, is to open the taps"
        return Check("QEMU", "note", found, "apt-get install qemu-system-x86, or dnf install qemu-kvm")
    answer = host.run(path, "--version")
    version = _version(answer.output)
    if version is None:
        return Check(
            "QEMU", "warning", f"{path} does not tell its version: {answer.errors}", f"{path} --version"
        )
    text = ".".join(map(str, version))
    if version < _QEMU_FLOOR:
        found = f"{path} is {text}: enough for backend tap; the rest is tested from 7.2 on"
        return Check("QEMU", "warning", found, "use QEMU 7.2 or newer")
    repeat = (
        "; a repeated detach works" if version >= (8, 0) else "; a pending detach is not repeated (8.0 does)"
    )
    return Check("QEMU", "ok", f"{path} is {text}: both backends, attach, guest_link{repeat}")


def _vhost(host: Host) -> Check:
    if host.path("/dev/vhost-net").exists():
        return Check("vhost-net", "ok", "is there, and is used")
    return Check("vhost-net", "note", "is not there: guests' traffic costs QEMU more", "modprobe vhost_net")


def _libvirt(host: Host) -> Iterator[Check]:
    answer = host.run("virsh", "-r", "-c", _URI, "version", "--daemon")
    runs = any(host.runs(name) for name in _DAEMONS)
    if answer.code == 127 and not runs:
        yield Check("libvirt", "ok", "is not installed; evertap does not need it")
        return
    yield _daemon(answer.code, answer.output, answer.errors, runs)
    if available():
        yield Check("libvirt-python", "ok", "is installed: the daemon can follow domains")
    else:
        found = "is not installed for this Python: the daemon does not follow domains"
        yield Check(
            "libvirt-python", "warning", found, "pip install 'evertap[libvirt]', and restart the daemon"
        )
    yield _hook(host)


def _daemon(code: int, output: str, errors: str, runs: bool) -> Check:
    if code == 127:
        return Check(
            "libvirt", "note", "runs; virsh is not there to ask it", "apt-get install libvirt-clients"
        )
    if code:
        if not runs:
            start = "systemctl start libvirtd, or virtqemud.socket"
            return Check(
                "libvirt", "note", "does not run: NICs need it for changes of its domains only", start
            )
        reason = errors.splitlines()[-1] if errors else f"virsh ended with code {code}"
        return Check("libvirt", "warning", f"does not answer at {_URI}: {reason}", f"virsh -c {_URI} version")
    match = re.search(r"daemon:?\s*(\d+\.\d+\.\d+)", output)
    version = _version(match[1]) if match else None
    if version and version < _WITH_FILES:
        found = f"{'.'.join(map(str, version))}: no macvtap backend for domains, which needs 8.2"
        return Check("libvirt", "warning", found, "use libvirt 8.2 or newer; backend tap does not need it")
    return Check("libvirt", "ok", f"answers; {match[1] if match else 'its version is not known'}")


def _hook(host: Host) -> Check:
    for path in _HOOKS:
        if _MARK in host.read(path):
            return Check("libvirt's hook", "ok", f"{path} makes taps before a domain starts")
    found = "is not installed: a domain whose taps are not there yet does not start while the daemon is down"
    return Check("libvirt's hook", "note", found, "evertap libvirt-setup && systemctl restart libvirtd")


def _version(text: str) -> tuple[int, int] | None:
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None
