"""rtnetlink messages as bytes: what evertap asks of the kernel, and what it reads in the answers. No I/O.

Numbers and layouts are those of rtnetlink(7), linux/if_link.h, linux/rtnetlink.h and linux/pkt_cls.h. An
attribute stands once in a table (`Attribute`), from which it is both written and read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from socket import htons
from struct import Struct
from typing import Any, Final, Literal, NamedTuple

import msgspec

from evertap.model.errors import EvertapError
from evertap.model.links import IFF_UP, Gone, Link, LinkEvent

Buffer = bytes | bytearray | memoryview

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWNEIGH: Final = 28
RTM_DELNEIGH: Final = 29
RTM_NEWQDISC: Final = 36
RTM_DELQDISC: Final = 37
RTM_NEWTFILTER: Final = 44
RTM_GETTFILTER: Final = 46

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_CAPPED: Final = 0x100  # an error's answer does not repeat the whole request
NLM_F_ACK_TLVS: Final = 0x200  # an error's answer carries attributes (NETLINK_EXT_ACK)
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_DUMP: Final = 0x300

AF_UNSPEC: Final = 0
AF_BRIDGE: Final = 7
AF_INET6: Final = 10

IFF_NOARP: Final = 0x80
IFF_PROMISC: Final = 0x100
IFF_ALLMULTI: Final = 0x200

CLSACT: Final = 0xFFFFFFF1
CLSACT_HANDLE: Final = 0xFFFF0000
CLSACT_INGRESS: Final = 0xFFFFFFF2
CLSACT_EGRESS: Final = 0xFFFFFFF3
_ROOT: Final = 0xFFFFFFFF

HEADER: Final = Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_IFINFO: Final = Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_NEIGH: Final = Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type
_TC: Final = Struct("=BxxxiIII")  # tcmsg: family, index, handle, parent, info
_ATTRIBUTE: Final = Struct("=HH")  # nlattr: length with header, type
_U32: Final = Struct("=I")
_I32: Final = Struct("=i")
_U8: Final = Struct("=B")

_TYPE_MASK: Final = 0x3FFF  # takes off NLA_F_NESTED and NLA_F_NET_BYTEORDER
_SKIP_STATS: Final = 1 << 3  # RTEXT_FILTER_SKIP_STATS
_MACVLANS: Final = frozenset({"macvlan", "macvtap"})

MODES: Final = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8, "source": 16}
"""MACVLAN_MODE_* by name."""
_MODE_NAMES: Final = {number: name for name, number in MODES.items()}


class NetlinkFormatError(EvertapError):
    """Bytes that are no well-formed rtnetlink message."""


class Message(NamedTuple):
    """A request without its header's length, sequence number and port, which the client adds."""

    type: int
    flags: int
    body: bytes


class Filter(msgspec.Struct, frozen=True, gc=False):
    """A tc filter, as a dump tells it. Text is empty and `prog_id` 0 where the kernel says nothing."""

    index: int
    parent: int
    priority: int
    handle: int
    kind: str
    name: str  # TCA_BPF_NAME: whatever was given when the filter was made
    prog_id: int  # TCA_BPF_ID


class Answer(NamedTuple):
    """What NLMSG_ERROR says: errno (0 acknowledges) and, it may be, the kernel's own words (ext_ack)."""

    errno: int
    text: str


# --- values ---------------------------------------------------------------------------------------


def _number(layout: Struct) -> tuple[Callable[[int], bytes], Callable[[Buffer, int, int], int]]:
    unpack, size = layout.unpack_from, layout.size

    def read(buffer: Buffer, start: int, end: int) -> int:
        if end - start != size:
            raise NetlinkFormatError(f"a number of {end - start} bytes, should be {size}, at byte {start}")
        value: int = unpack(buffer, start)[0]
        return value

    return layout.pack, read


def _read_text(buffer: Buffer, start: int, end: int) -> str:
    # names and aliases may be any bytes: those that are no UTF-8 become lone surrogates, as in os.fsdecode
    return str(buffer[start:end], "utf-8", "surrogateescape").partition("\0")[0]


def _write_text(text: str) -> bytes:
    return _write_bare_text(text) + b"\0"


