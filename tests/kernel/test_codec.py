"""Every message is written and read as pyroute2 does it, and malformed bytes have one error."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evertap.kernel import codec
from evertap.kernel.codec import Message, NetlinkFormatError
from evertap.kernel.rtnetlink import LinkMonitor
from evertap.model.links import Gone, Link, LinkEvent
from tests.kernel.conftest import MAC, Lab


def datagram(message: Message, port: int = 0) -> bytes:
    """A message with its header, as the kernel or the client would send it."""
    return codec.HEADER.pack(16 + len(message.body), message.type, message.flags, 1, port) + message.body


def attribute(number: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), number) + payload + bytes(-len(payload) % 4)


def link_message(*attributes: bytes, kind: int = 16, family: int = 0) -> bytes:
    body = struct.pack("=BxHiII", family, 1, 7, 1, 0) + b"".join(attributes)
    return codec.HEADER.pack(16 + len(body), kind, 0, 1, 0) + body


def decode(data: bytes) -> LinkEvent | None:
    return codec.decode_link(data, 0, len(data))


# --- written ---------------------------------------------------------------------------------


def plain(node: Any) -> Any:
    """A message of pyroute2 as plain data, without what only this end knows of it."""
    if isinstance(node, dict):
        left_out = {"header", "event", "state", "__align", "__pad"}
        fields = {key: value for key, value in node.items() if key not in left_out}
        fields["attrs"] = sorted(((name, plain(value)) for name, value in node.get("attrs", [])), key=repr)
        return fields
    return node


def same(kind: str, ours: Message, fields: dict[str, Any], *attributes: tuple[str, Any]) -> bool:
    """Whether pyroute2 reads ours as it reads its own message of these fields and attributes."""
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.ndmsg import ndmsg
    from pyroute2.netlink.rtnl.tcmsg import tcmsg

    message_class = {"link": ifinfmsg, "tc": tcmsg, "neighbour": ndmsg}[kind]
    theirs = message_class()
    for field, value in fields.items():
        theirs[field] = value
    theirs["attrs"] = list(attributes)
    theirs["header"]["type"] = ours.type
    theirs.encode()
    read_ours, read_theirs = message_class(datagram(ours)), message_class(bytes(theirs.data))
    read_ours.decode()
    read_theirs.decode()
    assert plain(read_ours) == plain(read_theirs)
    return True


@pytest.mark.parametrize("kind", ["macvlan", "macvtap"])
@pytest.mark.parametrize("mode", ["private", "vepa", "bridge", "passthru", "source"])
def test_new_macvlan_is_as_pyroute2_writes_it(kind: Any, mode: str) -> None:
    ours = codec.new_macvlan(600_000, "web0.0", 3, MAC, mode, 1400, kind=kind)
    info = [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": [(f"IFLA_{kind.upper()}_MODE", mode)]})]
    assert (ours.type, ours.flags) == (16, 0x600)
    assert same(
        "link",
        ours,
        {"index": 600_000, "flags": 0x280, "change": 0x280},
        ("IFLA_IFNAME", "web0.0"),
        ("IFLA_LINK", 3),
        ("IFLA_ADDRESS", MAC),
        ("IFLA_MTU", 1400),
        ("IFLA_LINKINFO", {"attrs": info}),
    )


def test_new_macvlan_can_leave_mtu_and_multicast_alone() -> None:
    ours = codec.new_macvlan(9, "m0", 3, MAC, "bridge", allmulti=False)
    info = [("IFLA_INFO_KIND", "macvlan"), ("IFLA_INFO_DATA", {"attrs": [("IFLA_MACVLAN_MODE", "bridge")]})]
    assert same(
        "link",
        ours,
        {"index": 9, "flags": 0x80, "change": 0x280},
        ("IFLA_IFNAME", "m0"),
        ("IFLA_LINK", 3),
        ("IFLA_ADDRESS", MAC),
        ("IFLA_LINKINFO", {"attrs": info}),
    )


@pytest.mark.parametrize(
    ("arguments", "flags", "attributes"),
    [
        ({"up": True}, (1, 1), []),
        ({"up": False}, (0, 1), []),
        ({"up": True, "noarp": True, "allmulti": False, "promisc": True}, (0x181, 0x381), []),
        ({"alias": "evertap:wéb0"}, (0, 0), [("IFLA_IFALIAS", "evertap:wéb0")]),
        ({"mtu": 9000, "mac": MAC}, (0, 0), [("IFLA_MTU", 9000), ("IFLA_ADDRESS", MAC)]),
        ({"master": 12}, (0, 0), [("IFLA_MASTER", 12)]),
        ({"master": 0}, (0, 0), [("IFLA_MASTER", 0)]),
        ({"name": "new0"}, (0, 0), [("IFLA_IFNAME", "new0")]),
        (
            {"addrgen_none": True},
            (0, 0),
            [("IFLA_AF_SPEC", {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]})],
        ),
    ],
)
def test_set_link_is_as_pyroute2_writes_it(
    arguments: dict[str, Any], flags: tuple[int, int], attributes: list[tuple[str, Any]]
) -> None:
    ours = codec.set_link(7, **arguments)
    assert (ours.type, ours.flags) == (16, 0)
    assert same("link", ours, {"index": 7, "flags": flags[0], "change": flags[1]}, *attributes)


def test_get_del_and_dump_are_as_pyroute2_writes_them() -> None:
    assert same("link", codec.del_link(7), {"index": 7})
    assert same("link", codec.get_link(7), {"index": 7}, ("IFLA_EXT_MASK", 8))
    assert same("link", codec.dump_links(), {"index": 0}, ("IFLA_EXT_MASK", 8))
    assert [m.type for m in (codec.del_link(7), codec.get_link(7), codec.dump_links())] == [17, 18, 18]
    assert codec.dump_links().flags == 0x300


def test_qdisc_and_filter_are_as_pyroute2_writes_them() -> None:
    clsact = {"index": 7, "handle": 0xFFFF0000, "parent": 0xFFFFFFF1}
    assert same("tc", codec.add_clsact(7), clsact, ("TCA_KIND", "clsact"))
    assert same("tc", codec.del_clsact(7), clsact, ("TCA_KIND", "clsact"))
    root = {"index": 7, "parent": 0xFFFFFFFF}
    assert same("tc", codec.set_noqueue(7), root, ("TCA_KIND", "noqueue"))
    options = [("TCA_BPF_FD", 5), ("TCA_BPF_NAME", "evertap_tap"), ("TCA_BPF_FLAGS", 1)]
    assert same(
        "tc",
        codec.add_bpf_filter(7, 5, "evertap_tap", priority=3),
        {"index": 7, "parent": 0xFFFFFFF2, "info": 3 << 16 | 0x0300},
        ("TCA_KIND", "bpf"),
        ("TCA_OPTIONS", {"attrs": options}),
    )
    assert same("tc", codec.dump_filters(7), {"index": 7, "parent": 0xFFFFFFF2})
    assert same("tc", codec.dump_filters(7, ingress=False), {"index": 7, "parent": 0xFFFFFFF3})


def test_forwarding_entry_is_as_pyroute2_writes_it() -> None:
    ours = codec.replace_fdb(7, MAC)
    fields = {"family": 7, "ifindex": 7, "state": 2, "flags": 4}
    assert (ours.type, ours.flags) == (28, 0x500)
    assert same("neighbour", ours, fields, ("NDA_LLADDR", MAC))


# --- read ------------------------------------------------------------------------------------


def oracle(data: bytes) -> LinkEvent | None:
    """A link message as pyroute2 reads it."""
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    message = ifinfmsg(data)
    message.decode()
    if message["family"] != 0:
        return None
    if message["header"]["type"] == 17:
        return Gone(message["index"])
    get = message.get_attr
    info = get("IFLA_LINKINFO")
    kind = (info and info.get_attr("IFLA_INFO_KIND")) or ""
    details = info and info.get_attr("IFLA_INFO_DATA")
    mode = details.get_attr(f"IFLA_{kind.upper()}_MODE") if kind in ("macvlan", "macvtap") else None
    names = get("IFLA_PROP_LIST")
    return Link(
        index=message["index"],
        name=get("IFLA_IFNAME"),
        flags=message["flags"],
        type=message["ifi_type"],
        mac=get("IFLA_ADDRESS") or "",
        perm_mac=get("IFLA_PERM_ADDRESS") or "",
        mtu=get("IFLA_MTU"),
        master=get("IFLA_MASTER") or 0,
        lower=get("IFLA_LINK") or 0,
        lower_netns=get("IFLA_LINK_NETNSID"),
        kind=kind,
        port_kind=(info and info.get_attr("IFLA_INFO_SLAVE_KIND")) or "",
        mode=mode or "",
        parent_dev=get("IFLA_PARENT_DEV_NAME") or "",
        parent_bus=get("IFLA_PARENT_DEV_BUS_NAME") or "",
        ups=get("IFLA_CARRIER_UP_COUNT") or 0,
        alias=get("IFLA_IFALIAS") or "",
        altnames=tuple(names.get_attrs("IFLA_ALT_IFNAME")) if names else (),
    )


def raw_events(monitor: LinkMonitor) -> Iterator[bytes]:
    """All that the monitor's socket holds, message by message."""
    while True:
        try:
            data = monitor._socket.recv(1 << 18)
        except BlockingIOError:
            return
        for _, _, _, _, offset, length in codec.split(data):
            yield data[offset : offset + length]


