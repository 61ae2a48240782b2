"""Uplinks of the laboratory behave as cables and network cards do."""

import json

import pytest

from evertap.lab.capture import Capture
from evertap.lab.errors import LabError
from evertap.lab.wires import WIRE_IPV4, WIRE_MAC, Lab


def link(lab: Lab, name: str) -> dict[str, object]:
    (found,) = json.loads(lab.host.ip("-j", "link", "show", "dev", name))
    assert isinstance(found, dict)
    return found


def ping(lab: Lab, address: str = WIRE_IPV4) -> str:
    return lab.host.run("ping", "-c1", "-W2", address)


def test_an_uplink_leads_to_the_wire(lab: Lab) -> None:
    lab.uplink("eth0", mac="02:00:00:00:00:77")
    lab.host.ip_batch(["addr add 192.0.2.20/24 dev eth0", "addr add 2001:db8::20/64 dev eth0 nodad"])
    ping(lab)
    ping(lab, "2001:db8::1")
    assert link(lab, "eth0")["address"] == "02:00:00:00:00:77"
    assert WIRE_MAC in lab.host.ip("neigh")


def test_uplinks_have_the_size_and_state_asked_for(lab: Lab) -> None:
    lab.uplink("eth0", mtu=1400, up=False)
    found = link(lab, "eth0")
    assert found["mtu"] == 1400
    assert isinstance(found["flags"], list)
    assert "UP" not in found["flags"]


def test_an_idle_uplink_is_silent(lab: Lab) -> None:
    with Capture(lab.wire) as heard:
        lab.uplink("eth0")
        lab.bridge("br0", "eth0")
        lab.host.run("sleep", "1")
        assert heard.frames(lambda frame: frame.device.startswith("far-") and not frame.outgoing) == []


def test_removing_takes_the_far_end_too_and_may_be_repeated(lab: Lab) -> None:
    lab.uplink("eth0")
    assert "far-" in lab.wire.ip("-br", "link")
    lab.remove("eth0")
    assert "far-" not in lab.wire.ip("-br", "link")
    lab.remove("eth0")
    lab.uplink("eth0")
    lab.host.ip("link", "del", "eth0")
    lab.remove("eth0")


def test_an_uplink_comes_back_with_the_same_far_mac(lab: Lab) -> None:
    def far_mac() -> object:
        (found,) = [one for one in json.loads(lab.wire.ip("-j", "link")) if one["ifname"].startswith("far-")]
        return found["address"]

    lab.uplink("eth0")
    before = far_mac()
    lab.remove("eth0")
    lab.uplink("eth0")
    assert far_mac() == before


def test_the_carrier_goes_and_comes(lab: Lab) -> None:
    lab.uplink("eth0")
    lab.host.ip("addr", "add", "192.0.2.20/24", "dev", "eth0")
    lab.carrier("eth0", on=False)
    assert "NO-CARRIER" in str(link(lab, "eth0")["flags"])
    lab.carrier("eth0", on=True)
    assert "NO-CARRIER" not in str(link(lab, "eth0")["flags"])
    ping(lab)


def test_a_renamed_uplink_stays_plugged_in(lab: Lab) -> None:
    lab.uplink("eth0")
    lab.host.ip("addr", "add", "192.0.2.20/24", "dev", "eth0")
    lab.rename("eth0", "lan0")
    ping(lab)
    lab.carrier("lan0", on=False)
    assert "NO-CARRIER" in str(link(lab, "lan0")["flags"])
    lab.uplink("eth0")
    with pytest.raises(LabError, match="'eth9' is no uplink of this lab; there are: lan0, eth0"):
        lab.carrier("eth9", on=False)


def test_a_name_that_is_taken_leaves_nothing_behind(lab: Lab) -> None:
    lab.uplink("eth0")
    before = lab.wire.ip("-br", "link")
    with pytest.raises(LabError, match="File exists"):
        lab.uplink("eth0")
    assert lab.wire.ip("-br", "link") == before


def test_a_bridge_joins_its_ports(lab: Lab) -> None:
    lab.uplink("eth0")
    lab.bridge("br0", "eth0")
    lab.host.ip("addr", "add", "192.0.2.20/24", "dev", "br0")
    ping(lab)


def test_the_wires_own_end_keeps_its_carrier_without_uplinks(lab: Lab) -> None:
    lab.uplink("eth0")
    lab.remove("eth0")
    (net0,) = json.loads(lab.wire.ip("-j", "link", "show", "dev", "net0"))
    assert "NO-CARRIER" not in net0["flags"]
