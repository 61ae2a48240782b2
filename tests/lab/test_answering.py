"""The builtin guest answers what is meant for it, and only that."""

from ipaddress import IPv4Address, IPv6Address

import pytest

from evertap.lab import frames as f
from evertap.lab.answering import Station

PEER, GUEST, THIRD = (f.mac_bytes(f"02:00:00:00:00:0{n}") for n in (1, 2, 3))
PEER4, GUEST4 = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.10")
PEER6, GUEST6 = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::10")

STATION = Station(GUEST, GUEST4, GUEST6)


def ping(destination: bytes = GUEST, to: IPv4Address = GUEST4, kind: int = f.ECHO_REQUEST) -> bytes:
    message = f.icmp_echo(kind, 1, 2, b"payload")
    return f.ethernet(destination, PEER, f.IPV4, f.ipv4(PEER4, to, f.ICMP, message))


def test_arp_requests_for_its_address_are_answered() -> None:
    assert STATION.answer(f.arp_request(PEER, PEER4, GUEST4)) == f.arp_reply(GUEST, GUEST4, PEER, PEER4)


def test_arp_for_others_is_not_answered() -> None:
    assert STATION.answer(f.arp_request(PEER, PEER4, IPv4Address("192.0.2.11"))) is None
    assert STATION.answer(f.arp_reply(PEER, PEER4, GUEST, GUEST4)) is None


def test_a_ping_is_answered_with_its_own_payload() -> None:
    message = f.icmp_echo(f.ECHO_REPLY, 1, 2, b"payload")
    expected = f.ethernet(PEER, GUEST, f.IPV4, f.ipv4(GUEST4, PEER4, f.ICMP, message))
    assert STATION.answer(ping()) == expected
    assert STATION.answer(ping() + bytes(11)) == expected, "a padded frame"


def test_ipv6_pings_are_answered() -> None:
    def echo(kind: int, source: IPv6Address, destination: IPv6Address) -> bytes:
        return f.icmp6(source, destination, bytes((kind, 0, 0, 0)) + b"\0\1\0\2data")

    frame = f.ethernet(GUEST, PEER, f.IPV6, echo(f.ECHO6_REQUEST, PEER6, GUEST6))
    assert STATION.answer(frame) == f.ethernet(PEER, GUEST, f.IPV6, echo(f.ECHO6_REPLY, GUEST6, PEER6))


def test_neighbours_find_it() -> None:
    asked = f.neighbour_solicitation(PEER, PEER6, GUEST6)
    assert STATION.answer(asked) == f.neighbour_advertisement(GUEST, GUEST6, PEER, PEER6)


def test_whoever_tests_its_address_for_being_free_is_told_by_multicast() -> None:
    answer = STATION.answer(f.neighbour_solicitation(PEER, IPv6Address("::"), GUEST6))
    assert answer is not None
    assert answer[:6].hex(":") == "33:33:00:00:00:01"


@pytest.mark.parametrize(
    "frame",
    [
        ping(destination=THIRD),
        ping(to=IPv4Address("192.0.2.11")),
        ping(kind=f.ECHO_REPLY),
        ping()[:-1] + b"!",  # the checksum is wrong
        f.neighbour_solicitation(PEER, PEER6, IPv6Address("2001:db8::11")),
        f.ethernet(GUEST, PEER, 0x88CC, b"not for us"),
    ],
)
def test_it_is_silent_otherwise(frame: bytes) -> None:
    assert STATION.answer(frame) is None


def test_it_has_no_ipv6_unless_told() -> None:
    assert Station(GUEST, GUEST4).answer(f.neighbour_solicitation(PEER, PEER6, GUEST6)) is None


@pytest.mark.parametrize("whole", [ping(), f.arp_request(PEER, PEER4, GUEST4)])
def test_frames_cut_short_do_no_harm(whole: bytes) -> None:
    for length in range(len(whole)):
        STATION.answer(whole[:length])
    solicitation = f.neighbour_solicitation(PEER, PEER6, GUEST6)
    for length in range(len(solicitation)):
        STATION.answer(solicitation[:length])
