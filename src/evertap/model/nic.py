"""A NIC's definition: the configuration schema, its defaults and its checks."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from evertap.model.errors import DefinitionError

Mode = Literal["bridge", "vepa", "private", "passthru"]
Backend = Literal["tap", "macvtap"]

GLOB: Final = re.compile(r"[*?\[]")
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_ALTNAME_MAX: Final = 127  # ALTIFNAMSIZ - 1, if.h
_NAME_MAX: Final = 15  # IFNAMSIZ - 1, if.h
_TARGETS: Final = ("name", "mac", "path", "bridge")


class UplinkSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a definition names an uplink: by one of name (or altname, or glob), MAC, bus path, bridge."""

    name: str = ""
    mac: str = ""
    path: str = ""  # BUS-DEVICE, as pci-0000:3b:00.0
    bridge: str = ""
    mode: Mode | None = None  # instead of the NIC's

    def __str__(self) -> str:
        return self.name or self.target[0] + "=" + self.target[1]

    @property
    def target(self) -> tuple[str, str]:
        """What it is named by, and the value: ("mac", "52:54:…")."""
        return next(((key, getattr(self, key)) for key in _TARGETS if getattr(self, key)), ("name", ""))


class Vm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who runs the VM."""

    qmp: str = ""  # path of a QMP socket for evertap's own use
    domain: str = ""  # or the libvirt domain whose monitor is used, for backend macvtap


class Nic(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A NIC as its definition wants it. Times are in seconds, sizes in bytes."""

    name: str
    mac: str
    uplinks: tuple[UplinkSpec, ...]
    backend: Backend = "tap"
    mode: Mode = "bridge"
    failover: Literal["hot", "cold"] = "hot"
    failback_delay: Annotated[float, Meta(ge=-1)] = 5.0
    flap_hold: Annotated[float, Meta(ge=0)] = 30.0
    guest_link: Literal["keep", "follow", "bounce"] = "keep"
    spoof_check: bool = True
    multicast: Literal["all", "guest"] = "all"
    queues: Annotated[int, Meta(ge=1, le=256)] = 1
    mtu: Annotated[int, Meta(ge=68, le=65521)] = 1500
    owner: str = ""
    announce: bool = True
    bring_up: bool = True
    vm: Vm = Vm()

    def mode_on(self, spec: UplinkSpec) -> Mode:
        """The mode of this NIC's macvlan on the uplink that `spec` names."""
        return spec.mode or self.mode


_MODES = '"bridge", "vepa", "private" or "passthru"'
_UPLINK = (
    'a name such as "eth0" (a glob is allowed), or a table with exactly one of name, mac, path and bridge, '
    "and mode if it differs"
)
_ALLOWED: Final = {
    "mac": 'a unicast MAC address such as "52:54:00:12:34:56"',
    "uplinks": f"a list of one or more uplinks, each {_UPLINK}",
    "backend": '"tap" or "macvtap"',
    "mode": _MODES,
    "failover": '"hot" or "cold"',
    "failback_delay": "a number of seconds, 0 or more, or -1 for never",
    "flap_hold": "a number of seconds, 0 for off",
    "guest_link": '"keep", "follow" or "bounce"',
    "spoof_check": "true or false",
    "multicast": '"all" or "guest"',
    "queues": "a whole number from 1 to 256",
    "mtu": "a whole number from 68 to 65521",
    "owner": "the name of a user",
    "announce": "true or false",
    "bring_up": "true or false",
    "vm": "a table with qmp, or with domain",
    "vm.domain": "the name of a libvirt domain",
    "vm.qmp": "the path of a QMP socket",
    "uplinks[].name": 'the name of an interface, an altname or a glob such as "enx*"',
    "uplinks[].mac": 'a MAC address such as "52:54:00:12:34:56"',
    "uplinks[].path": 'a bus path such as "pci-0000:3b:00.0"',
    "uplinks[].bridge": 'the name of a bridge such as "br0"',
    "uplinks[].mode": _MODES,
    "uplinks[]": _UPLINK,
}


