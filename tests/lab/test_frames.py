"""Frames are built as the standards say."""

from ipaddress import IPv4Address, IPv6Address

import pytest

from evertap.lab import frames as f

MAC = f.mac_bytes("02:00:00:00:00:01")
OTHER = f.mac_bytes("52:54:00:12:34:56")


def test_mac_addresses_are_read_and_written() -> None:
    assert f.mac_text(OTHER) == "52:54:00:12:34:56"
    assert f.mac_bytes(f.mac_text(MAC)) == MAC


@pytest.mark.parametrize("wrong", ["", "02:00:00:00:00", "zz:00:00:00:00:00", "02:00:00:00:00:01:02"])
def test_other_texts_are_no_mac_addresses(wrong: str) -> None:
    with pytest.raises(ValueError):
        f.mac_bytes(wrong)


def test_checksum_is_that_of_the_rfcs_example() -> None:
    # RFC 1071, section 3: the sum is ddf2.
    assert f.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF ^ 0xDDF2


@pytest.mark.parametrize("size", [0, 1, 2, 57, 1400])
def test_an_echo_message_checks_to_zero(size: int) -> None:
    message = f.icmp_echo(f.ECHO_REQUEST, 7, 65535, b"\xa5" * size)
    assert f.checksum(message) == 0
    assert message[:2] == b"\x08\x00"


def test_an_ipv4_header_checks_to_zero_and_knows_its_length() -> None:
    packet = f.ipv4(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.10"), f.ICMP, b"12345")
    assert f.checksum(packet[:20]) == 0
    assert int.from_bytes(packet[2:4], "big") == len(packet) == 25


def test_an_arp_request_is_the_well_known_42_bytes() -> None:
    frame = f.arp_request(MAC, IPv4Address("192.0.2.1"), IPv4Address("192.0.2.10"))
    assert frame.hex() == (
        "ffffffffffff02000000000108060001080006040001020000000001c0000201000000000000c000020a"
    )


def test_a_solicitation_goes_to_the_targets_group() -> None:
    target = IPv6Address("2001:db8::12:3456")
    assert f.solicited_node(target) == IPv6Address("ff02::1:ff12:3456")
    frame = f.neighbour_solicitation(MAC, IPv6Address("2001:db8::1"), target)
    assert frame[:6].hex() == "3333ff123456"
    assert frame[12:14].hex() == "86dd"
    # Hop limit 255, or the receiver must ignore it.
    assert frame[14 + 7] == 255


def test_icmp6_checksum_covers_the_pseudo_header() -> None:
    source, destination = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::10")
    packet = f.icmp6(source, destination, bytes((f.ECHO6_REQUEST, 0, 0, 0)) + b"abcd")
    pseudo = packet[8:40] + (8).to_bytes(4, "big") + f.ICMPV6.to_bytes(4, "big")
    assert f.checksum(pseudo + packet[40:]) == 0