def _write_bare_text(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _read_mac(buffer: Buffer, start: int, end: int) -> str:
    return buffer[start:end].hex(":")


def _write_mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _write_nest(attributes: bytes) -> bytes:
    return attributes


# --- the attribute tables -------------------------------------------------------------------------


class Attribute(NamedTuple):
    """One attribute: its number and how its value is written and, where evertap reads it, read."""

    number: int
    write: Callable[[Any], bytes] | None
    read: Callable[[Buffer, int, int], Any] | None


_Table = dict[str, Attribute]
_Readers = dict[int, tuple[str, Callable[[Buffer, int, int], Any]]]


def _readers(table: _Table) -> _Readers:
    return {row.number: (field, row.read) for field, row in table.items() if row.read is not None}


def _read_info(buffer: Buffer, start: int, end: int) -> dict[str, Any]:
    info = _attributes(buffer, start, end, _INFO_READERS)
    data = info.pop("data", None)
    # what IFLA_INFO_DATA holds depends on the kind
    if data is not None and info.get("kind") in _MACVLANS:
        number = _attributes(buffer, data[0], data[1], _MACVLAN_READERS).get("mode")
        info["mode"] = _MODE_NAMES.get(number, "") if number is not None else ""
    return info


def _read_altnames(buffer: Buffer, start: int, end: int) -> tuple[str, ...]:
    return tuple(
        _read_text(buffer, *span)
        for number, *span in _spans(buffer, start, end)
        if number == _LINK["altname"].number
    )


def _read_span(_buffer: Buffer, start: int, end: int) -> tuple[int, int]:
    return start, end


_u8: Final = _number(_U8)
_u32: Final = _number(_U32)
_i32: Final = _number(_I32)

# rows that are read carry the names of Link's fields; "" merges a nest's fields into those of the link
_LINK: Final[_Table] = {
    "mac": Attribute(1, _write_mac, _read_mac),
    "name": Attribute(3, _write_text, _read_text),
    "mtu": Attribute(4, *_u32),
    "lower": Attribute(5, *_u32),
    "master": Attribute(10, *_u32),
    "wireless": Attribute(11, None, _read_span),
    "": Attribute(18, None, _read_info),
    "info": Attribute(18, _write_nest, None),
    "alias": Attribute(20, _write_bare_text, _read_text),
    "af_spec": Attribute(26, _write_nest, None),
    "ext_mask": Attribute(29, _u32[0], None),
    "lower_netns": Attribute(37, *_i32),
    "ups": Attribute(47, None, _u32[1]),
    "altnames": Attribute(52, None, _read_altnames),
    "altname": Attribute(53, None, None),
    "perm_mac": Attribute(54, None, _read_mac),
    "parent_dev": Attribute(56, None, _read_text),
    "parent_bus": Attribute(57, None, _read_text),
}
_INFO: Final[_Table] = {
    "kind": Attribute(1, _write_text, _read_text),
    "data": Attribute(2, _write_nest, _read_span),
    "port_kind": Attribute(4, None, _read_text),
}
_MACVLAN: Final[_Table] = {"mode": Attribute(1, *_u32)}
_FAMILIES: Final[_Table] = {"inet6": Attribute(AF_INET6, _write_nest, None)}
_INET6: Final[_Table] = {"addr_gen_mode": Attribute(8, _u8[0], None)}
_FILTER: Final[_Table] = {
    "kind": Attribute(1, _write_text, _read_text),
    "options": Attribute(2, _write_nest, _read_span),
}
_BPF: Final[_Table] = {
    "fd": Attribute(6, _u32[0], None),
    "name": Attribute(7, _write_text, _read_text),
    "flags": Attribute(8, _u32[0], None),
    "prog_id": Attribute(11, None, _u32[1]),
}
_NEIGHBOUR: Final[_Table] = {"mac": Attribute(2, _write_mac, None)}
_ERROR: Final[_Table] = {"text": Attribute(1, None, _read_text)}

_LINK_READERS: Final = _readers(_LINK)
_INFO_READERS: Final = _readers(_INFO)
_MACVLAN_READERS: Final = _readers(_MACVLAN)
_FILTER_READERS: Final = _readers(_FILTER)
_BPF_READERS: Final = _readers(_BPF)
_ERROR_READERS: Final = _readers(_ERROR)


def _write(table: _Table, **values: Any) -> bytes:
    """The attributes of those values that are not None, in the order given."""
    parts = []
    for field, value in values.items():
        if value is None:
            continue
        row = table[field]
        assert row.write is not None
        payload = row.write(value)
        length = 4 + len(payload)
        parts.append(_ATTRIBUTE.pack(length, row.number) + payload + bytes(-length % 4))
    return b"".join(parts)


def _spans(buffer: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of every attribute between two places."""
    while start < end:
        if end - start < 4:
            raise NetlinkFormatError(f"{end - start} stray bytes after the attributes, at byte {start}")
        length, number = _ATTRIBUTE.unpack_from(buffer, start)
        if not 4 <= length <= end - start:
            raise NetlinkFormatError(f"attribute {number & _TYPE_MASK} of length {length} at byte {start}")
        yield number & _TYPE_MASK, start + 4, start + length
        start += (length + 3) & ~3


def _attributes(buffer: Buffer, start: int, end: int, readers: _Readers) -> dict[str, Any]:
    """The wanted attributes between two places, by field. The last one of a kind counts, as in the kernel.

    The hot path: the loop of `_spans` once more, without a generator, and looking only at what is wanted.
    """
    fields: dict[str, Any] = {}
    unpack = _ATTRIBUTE.unpack_from
    wanted = readers.get
    last = end - 4
    while start <= last:
        length, number = unpack(buffer, start)
        stop = start + length
        if length < 4 or stop > end:
            raise NetlinkFormatError(f"attribute {number & _TYPE_MASK} of length {length} at byte {start}")
        row = wanted(number & _TYPE_MASK)
        if row is not None:
            fields[row[0]] = row[1](buffer, start + 4, stop)
        start += (length + 3) & ~3
    if start < end:
        raise NetlinkFormatError(f"{end - start} stray bytes after the attributes, at byte {start}")
    return fields


_CLSACT: Final = _write(_FILTER, kind="clsact")
_ADDRGEN_NONE: Final = _write(_FAMILIES, inet6=_write(_INET6, addr_gen_mode=1))


# --- requests -------------------------------------------------------------------------------------


def new_macvlan(
    index: int,
    name: str,
    lower: int,
    mac: str,
    mode: str,
    mtu: int | None = None,
    *,
    kind: Literal["macvlan", "macvtap"] = "macvlan",
    allmulti: bool = True,
) -> Message:
    """Make a macvlan or macvtap, down, on the interface `lower`, with an index of the caller's choice.

    `mode` is one of `MODES`, `mtu` in bytes (None: the lower's). It does not answer ARP (IFF_NOARP); with
    `allmulti` it takes all multicast. Refused with EEXIST for a taken name, EBUSY for a taken index, EINVAL
    for an MTU above the lower's. The kernel ignores IFLA_IFALIAS here and refuses IFLA_AF_SPEC
    (net/core/rtnetlink.c): alias and address generation go into a `set_link` of their own.
    """
    flags = IFF_NOARP | (IFF_ALLMULTI if allmulti else 0)
    info = _macvlan_info(kind, mode)
    body = _IFINFO.pack(AF_UNSPEC, 0, index, flags, IFF_NOARP | IFF_ALLMULTI)
    body += _write(_LINK, name=name, lower=lower, mac=mac, mtu=mtu, info=info)
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


@cache
def _macvlan_info(kind: str, mode: str) -> bytes:
    return _write(_INFO, kind=kind, data=_write(_MACVLAN, mode=MODES[mode]))


def set_link(
    index: int,
    *,
    up: bool | None = None,
    noarp: bool | None = None,
    allmulti: bool | None = None,
    promisc: bool | None = None,
    name: str | None = None,
    alias: str | None = None,
    mac: str | None = None,
    mtu: int | None = None,
    master: int | None = None,
    addrgen_none: bool = False,
) -> Message:
    """Change an interface; what is None stays. RTM_NEWLINK without NLM_F_CREATE, as ip-link(8) sends it.

    `mtu` in bytes; `master` is a bridge's index, 0 takes the port out; an empty `alias` removes it.
    `addrgen_none` keeps the host from giving itself an IPv6 link-local address there. The kernel handles it
    after `up` (do_setlink in net/core/rtnetlink.c), hence use it in an earlier message; and it is refused
    with EAFNOSUPPORT, with all of its message, where IPv6 is not: ipv6.disable=1, or an MTU below 1280.
    """
    flags = change = 0
    for bit, wanted in (IFF_UP, up), (IFF_NOARP, noarp), (IFF_ALLMULTI, allmulti), (IFF_PROMISC, promisc):
        if wanted is not None:
            change |= bit
            flags |= bit if wanted else 0
    af_spec = _ADDRGEN_NONE if addrgen_none else None
    body = _IFINFO.pack(AF_UNSPEC, 0, index, flags, change)
    body += _write(_LINK, name=name, alias=alias, mac=mac, mtu=mtu, master=master, af_spec=af_spec)
    return Message(RTM_NEWLINK, 0, body)


def del_link(index: int) -> Message:
    """Delete an interface. Refused with ENODEV if there is none, EOPNOTSUPP for hardware.

    Takes some 20 ms each, under the kernel's rtnl lock (it waits for RCU).
    """
    return Message(RTM_DELLINK, 0, _IFINFO.pack(AF_UNSPEC, 0, index, 0, 0))


def get_link(index: int) -> Message:
    """Ask for one interface, without its statistics."""
    body = _IFINFO.pack(AF_UNSPEC, 0, index, 0, 0) + _write(_LINK, ext_mask=_SKIP_STATS)
    return Message(RTM_GETLINK, 0, body)


def dump_links() -> Message:
    """Ask for all interfaces, without their statistics."""
    return Message(RTM_GETLINK, NLM_F_DUMP, get_link(0).body)


def add_clsact(index: int) -> Message:
    """Give an interface the clsact qdisc, for ingress filters. EEXIST if it has that or `ingress`."""
    body = _TC.pack(AF_UNSPEC, index, CLSACT_HANDLE, CLSACT, 0)
    return Message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body + _CLSACT)


def del_clsact(index: int) -> Message:
    """Take the clsact qdisc away, with all of its filters."""
    body = _TC.pack(AF_UNSPEC, index, CLSACT_HANDLE, CLSACT, 0)
    return Message(RTM_DELQDISC, 0, body + _write(_FILTER, kind="clsact"))


def set_noqueue(index: int) -> Message:
    """Let an interface send at once, with no queue before it: `tc qdisc replace dev … root noqueue`."""
    body = _TC.pack(AF_UNSPEC, index, 0, _ROOT, 0)
    return Message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, body + _write(_FILTER, kind="noqueue"))


def add_bpf_filter(
    index: int, prog_fd: int, name: str, *, priority: int = 1, ingress: bool = True
) -> Message:
    """Run a BPF program (SCHED_CLS, direct action) on every frame, by the interface's clsact qdisc.

    The descriptor is looked up in the sending process and need not stay open. EEXIST if the priority is
    taken.
    """
    everything = htons(0x0003)  # ETH_P_ALL
    parent = CLSACT_INGRESS if ingress else CLSACT_EGRESS
    body = _TC.pack(AF_UNSPEC, index, 0, parent, priority << 16 | everything)
    return Message(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, body + _bpf_filter(prog_fd, name))


@lru_cache(maxsize=8192)
def _bpf_filter(prog_fd: int, name: str) -> bytes:
    direct_action = 1  # TCA_BPF_FLAG_ACT_DIRECT
    return _write(_FILTER, kind="bpf", options=_write(_BPF, fd=prog_fd, name=name, flags=direct_action))


def dump_filters(index: int, *, ingress: bool = True) -> Message:
    """Ask for the filters of an interface's clsact qdisc; none if it has no such qdisc."""
    parent = CLSACT_INGRESS if ingress else CLSACT_EGRESS
    return Message(RTM_GETTFILTER, NLM_F_DUMP, _TC.pack(AF_UNSPEC, index, 0, parent, 0))


def replace_fdb(index: int, mac: str) -> Message:
    """Teach a bridge at once where a MAC is: `bridge fdb replace MAC dev PORT master dynamic`.

    Refused with EPERM unless the port forwards: bridge and port up, with carrier (net/bridge/br_fdb.c).
    """
    reachable, to_master = 0x02, 0x04  # NUD_REACHABLE, NTF_MASTER
    body = _NEIGH.pack(AF_BRIDGE, index, reachable, to_master, 0) + _write(_NEIGHBOUR, mac=mac)
    return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def add_multicast(index: int, mac: str) -> Message:
    """Have a macvlan receive a multicast address: `bridge fdb add MAC dev X self` (macvlan_fdb_add)."""
    return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_EXCL, _own_address(index, mac))


def remove_multicast(index: int, mac: str) -> Message:
    """Undo `add_multicast`."""
    return Message(RTM_DELNEIGH, 0, _own_address(index, mac))


def _own_address(index: int, mac: str) -> bytes:
    permanent, to_self = 0x80, 0x02  # NUD_PERMANENT, NTF_SELF
    return _NEIGH.pack(AF_BRIDGE, index, permanent, to_self, 0) + _write(_NEIGHBOUR, mac=mac)


# --- answers --------------------------------------------------------------------------------------


def split(buffer: Buffer) -> Iterator[tuple[int, int, int, int, int, int]]:
    """The messages of one datagram: type, flags, sequence number, port, offset and length (header included).

    Raises NetlinkFormatError on reaching bytes that are no message; those before have been handed out.
    """
    offset, end = 0, len(buffer)
    while offset < end:
        if end - offset < 16:
            raise NetlinkFormatError(f"{end - offset} stray bytes after the messages, at byte {offset}")
        length, kind, flags, sequence, port = HEADER.unpack_from(buffer, offset)
        if not 16 <= length <= end - offset:
            raise NetlinkFormatError(f"message of length {length} at byte {offset} of {end}")
        yield kind, flags, sequence, port, offset, length
        offset += (length + 3) & ~3


def _body(buffer: Buffer, offset: int, length: int, fixed: int) -> int:
    """Where the message's end is, after making sure that it holds its header and `fixed` bytes."""
    end = offset + length
    if length < 16 + fixed or offset < 0 or end > len(buffer):
        raise NetlinkFormatError(f"message of {length} bytes at byte {offset} of {len(buffer)}")
    return end


def link_index(buffer: Buffer, offset: int, length: int) -> int:
    """The interface that the message at `offset` tells of as a whole; 0 if it tells of none, or of a part.

    Raises NetlinkFormatError on malformed bytes.
    """
    _body(buffer, offset, length, 16)
    family, _, index, _, _ = _IFINFO.unpack_from(buffer, offset + 16)
    return int(index) if family == AF_UNSPEC else 0


def decode_link(buffer: Buffer, offset: int, length: int) -> LinkEvent | None:
    """What the message at `offset` (its header) says of an interface; None if it says nothing of the kind.

    None goes for other types than RTM_NEWLINK and RTM_DELLINK, and for two of these that are traps: with
    ifi_family AF_BRIDGE they tell of a bridge's port (a DELLINK means that it left the bridge, not that it is
    gone), and those with IFLA_WIRELESS are wireless events, which lack all else but the name.
    Text may hold any bytes: those that are no UTF-8 come as lone surrogates.
    Raises NetlinkFormatError, and nothing else, on malformed bytes.
    """
    end = _body(buffer, offset, length, 16)
    _, kind, _, _, _ = HEADER.unpack_from(buffer, offset)
    family, device, index, flags, _ = _IFINFO.unpack_from(buffer, offset + 16)
    if family != AF_UNSPEC or (kind != RTM_NEWLINK and kind != RTM_DELLINK):
        return None
    if kind == RTM_DELLINK:
        return Gone(index)
    fields = _attributes(buffer, offset + 32, end, _LINK_READERS)
    if "wireless" in fields:
        return None
    info = fields.pop("", None)
    if info is not None:
        fields.update(info)
    if "name" not in fields:
        raise NetlinkFormatError(f"link {index} without a name at byte {offset}")
    return Link(index=index, flags=flags, type=device, **fields)


def decode_filter(buffer: Buffer, offset: int, length: int) -> Filter | None:
    """The filter that the message at `offset` tells of; None for other messages and the heads of chains.

    Raises NetlinkFormatError on malformed bytes.
    """
    end = _body(buffer, offset, length, 20)
    _, kind, _, _, _ = HEADER.unpack_from(buffer, offset)
    _, index, handle, parent, info = _TC.unpack_from(buffer, offset + 16)
    if kind != RTM_NEWTFILTER or handle == 0:
        return None
    fields = _attributes(buffer, offset + 36, end, _FILTER_READERS)
    name = fields.get("kind", "")
    options = fields.get("options")
    bpf = (
        _attributes(buffer, options[0], options[1], _BPF_READERS)
        if options is not None and name == "bpf"
        else {}
    )
    return Filter(index, parent, info >> 16, handle, name, bpf.get("name", ""), bpf.get("prog_id", 0))


def decode_error(buffer: Buffer, offset: int, length: int) -> Answer:
    """Errno and text of the NLMSG_ERROR or NLMSG_DONE message at `offset` (netlink(7), linux/netlink.h).

    Raises NetlinkFormatError on malformed bytes.
    """
    end = _body(buffer, offset, length, 4)
    _, kind, flags, _, _ = HEADER.unpack_from(buffer, offset)
    number = -_I32.unpack_from(buffer, offset + 16)[0]
    start = offset + 20
    if kind == NLMSG_ERROR:
        # the request's header follows, and unless CAPPED the rest of the request
        _body(buffer, offset, length, 20)
        request = 16 if flags & NLM_F_CAPPED else (_U32.unpack_from(buffer, start)[0] + 3) & ~3
        start += max(request, 16)
    if not flags & NLM_F_ACK_TLVS:
        return Answer(number, "")
    return Answer(number, _attributes(buffer, start, end, _ERROR_READERS).get("text", ""))