def check_name(name: str, file: str, field: str = "", remedy: str = "Rename the file") -> None:
    """Refuse a NIC name that the kernel would not take for a tap (dev_valid_name), or that hides its file."""
    problem = ""
    size = len(name.encode("utf-8", "surrogatepass"))
    if not 1 <= size <= _NAME_MAX:
        problem = f"found {size} bytes; allowed: 1 to {_NAME_MAX}"
    elif name.startswith("."):
        problem = "it starts with a dot"
    elif bad := re.search(r"[/:%\s\x00-\x1f\x7f\ud800-\udfff]", name):
        problem = f"found {bad.group()!r} in it; not allowed: / : % and white space"
    if problem:
        raise DefinitionError(file, field, f'"{name}" cannot be a NIC\'s name: {problem}. {remedy}')


def parse_nic(name: str, raw: dict[str, Any], file: str) -> Nic:
    """Check the fields of one definition, as TOML gives them, and build the NIC (or DefinitionError)."""
    check_name(name, file)
    if "name" in raw:
        raise DefinitionError(
            file, "name", "unknown field; the file's name is the NIC's name. Remove the line"
        )
    fields = dict(raw)
    for required in ("mac", "uplinks"):
        if required not in fields:
            raise DefinitionError(file, required, f"missing; add it: {_ALLOWED[required]}")
    if isinstance(fields["mac"], str):
        fields["mac"] = fields["mac"].lower()
    if isinstance(fields["uplinks"], list):
        fields["uplinks"] = [_normal_uplink(uplink) for uplink in fields["uplinks"]]
    try:
        nic = msgspec.convert({"name": name, **fields}, Nic)
    except msgspec.ValidationError as error:
        raise _explain(file, raw, str(error)) from None
    _check(nic, raw, file)
    return nic


def _normal_uplink(raw: Any) -> Any:
    if isinstance(raw, str):
        return {"name": raw}
    if isinstance(raw, dict) and isinstance(raw.get("mac"), str):
        return {**raw, "mac": raw["mac"].lower()}
    return raw


def parse_uplink(text: str) -> dict[str, str] | str:
    """An uplink as the command line writes it: NAME, or KEY=VALUE[,mode=MODE] as a definition's table."""
    if "=" not in text:
        return text
    pairs = (part.partition("=") for part in text.split(","))
    return {key.strip(): value.strip() for key, _, value in pairs}


def _refuse(file: str, field: str, found: Any, allowed: str = "") -> DefinitionError:
    allowed = allowed or _ALLOWED[re.sub(r"\[\d+\]", "[]", field)]
    return DefinitionError(file, field, f"found {_show(found)}; allowed: {allowed}")


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _explain(file: str, raw: dict[str, Any], error: str) -> DefinitionError:
    """msgspec's text names the type it expected and the path; ours also says what stands there."""
    match = re.search(r" - at `\$\.?(.*)`$", error)
    field = match.group(1) if match else ""
    unknown = re.search(r"unknown field `(.*?)`", error)
    if unknown:
        where = f"{field}.{unknown.group(1)}" if field else unknown.group(1)
        known = {"": Nic, "vm": Vm}.get(field, UplinkSpec).__struct_fields__
        names = [name for name in known if field or name != "name"]
        near = difflib.get_close_matches(unknown.group(1), names, 1)
        hint = f'did you mean "{near[0]}"? ' if near else ""
        return DefinitionError(file, where, f"unknown field; {hint}allowed: {', '.join(names)}")
    found: Any = raw
    for key, index in re.findall(r"(\w+)|\[(\d+)\]", field):
        if index:
            found = found[int(index)]
        elif isinstance(found, dict):
            found = found.get(key)
    return _refuse(file, field, found)


