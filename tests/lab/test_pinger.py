"""The pinger loses exactly the probes that had no way."""

import time

import pytest

from evertap.lab.pinger import Pinger
from evertap.lab.wires import Lab

ADDRESS = "192.0.2.20"


@pytest.fixture
def answering(lab: Lab) -> Lab:
    lab.uplink("eth0")
    lab.host.ip("addr", "add", f"{ADDRESS}/24", "dev", "eth0")
    lab.host.run("ping", "-c1", "-W5", "192.0.2.1")
    return lab


def test_nothing_is_lost_on_a_good_wire(answering: Lab) -> None:
    with Pinger(answering.wire, ADDRESS) as pinger:
        pinger.wait_reply(5)
        time.sleep(1)
    assert 60 <= pinger.sent <= 130
    assert pinger.lost() == 0


def test_an_outage_is_measured_from_its_first_probe_to_its_last(answering: Lab) -> None:
    with Pinger(answering.wire, ADDRESS) as pinger:
        start = pinger.wait_reply(5)
        answering.carrier("eth0", on=False)
        down = time.monotonic()
        time.sleep(0.7)
        up = time.monotonic()
        answering.carrier("eth0", on=True)
        back = pinger.wait_reply(5)
        time.sleep(0.3)
    assert pinger.lost(since=down, until=up) == pytest.approx(70, abs=15)
    assert pinger.lost(until=start) == 0
    assert pinger.lost(since=back, until=back + 0.2) == 0
    assert pinger.gap(since=start) >= up - down - 0.02
    assert pinger.gap(since=start) < back - down + 0.2
    first = pinger.first_reply_after(up)
    assert first is not None
    assert up < first <= back
    assert pinger.gap(since=back) < 0.25


def test_probes_that_may_yet_be_answered_are_not_counted(answering: Lab) -> None:
    with Pinger(answering.wire, "192.0.2.99") as pinger:
        time.sleep(0.3)
        assert pinger.lost() == 0
        assert pinger.lost(until=time.monotonic()) == pinger.sent
        time.sleep(0.5)
        assert 0 < pinger.lost() < pinger.sent
        assert pinger.first_reply_after(0) is None


def test_waiting_for_a_dead_address_ends(answering: Lab) -> None:
    with Pinger(answering.wire, "192.0.2.99") as pinger, pytest.raises(TimeoutError, match=r"192\.0\.2\.99"):
        pinger.wait_reply(0.1)


def test_two_pingers_do_not_hear_each_other(answering: Lab) -> None:
    with Pinger(answering.wire, ADDRESS) as one, Pinger(answering.wire, "192.0.2.99") as other:
        one.wait_reply(5)
        assert other.first_reply_after(0) is None


def test_a_pinger_stops_twice_but_starts_once(answering: Lab) -> None:
    pinger = Pinger(answering.wire, ADDRESS)
    pinger.stop()
    pinger.start()
    pinger.stop()
    pinger.stop()
    with pytest.raises(RuntimeError, match="only once"):
        pinger.start()