def populate(lab: Lab) -> None:
    """One of everything that this kernel has."""
    lab.wire("up0")
    for mode in ("bridge", "vepa", "private"):
        lab.ip(f"link add link up0 name mv-{mode} type macvlan mode {mode}")
    lab.ip("link add link mv-private name mv-source type macvlan mode source")
    lab.ip("link add up1 type veth peer name up2")
    lab.ip("link add link up1 name mv-passthru type macvlan mode passthru")
    lab.ip("link add link up2 name mvtap type macvtap mode bridge")
    lab.ip("link add br0 type bridge")
    lab.ip("link add v0 type veth peer name v1")
    lab.ip("link set v0 up master br0")
    lab.ip("tuntap add tap0 mode tap")
    lab.ip("tuntap add tun0 mode tun")
    lab.ip("link add vx0 type vxlan id 42 dstport 4789 local 192.0.2.1")
    lab.ip("link property add dev up0 altname enp0s31f6 altname " + "n" * 127)
    lab.ip("link set up1 alias", "fibre to the côte d’azur")
    lab.ip("link set up2 mtu 9000 up")
    lab.ip("link set v0 nomaster")
    lab.ip("link set v0 name renamed0")
    lab.ip("link add gone0 type veth peer name gone1")
    lab.ip("link del gone0")


