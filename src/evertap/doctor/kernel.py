"""Whether this kernel has what evertap asks of it: told by tries, not by its configuration."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Final, NamedTuple

from evertap.doctor.check import Check, Result
from evertap.doctor.host import Host

_AS_ROOT: Final = "sudo evertap doctor"


class _Feature(NamedTuple):
    trial: str
    name: str
    purpose: str
    remedy: str
    lack: Result = "broken"


_FEATURES: Final = (
    _Feature("dump", "rtnetlink", "read interfaces", "use a kernel with CONFIG_NET"),
    _Feature("strict", "strict dumps", "dump one interface's filters", "use Linux 4.20 or newer", "warning"),
    _Feature("tun", "tap", "make taps", "modprobe tun; a container needs the device /dev/net/tun"),
    _Feature("macvlan", "macvlan", "make macvlans on uplinks", "modprobe macvlan (CONFIG_MACVLAN)"),
    _Feature(
        "macvtap", "macvtap", 'make macvtaps, for backend "macvtap" only', "modprobe macvtap", "warning"
    ),
    _Feature(
        "clsact", "clsact", "have programs at a macvlan", "modprobe sch_ingress (CONFIG_NET_SCH_INGRESS)"
    ),
    _Feature(
        "bpf",
        "bpf(2)",
        "load the programs that splice",
        "run it as root, or with CAP_BPF (or CAP_SYS_ADMIN) and CAP_NET_ADMIN; the kernel needs "
        "CONFIG_BPF_SYSCALL",
    ),
    _Feature("cls_bpf", "cls_bpf", "attach programs to macvlans", "modprobe cls_bpf (CONFIG_NET_CLS_BPF)"),
    _Feature(
        "tcx",
        "tcx",
        "attach programs to taps (else clsact, some 5 % slower)",
        "use Linux 6.6 or newer",
        "note",
    ),
    _Feature("read_back", "maps read back", "find NICs again after a restart", "run it with CAP_SYS_ADMIN"),
)


def checks(host: Host) -> Iterator[Check]:
    """One check a feature."""
    release = platform.release()
    said = host.trials
    if reason := said.get("namespace"):
        yield Check(
            "kernel",
            "note",
            f"Linux {release}; its features cannot be checked: no private network namespace ({reason})",
            "" if host.is_root else _AS_ROOT,
        )
        return
    yield Check("kernel", "ok", f"Linux {release}; what follows was tried in a private network namespace")
    for feature in _FEATURES:
        yield _check(host, feature, said.get(feature.trial))


def _check(host: Host, feature: _Feature, error: str | None) -> Check:
    if error is None:
        return Check(feature.name, "note", f"not tried, as another trial failed; to {feature.purpose}")
    if not error:
        return Check(feature.name, "ok", f"can {feature.purpose}")
    found = f"cannot {feature.purpose}: {error}"
    if not host.is_root and feature.trial in ("bpf", "tun", "read_back"):
        # Of this user it says nothing about what the daemon may do.
        return Check(feature.name, "note", f"cannot be checked by this user: {error}", _AS_ROOT)
    return Check(feature.name, feature.lack, found, feature.remedy)
