"""Programs that configure interfaces, and would evertap's: NetworkManager, networkd, and the older ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from evertap.doctor.check import Check
from evertap.doctor.definitions import Definitions
from evertap.doctor.host import Host
from evertap.doctor.matching import Device, first_match
from evertap.doctor.packaged import install

_SYSTEMD: Final = (
    "/etc/systemd/network",
    "/run/systemd/network",
    "/usr/lib/systemd/network",
    "/lib/systemd/network",
)
_UDEV: Final = ("/etc/udev/rules.d", "/run/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d")
_MACVLAN: Final = "ev1048576"
"""A name as our macvlans and macvtaps have it."""

_RULES: Final = install(
    "udev/70-evertap.rules", "/etc/udev/rules.d/70-evertap.rules", "udevadm control --reload"
)
_NETWORK: Final = install(
    "networkd/10-evertap.network", "/etc/systemd/network/10-evertap.network", "networkctl reload"
)
_LINK: Final = install(
    "networkd/10-evertap.link", "/etc/systemd/network/10-evertap.link", "udevadm control --reload"
)


def checks(host: Host, found: Definitions) -> Iterator[Check]:
    """Each of them."""
    devices = _devices(host, found)
    ruled = any("evertap:" in _text(path) for path in host.list(*_UDEV).values())
    yield _network_manager(host, ruled)
    yield _networkd(host, devices, ruled)
    yield _udev(host, devices, ruled)
    yield _ifupdown(host, devices)
    yield _dhcpcd(host, devices)
    yield _connman(host, devices)
    yield _firewalld(host)


def _devices(host: Host, found: Definitions) -> list[Device]:
    """What evertap has or would make here."""
    taps = {link.owner for link in host.links if link.owner and link.kind == "tun"} | found.nics.keys()
    return [Device(_MACVLAN, "macvlan"), *(Device(name, "tun") for name in sorted(taps or {"web0"}))]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _network_manager(host: Host, ruled: bool) -> Check:
    name = "NetworkManager"
    if not host.runs(name):
        return Check(name, "ok", "does not run")
    told = host.run("nmcli", "-t", "-f", "DEVICE,STATE", "device").output.splitlines()
    states = dict(line.rsplit(":", 1) for line in told if ":" in line)
    ours = sorted(link.name for link in host.links if link.owner)
    taken = [each for each in ours if states.get(each, "unmanaged") not in ("unmanaged", "unavailable")]
    release = "; ".join(f"nmcli device set {each} managed no" for each in taken)
    if taken:
        found = f"manages {', '.join(taken)}: it may take a tap out of its bridge, or set it down"
        return Check(name, "warning", found, release if ruled else f"{_RULES} && {release}")
    if not ruled:
        found = (
            "runs, and manages a tap as soon as it joins a bridge: it is not told to leave evertap's alone"
        )
        return Check(name, "warning", found, _RULES)
    return Check(name, "ok", "runs, and leaves evertap's devices alone")


def _networkd(host: Host, devices: list[Device], ruled: bool) -> Check:
    name = "systemd-networkd"
    if not host.runs(name):
        return Check(name, "ok", "does not run")
    files = {each: path for each, path in host.list(*_SYSTEMD).items() if each.endswith(".network")}
    told = next((each for each, path in files.items() if "EVERTAP=1" in _text(path)), "")
    for device in devices:
        match = first_match(files.values(), device)
        if match is None or match[1].get("Link", {}).get("Unmanaged", "no") in ("yes", "true", "1", "on"):
            continue
        if ruled and told and told < match[0].name:
            continue
        found = f"{match[0]} matches {device.name}: it would give it addresses, or take it into a bridge"
        remedy = " && ".join(each for each in ("" if ruled else _RULES, "" if told else _NETWORK) if each)
        return Check(name, "broken", found, remedy or f"name another Name= in {match[0]}")
    return Check(name, "ok", "runs, and no .network file of its own is for evertap's devices")


def _udev(host: Host, devices: list[Device], ruled: bool) -> Check:
    """Rules and .link files that give a name: a tap that is renamed is one that QEMU does not find."""
    files = {each: path for each, path in host.list(*_SYSTEMD).items() if each.endswith(".link")}
    told = next((each for each, path in files.items() if "EVERTAP=1" in _text(path)), "")
    for device in devices:
        match = first_match(files.values(), device)
        if match is None or "Name" not in match[1].get("Link", {}):
            continue
        if not (ruled and told and told < match[0].name):
            return Check("udev", "broken", f"{match[0]} renames {device.name}", f"{_RULES} && {_LINK}")
    for path in host.list(*_UDEV).values():
        for line in _text(path).splitlines():
            if taken := next((device for device in devices if _renames(line, device)), None):
                return Check("udev", "broken", f"{path} renames {taken.name}: {line.strip()}", f"edit {path}")
    return Check("udev", "ok", "no rule renames evertap's devices")


def _renames(line: str, device: Device) -> bool:
    """Whether a rule names interfaces by nothing but what our devices have as well."""
    terms = (
        []
        if line.lstrip().startswith("#")
        else re.findall(r'([A-Z]+(?:\{[^}]*\})?)\s*([=!+:]*=)\s*"(.*?)"', line)
    )
    asked = {key: value for key, operator, value in terms if operator in ("==", "!=")}
    named = any(key == "NAME" and operator in ("=", ":=") for key, operator, _ in terms)
    if not named or asked.get("SUBSYSTEM") != "net" or asked.keys() - {"SUBSYSTEM", "ACTION", "KERNEL"}:
        return False
    return any(fnmatchcase(device.name, glob) for glob in asked.get("KERNEL", "*").split("|"))


def _ifupdown(host: Host, devices: list[Device]) -> Check:
    paths = [host.path("/etc/network/interfaces"), *host.list("/etc/network/interfaces.d").values()]
    for path in paths:
        for line in _text(path).splitlines():
            words = line.split()
            if not words or words[0] not in ("auto", "allow-auto", "allow-hotplug", "iface"):
                continue
            names = words[1:2] if words[0] == "iface" else words[1:]
            for device in devices:
                if any(fnmatchcase(device.name, name.lstrip("/").partition("=")[0]) for name in names):
                    found = f'{path} configures {device.name}: "{line.strip()}"'
                    return Check("ifupdown", "broken", found, f"take {device.name} out of {path}")
    return Check("ifupdown", "ok", "configures none of evertap's devices")


def _dhcpcd(host: Host, devices: list[Device]) -> Check:
    if not host.runs("dhcpcd"):
        return Check("dhcpcd", "ok", "does not run")
    allowed: list[str] = []
    denied: list[str] = []
    for line in host.read("/etc/dhcpcd.conf").splitlines():
        key, *names = line.partition("#")[0].split() or [""]
        if key in ("allowinterfaces", "denyinterfaces"):
            (allowed if key == "allowinterfaces" else denied).extend(names)
    taken = [
        device.name
        for device in devices
        if not _listed(device.name, denied) and (not allowed or _listed(device.name, allowed))
    ]
    if not taken:
        return Check("dhcpcd", "ok", "runs, and leaves evertap's devices alone")
    globs = " ".join("ev[1-9]*" if name == _MACVLAN else name for name in taken)
    remedy = f"echo 'denyinterfaces {globs}' >> /etc/dhcpcd.conf, and restart dhcpcd"
    return Check("dhcpcd", "warning", f"asks for addresses on {', '.join(taken)}", remedy)


def _listed(name: str, globs: list[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _connman(host: Host, devices: list[Device]) -> Check:
    if not host.runs("connmand"):
        return Check("connman", "ok", "does not run")
    text = host.read("/etc/connman/main.conf")
    match = re.search(r"^\s*NetworkInterfaceBlacklist\s*=(.*)$", text, re.MULTILINE)
    # Its own list is what it goes by if none is set. They are beginnings of names.
    prefixes = (match[1] if match else "vmnet,vboxnet,virbr,ifb,ve-,vb-,ham,veth").replace(" ", "").split(",")
    taken = [each.name for each in devices if not any(p and each.name.startswith(p) for p in prefixes)]
    if not taken:
        return Check("connman", "ok", "runs, and leaves evertap's devices alone")
    beginnings = ",".join([*prefixes, *("ev1" if name == _MACVLAN else name for name in taken)])
    remedy = f"NetworkInterfaceBlacklist={beginnings} under [General] of /etc/connman/main.conf"
    return Check("connman", "warning", f"would configure {', '.join(taken)}", remedy)


def _firewalld(host: Host) -> Check:
    if not host.runs("firewalld"):
        return Check("firewalld", "ok", "does not run")
    found = (
        "runs; evertap's devices fall into its default zone, which is harmless: their frames never reach the "
        "host's stack. A bridge as uplink is filtered as any bridge is"
    )
    return Check("firewalld", "note", found)
