"""What a quiet machine with one address answers to a frame: a pure function for the builtin guest."""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from evertap.lab import frames as f

_ALL_NODES = IPv6Address("ff02::1")


@dataclass(frozen=True, slots=True)
class Station:
    """Who answers: a MAC address with an IPv4 and, perhaps, an IPv6 address."""

    mac: bytes
    ipv4: IPv4Address
    ipv6: IPv6Address | None = None

    def answer(self, frame: bytes) -> bytes | None:
        """Return the frame to send back, or None where a machine would be silent."""
        destination, source, kind = frame[:6], frame[6:12], frame[12:14]
        # The lowest bit of the first byte marks groups, the broadcast address among them.
        if len(frame) < 14 or not (destination == self.mac or destination[0] & 1):
            return None
        match int.from_bytes(kind, "big"):
            case f.ARP:
                return self._arp(frame[14:])
            case f.IPV4:
                return self._echo(source, frame[14:])
            case f.IPV6 if self.ipv6 is not None:
                return self._icmp6(source, frame[14:], self.ipv6)
        return None

    def _arp(self, body: bytes) -> bytes | None:
        if len(body) < 28 or body[:8] != struct.pack("!HHBBH", 1, f.IPV4, 6, 4, f.ARP_REQUEST):
            return None
        if body[24:28] != self.ipv4.packed:
            return None
        return f.arp_reply(self.mac, self.ipv4, body[8:14], IPv4Address(body[14:18]))

    def _echo(self, to_mac: bytes, packet: bytes) -> bytes | None:
        if len(packet) < 20 or packet[9] != f.ICMP or packet[16:20] != self.ipv4.packed:
            return None
        # Frames may be padded: the header knows the true length.
        message = packet[(packet[0] & 15) * 4 : int.from_bytes(packet[2:4], "big")]
        if len(message) < 8 or message[0] != f.ECHO_REQUEST or f.checksum(message):
            return None
        identifier, sequence = struct.unpack("!HH", message[4:8])
        reply = f.icmp_echo(f.ECHO_REPLY, identifier, sequence, message[8:])
        packet = f.ipv4(self.ipv4, IPv4Address(packet[12:16]), f.ICMP, reply)
        return f.ethernet(to_mac, self.mac, f.IPV4, packet)

    def _icmp6(self, to_mac: bytes, packet: bytes, own: IPv6Address) -> bytes | None:
        if len(packet) < 48 or packet[6] != f.ICMPV6:
            return None
        sender, destination = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
        message = packet[40 : 40 + int.from_bytes(packet[4:6], "big")]
        if message[0] == f.NEIGHBOUR_SOLICITATION and message[8:24] == own.packed:
            # A sender without address (::) tests whether the address is free: all are told that it is not.
            to = sender if int(sender) else _ALL_NODES
            mac = to_mac if int(sender) else b"\x33\x33" + to.packed[12:]
            return f.neighbour_advertisement(self.mac, own, mac, to)
        if message[0] == f.ECHO6_REQUEST and destination == own:
            reply = bytes((f.ECHO6_REPLY, 0, 0, 0)) + message[4:]
            return f.ethernet(to_mac, self.mac, f.IPV6, f.icmp6(own, sender, reply))
        return None
