"""Settings of the host's network that evertap's taps rely on, and other programs at its uplinks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from evertap.doctor.check import Check
from evertap.doctor.definitions import Definitions
from evertap.doctor.host import Host
from evertap.kernel import bpf
from evertap.kernel.rtnetlink import Rtnetlink
from evertap.model.choice import matching
from evertap.model.links import Link
from evertap.model.observed import Observed

_CONF: Final = "/proc/sys/net"
_LOOSE: Final = "2"


def checks(host: Host, found: Definitions) -> Iterator[Check]:
    """Settings, then uplinks."""
    yield _rp_filter(host)
    yield from _taps(host)
    yield _bridge_filter(host, found)
    yield from _other_programs(host, found)


def _rp_filter(host: Host) -> Check:
    """The kernel takes the higher of "all" and the interface's own: 2, loose, would undo the tap's 1."""
    if host.read(f"{_CONF}/ipv4/conf/all/rp_filter").strip() != _LOOSE:
        return Check("rp_filter", "ok", "taps have their own strict rp_filter")
    found = (
        "net.ipv4.conf.all.rp_filter is 2 (loose) and outdoes the taps' strict one: what a guest sends in "
        "the milliseconds after its bridge was deleted may reach the host's stack"
    )
    return Check(
        "rp_filter", "note", found, "sysctl -w net.ipv4.conf.all.rp_filter=0 (each interface has its own)"
    )


def _taps(host: Host) -> Iterator[Check]:
    """What somebody has changed on our taps: systemd's sysctl settings for all interfaces, for example."""
    wanted = {"ipv4/conf/{}/rp_filter": "1", "ipv4/conf/{}/arp_ignore": "8", "ipv6/conf/{}/disable_ipv6": "1"}
    taps = [link for link in host.links if link.owner and link.kind == "tun"]
    wrong = []
    for tap in taps:
        for setting, value in wanted.items():
            is_now = host.read(f"{_CONF}/{setting.format(tap.name)}").strip()
            if is_now not in ("", value):
                wrong.append((setting.format(tap.name), is_now, value))
    for setting, is_now, value in wrong:
        found = f"{setting} is {is_now}, where evertap had set {value}: look for it in /etc/sysctl.d"
        yield Check("tap settings", "warning", found, f"sysctl -w net/{setting}={value}")
    if taps and not wrong:
        yield Check("tap settings", "ok", f"{len(taps)} taps are as evertap has set them")


def _bridge_filter(host: Host, found: Definitions) -> Check:
    files = {f"{_CONF}/bridge/bridge-nf-call-{name}": name for name in ("iptables", "ip6tables", "arptables")}
    on = [name for path, name in files.items() if host.read(path).strip() == "1"]
    if not on:
        return Check("bridge filter", "ok", "frames on bridges do not pass iptables")
    bridges = _bridges(host, found)
    docker = ", and Docker runs, which drops what it does not know" if host.runs("dockerd") else ""
    said = f"frames on bridges pass {', '.join(on)}{docker}; this concerns NICs on bridges"
    if not bridges:
        return Check("bridge filter", "note", f"{said}, of which there are none")
    remedy = (
        f"sysctl -w net.bridge.bridge-nf-call-{on[0]}=0, or let {bridges[0]} through in the FORWARD chain"
    )
    return Check("bridge filter", "warning", f"{said}: {', '.join(bridges)}", remedy)


def _bridges(host: Host, found: Definitions) -> list[str]:
    """The bridges that definitions name, whether by `bridge` or not, and that taps of ours are in."""
    named = {spec.bridge for nic in found.nics.values() for spec in nic.uplinks if spec.bridge}
    present = {link.name for link in _uplinks(host, found) if link.kind == "bridge"}
    return sorted(named | present)


def _uplinks(host: Host, found: Definitions) -> list[Link]:
    seen = Observed()
    for link in host.links:
        seen.links.put(link)
    all_found = (link for nic in found.nics.values() for spec in nic.uplinks for link in matching(spec, seen))
    return list({link.index: link for link in all_found}.values())


def _other_programs(host: Host, found: Definitions) -> Iterator[Check]:
    """Programs at an uplink's ingress, such as Cilium's, run before a macvlan gets the frame."""
    with Rtnetlink() as rtnetlink:
        for uplink in _uplinks(host, found):
            if uplink.kind == "bridge":
                continue
            count = 0
            with suppress(OSError):  # no such right, or no tcx
                count += len(bpf.tcx_programs(uplink.index))
            with suppress(OSError):
                count += len(rtnetlink.dump_filters(uplink.index))
            if count:
                said = f"{count} programs at the ingress of {uplink.name} see frames before the macvlans do"
                remedy = f"see that they let guests' frames through: tc filter show dev {uplink.name} ingress"
                yield Check("uplink's programs", "note", said, remedy)