def test_links_of_every_kind_are_read_as_pyroute2_reads_them(lab: Lab) -> None:
    with LinkMonitor() as monitor:
        populate(lab)
        events = list(raw_events(monitor))
    assert [decode(event) for event in events] == [oracle(event) for event in events]
    assert len(events) > 40
    dump, _ = lab.rtnetlink._dump_once(codec.dump_links())
    assert [decode(message) for message in dump] == [oracle(message) for message in dump]
    links = {link.name: link for message in dump if isinstance(link := decode(message), Link)}
    modes = {name.removeprefix("mv-"): link.mode for name, link in links.items() if name.startswith("mv-")}
    assert all(name == mode for name, mode in modes.items())
    assert len(modes) == 5
    assert links["mvtap"].kind == "macvtap"
    assert links["mvtap"].mode == "bridge"
    assert links["up0"].altnames == ("enp0s31f6", "n" * 127)
    assert links["up0"].lower_netns is not None
    assert links["up1"].alias == "fibre to the côte d’azur"
    assert links["tap0"].kind == "tun"
    assert links["vx0"].kind == "vxlan"
    assert links["up2"].mtu == 9000
    assert links["up2"].up


def test_port_leaving_a_bridge_is_not_taken_for_gone(lab: Lab) -> None:
    lab.ip("link add br0 type bridge")
    lab.ip("link add v0 type veth peer name v1")
    index = lab.link("v0").index
    with LinkMonitor() as monitor:
        lab.ip("link set v0 master br0")
        lab.ip("link set v0 nomaster")
        raw = list(raw_events(monitor))
    events = [event for event in map(decode, raw) if event is not None]
    assert any(codec.HEADER.unpack_from(message)[1] == codec.RTM_DELLINK for message in raw), "no trap set"
    assert Gone(index) not in events
    masters = [(link.master != 0, link.port_kind) for link in events if isinstance(link, Link)]
    assert (True, "bridge") in masters
    assert masters[-1] == (False, "")


def test_alias_of_any_bytes_survives(lab: Lab) -> None:
    lab.ip("link add v0 type veth peer name v1")
    index = lab.link("v0").index
    alias = b"caf\xe9 \xff".decode("utf-8", "surrogateescape")
    lab.do(codec.set_link(index, alias=alias))
    assert lab.link("v0").alias == alias
    lab.do(codec.set_link(index, alias=""))
    assert lab.link("v0").alias == ""


def test_link_in_this_namespace_has_no_lower_namespace(lab: Lab) -> None:
    lab.ip("link add v0 type veth peer name v1")
    assert lab.link("v0").lower_netns is None
    assert lab.link("v0").lower == lab.link("v1").index


def test_attributes_with_nested_and_byte_order_bits_are_read() -> None:
    info = attribute(1, b"macvlan\0") + attribute(2 | 0x8000, attribute(1, struct.pack("=I", 1)))
    data = link_message(attribute(3 | 0x4000, b"x0\0"), attribute(18 | 0x8000, info))
    assert decode(data) == Link(index=7, name="x0", flags=1, kind="macvlan", mode="private")


def test_info_data_of_other_kinds_is_not_taken_for_a_mode() -> None:
    info = attribute(1, b"vxlan\0") + attribute(2, attribute(1, struct.pack("=I", 4)))
    assert decode(link_message(attribute(3, b"x0\0"), attribute(18, info))) == Link(7, "x0", 1, kind="vxlan")


