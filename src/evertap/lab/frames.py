"""Ethernet frames as bytes: ARP, ICMP echo and IPv6 neighbour discovery, built and checked by hand."""

import struct
from ipaddress import IPv4Address, IPv6Address

BROADCAST = b"\xff" * 6

ARP = 0x0806
IPV4 = 0x0800
IPV6 = 0x86DD

ICMP = 1
ICMPV6 = 58

ECHO_REPLY = 0
ECHO_REQUEST = 8
ECHO6_REQUEST = 128
ECHO6_REPLY = 129
NEIGHBOUR_SOLICITATION = 135
NEIGHBOUR_ADVERTISEMENT = 136

ARP_REQUEST = 1
ARP_REPLY = 2


def mac_bytes(text: str) -> bytes:
    """'02:00:00:00:00:01' as six bytes. Raises ValueError for anything else."""
    raw = bytes.fromhex(text.replace(":", ""))
    if len(raw) != 6:
        raise ValueError(f"not a MAC address: {text!r}")
    return raw


def mac_text(raw: bytes) -> str:
    """Six bytes as '02:00:00:00:00:01'."""
    return raw.hex(":")


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); 0 for data that contains its own, right, checksum."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(destination: bytes, source: bytes, kind: int, payload: bytes) -> bytes:
    """A frame; `kind` is its EtherType."""
    return destination + source + struct.pack("!H", kind) + payload


def arp(
    operation: int,
    sender_mac: bytes,
    sender: IPv4Address,
    target_mac: bytes,
    target: IPv4Address,
    destination: bytes = BROADCAST,
) -> bytes:
    """A whole ARP frame (RFC 826)."""
    body = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    body += sender_mac + sender.packed + target_mac + target.packed
    return ethernet(destination, sender_mac, ARP, body)


def arp_request(mac: bytes, sender: IPv4Address, target: IPv4Address) -> bytes:
    """`mac` asks everyone who has `target`."""
    return arp(ARP_REQUEST, mac, sender, bytes(6), target)


def arp_reply(mac: bytes, sender: IPv4Address, to_mac: bytes, to: IPv4Address) -> bytes:
    """`mac` tells `to_mac` that it has `sender`."""
    return arp(ARP_REPLY, mac, sender, to_mac, to, destination=to_mac)


def icmp_echo(kind: int, identifier: int, sequence: int, payload: bytes = b"") -> bytes:
    """An ICMP echo message (ECHO_REQUEST or ECHO_REPLY) with its checksum, without IP header."""
    message = struct.pack("!BBHHH", kind, 0, 0, identifier, sequence) + payload
    return _with_checksum(message, checksum(message))


def ipv4(source: IPv4Address, destination: IPv4Address, protocol: int, payload: bytes) -> bytes:
    """An IPv4 packet without options."""
    length = 20 + len(payload)
    header = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0x4000, 64, protocol, 0)
    header += source.packed + destination.packed
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def icmp6(source: IPv6Address, destination: IPv6Address, message: bytes) -> bytes:
    """An IPv6 packet with an ICMPv6 message, whose checksum (bytes 2 and 3, given as 0) is filled in.

    The hop limit is 255, as neighbour discovery demands (RFC 4861).
    """
    pseudo = source.packed + destination.packed + struct.pack("!II", len(message), ICMPV6)
    message = _with_checksum(message, checksum(pseudo + message))
    header = struct.pack("!IHBB", 6 << 28, len(message), ICMPV6, 255)
    return header + source.packed + destination.packed + message


def solicited_node(address: IPv6Address) -> IPv6Address:
    """The multicast group in which the owner of `address` listens for solicitations."""
    return IPv6Address(IPv6Address("ff02::1:ff00:0").packed[:13] + address.packed[13:])


def neighbour_solicitation(mac: bytes, sender: IPv6Address, target: IPv6Address) -> bytes:
    """A whole frame in which `mac` asks who has `target`."""
    group = solicited_node(target)
    message = struct.pack("!BBHI", NEIGHBOUR_SOLICITATION, 0, 0, 0) + target.packed + b"\x01\x01" + mac
    return ethernet(b"\x33\x33" + group.packed[12:], mac, IPV6, icmp6(sender, group, message))


def neighbour_advertisement(mac: bytes, target: IPv6Address, to_mac: bytes, to: IPv6Address) -> bytes:
    """A whole frame in which `mac` tells `to_mac` that it has `target` (flags: solicited, override)."""
    message = struct.pack("!BBHI", NEIGHBOUR_ADVERTISEMENT, 0, 0, 0x60000000)
    message += target.packed + b"\x02\x01" + mac
    return ethernet(to_mac, mac, IPV6, icmp6(target, to, message))


def _with_checksum(message: bytes, value: int) -> bytes:
    return message[:2] + struct.pack("!H", value) + message[4:]