def _check(nic: Nic, raw: dict[str, Any], file: str) -> None:
    """What the types alone cannot say."""
    if not valid_mac(nic.mac):
        raise _refuse(file, "mac", raw["mac"], _ALLOWED["mac"] + " (not zero, not multicast)")
    if -1 < nic.failback_delay < 0:
        raise _refuse(file, "failback_delay", nic.failback_delay)
    if not nic.uplinks:
        raise _refuse(file, "uplinks", [])
    if nic.vm.qmp and nic.vm.domain:
        raise DefinitionError(
            file, "vm", "found both qmp and domain; a VM is reached by one. Remove the other"
        )
    seen: set[tuple[str, str]] = set()
    for place, spec in enumerate(nic.uplinks):
        field = f"uplinks[{place}]"
        if sum(bool(getattr(spec, key)) for key in _TARGETS) != 1:
            raise _refuse(file, field, raw["uplinks"][place])
        key, value = spec.target
        problem = _uplink_problem(nic, spec, key, value, seen)
        if problem:
            raise DefinitionError(file, field, f"found {_show(value)}; {problem}")
        seen.add((key, value))


def _uplink_problem(nic: Nic, spec: UplinkSpec, key: str, value: str, seen: set[tuple[str, str]]) -> str:
    if (key, value) in seen:
        return "it stands in the list twice. Remove one"
    if key == "mac":
        return "" if valid_mac(value) else f"allowed: {_ALLOWED['uplinks[].mac']}"
    if key == "path":
        return "" if "-" in value.strip("-") else f"allowed: {_ALLOWED['uplinks[].path']}"
    if key == "bridge" and spec.mode:
        return "a bridge has no mode. Remove mode"
    if len(value.encode("utf-8", "surrogatepass")) > _ALTNAME_MAX or re.search(r"[/\s]", value):
        return (
            f"allowed: {_ALLOWED['uplinks[].' + key]}, at most {_ALTNAME_MAX} characters, no / and no space"
        )
    if value == nic.name:
        return "that is this NIC's own tap. Name a host interface"
    return ""


def valid_mac(mac: str) -> bool:
    """Whether it is a MAC address that a card can have: six bytes, not multicast, not zero."""
    return bool(_MAC.fullmatch(mac)) and not int(mac[:2], 16) & 1 and mac != "00:00:00:00:00:00"


def check_together(nic: Nic, others: dict[str, Nic], file: str) -> None:
    """Refuse a definition that cannot stand beside the others (DefinitionError)."""
    for other in others.values():
        if other.name == nic.name:
            continue
        if other.mac == nic.mac:
            raise DefinitionError(
                file, "mac", f'found "{nic.mac}", which NIC "{other.name}" has already. Give each NIC its own'
            )
        for place, spec in enumerate(nic.uplinks):
            field = f"uplinks[{place}]"
            if spec.name == other.name or spec.bridge == other.name:
                raise DefinitionError(
                    file, field, f'found "{other.name}", which is evertap\'s own tap. Name a host interface'
                )
            if clash := _passthru_clash(nic, spec, other):
                raise DefinitionError(file, field, clash)
        if any(nic.name in (spec.name, spec.bridge) for spec in other.uplinks):
            raise DefinitionError(
                file,
                "",
                f'"{nic.name}" is an uplink of NIC "{other.name}", so no NIC can have that name. '
                "Rename the file",
            )


def _passthru_clash(nic: Nic, spec: UplinkSpec, other: Nic) -> str:
    """Passthru takes the whole interface: no second NIC fits beside it."""
    if spec.bridge:
        return ""
    for theirs in other.uplinks:
        modes = {nic.mode_on(spec), other.mode_on(theirs)}
        if theirs.target == spec.target and "passthru" in modes:
            return (
                f'found "{spec}", which NIC "{other.name}" uses too, and one of them in mode passthru, which '
                "takes the interface for itself. Use another uplink or another mode"
            )
    return ""


def with_uplinks(nic: Nic, uplinks: tuple[UplinkSpec, ...]) -> Nic:
    """The same NIC with other uplinks."""
    return msgspec.structs.replace(nic, uplinks=uplinks)