def test_hardware_is_read_with_its_bus() -> None:
    data = link_message(
        attribute(3, b"eth0\0"),
        attribute(54, bytes.fromhex("525400000001")),
        attribute(56, b"0000:3b:00.0\0"),
        attribute(57, b"pci\0"),
    )
    expected = Link(7, "eth0", 1, perm_mac=MAC, parent_dev="0000:3b:00.0", parent_bus="pci")
    assert decode(data) == oracle_without_mtu(data) == expected


def oracle_without_mtu(data: bytes) -> LinkEvent | None:
    link = oracle(data)
    return Link(**{**{f: getattr(link, f) for f in Link.__struct_fields__}, "mtu": 1500})


def test_wireless_event_is_not_taken_for_a_link_without_address() -> None:
    assert decode(link_message(attribute(3, b"wlan0\0"), attribute(11, bytes(16)))) is None


@pytest.mark.parametrize(
    "data",
    [
        link_message()[:31],
        link_message(),  # no name
        link_message(attribute(3, b"x0\0"), b"\x03\0\x01\0"),  # shorter than its header
        link_message(attribute(3, b"x0\0"), b"\xff\0\x01\0"),  # longer than the message
        link_message(attribute(3, b"x0\0"), b"\x04\0"),  # half a header
        link_message(attribute(3, b"x0\0"), attribute(4, b"\0\0")),  # a number cut short
        link_message(attribute(3, b"x0\0"), attribute(18, b"\x20\0\x01\0")),  # malformed inside
        link_message(attribute(3, b"x0\0"), attribute(52, b"\x20\0\x35\0")),
    ],
)
def test_malformed_link_messages_are_refused(data: bytes) -> None:
    with pytest.raises(NetlinkFormatError):
        decode(data)


@pytest.mark.parametrize("data", [bytes(15), bytes(16), b"\x11" + bytes(15), b"\x10" + bytes(18)])
def test_malformed_datagrams_are_refused(data: bytes) -> None:
    with pytest.raises(NetlinkFormatError):
        list(codec.split(data))


def test_length_beyond_the_buffer_is_refused() -> None:
    data = link_message(attribute(3, b"x0\0"))
    with pytest.raises(NetlinkFormatError):
        codec.decode_link(data, 0, len(data) + 4)
    with pytest.raises(NetlinkFormatError):
        codec.decode_link(data, 4, len(data))


def test_error_text_is_found_behind_a_capped_and_a_whole_request() -> None:
    text = attribute(1, b"Too bad\0")
    capped = struct.pack("=i", -17) + codec.HEADER.pack(100, 16, 0, 1, 0) + text
    whole = struct.pack("=i", -17) + codec.HEADER.pack(20, 16, 0, 1, 0) + b"\x08\0\x01\0" + text
    for flags, body in ((0x300, capped), (0x200, whole)):
        data = codec.HEADER.pack(16 + len(body), 2, flags, 1, 0) + body
        assert codec.decode_error(data, 0, len(data)) == (17, "Too bad")
    data = codec.HEADER.pack(36, 2, 0x100, 1, 0) + bytes(20)
    assert codec.decode_error(data, 0, len(data)) == (0, "")


# --- any bytes at all ------------------------------------------------------------------------

_whole = link_message(
    attribute(3, b"up0\0"),
    attribute(1, bytes(6)),
    attribute(4, struct.pack("=I", 1500)),
    attribute(18, attribute(1, b"macvtap\0") + attribute(2, attribute(1, struct.pack("=I", 4)))),
    attribute(52 | 0x8000, attribute(53, b"altname\0") + attribute(53, b"other\0")),
    attribute(20, "à la carte".encode()),
)
_filter_body = attribute(1, b"bpf\0") + attribute(2, attribute(7, b"name\0") + attribute(11, bytes(4)))
_filter = codec.HEADER.pack(36 + len(_filter_body), 44, 0, 1, 0) + struct.pack("=BxxxiIII", 0, 1, 1, 0, 0)
_error = codec.HEADER.pack(48, 2, 0x300, 1, 0) + bytes(20) + attribute(1, b"no\0") + bytes(4)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from([_whole, _filter + _filter_body, _error])))
    for _ in range(draw(st.integers(0, 6))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


@given(st.one_of(st.binary(max_size=200), mutated()))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    messages = [(0, len(data))]
    with suppress(NetlinkFormatError):
        messages += [(offset, length) for *_, offset, length in codec.split(data)]
    for offset, length in messages:
        for decoder in (codec.decode_link, codec.decode_filter, codec.decode_error):
            with suppress(NetlinkFormatError):
                decoder(data, offset, length)


@given(st.binary(max_size=60))
def test_any_attributes_are_read_or_refused(attributes: bytes) -> None:
    with suppress(NetlinkFormatError):
        decode(link_message(attribute(3, b"x0\0"), attributes))
