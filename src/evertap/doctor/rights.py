"""What the daemon would be allowed to do if it were started from here."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from typing import Final

from evertap.doctor.check import Check
from evertap.doctor.host import Host
from evertap.kernel.tun import DEVICE
from evertap.rights import NEEDED, missing

_FEW_DESCRIPTORS: Final = 4096


def checks(host: Host) -> Iterator[Check]:
    """Rights and limits."""
    yield _capabilities(host)
    yield _tun_device(host)
    yield _lockdown(host)
    yield _descriptors()


def _capabilities(host: Host) -> Check:
    lacking = missing(NEEDED)
    if not lacking:
        return Check("capabilities", "ok", "all that the daemon needs")
    names = ", ".join(each.name for each in lacking)
    if host.is_root:
        return Check(
            "capabilities",
            "broken",
            f"root here lacks {names}",
            "start the daemon outside of this container or unit, or give it these capabilities",
        )
    return Check("capabilities", "note", f"this user lacks {names}: the daemon has to be started by root")


def _tun_device(host: Host) -> Check:
    device = host.path(DEVICE)
    if not device.exists():
        remedy = f"modprobe tun, or in a container: mkdir -p /dev/net; mknod -m 666 {DEVICE} c 10 200"
        return Check(DEVICE, "broken", "is not there: no taps can be made", remedy)
    if not os.access(device, os.R_OK | os.W_OK):
        remedy = (
            f"chmod 666 {DEVICE}, which is what udev gives it; what a user may do with it the kernel checks"
        )
        result = "Its rights keep this user from opening it"
        return Check(DEVICE, "broken" if host.is_root else "warning", result, remedy)
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Check(DEVICE, "broken", f"cannot be opened: {error.strerror}", "modprobe tun")
    return Check(DEVICE, "ok", "can be opened")


def _lockdown(host: Host) -> Check:
    text = host.read("/sys/kernel/security/lockdown")
    mode = text.partition("[")[2].partition("]")[0] or "none"
    if mode == "confidentiality":
        found = "the kernel's lockdown is confidentiality, which allows programs that read frames only"
        return Check("lockdown", "note", found)
    return Check("lockdown", "ok", f"the kernel's lockdown is {mode}")


def _descriptors() -> Check:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= _FEW_DESCRIPTORS:
        count = "any number of" if hard == resource.RLIM_INFINITY else f"some {hard // 2:,}"
        return Check("open files", "ok", f"room for {count} NICs")
    remedy = "raise the hard limit: ulimit -Hn 65536, or LimitNOFILE=65536 in the unit"
    return Check("open files", "warning", f"at most {hard}, which is room for {hard // 2} NICs", remedy)
