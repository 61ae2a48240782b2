"""What is planned in which situation."""

from __future__ import annotations

from typing import Any

from evertap.model.actions import (
    Action,
    Announce,
    BringUp,
    CreateMacvlan,
    CreateTap,
    JoinBridge,
    LeaveBridge,
    RemoveMacvlan,
    RemoveTap,
    SetMtu,
    Splice,
)
from evertap.model.choice import Wanted
from evertap.model.links import IFF_LOWER_UP, IFF_UP
from evertap.model.nic import Nic
from evertap.model.observed import Observed
from evertap.model.plan import Plan, plan
from tests.support.nics import nic
from tests.support.simulated import SimulatedKernel


class World:
    """A simulated host with one NIC on it, and a clock."""

    def __init__(self, wanted: Nic, **fields: Any) -> None:
        self.host = SimulatedKernel()
        self.seen = Observed()
        self.now = 0.0
        self.wanted = Wanted(wanted, **fields)

    def look(self) -> Plan:
        for event in self.host.events():
            self.seen.fold(event, self.now)
        self.seen.taps = dict(self.host.taps)
        return plan(self.wanted, self.seen, self.now)

    def apply(self, actions: list[Action]) -> None:
        for done in self.host.perform([actions]):
            assert done.error is None

    def settle(self) -> Plan:
        self.apply(self.look().actions)
        rested = self.look()
        assert rested.actions == []
        return rested

    def want(self, wanted: Nic, **fields: Any) -> None:
        self.wanted = Wanted(wanted, **fields)


def kinds(found: Plan) -> list[type]:
    return [type(action) for action in found.actions]


def test_without_an_uplink_only_the_tap_is_made_and_the_nic_waits() -> None:
    world = World(nic())
    assert kinds(world.look()) == [CreateTap]
    rested = world.settle()
    assert (rested.state, rested.uplink, rested.reason) == ("waiting", None, "eth0: no such interface")


def test_an_uplink_that_appears_is_connected_and_announced() -> None:
    world = World(nic())
    world.settle()
    world.host.add("eth0")
    assert kinds(world.look()) == [CreateMacvlan, Splice, Announce]
    rested = world.settle()
    assert rested.state == "connected"
    assert rested.uplink is world.seen.links.named("eth0")


def test_all_is_ready_before_the_carrier_comes_and_the_announcement_waits_for_it() -> None:
    world = World(nic("web0", "eth0", "eth1"))
    world.settle()
    world.host.add("eth0", flags=0)
    assert kinds(world.look()) == [BringUp, CreateMacvlan, Splice]
    world.apply(world.look().actions)
    world.host.change("eth0", flags=IFF_UP)
    rested = world.settle()
    assert (rested.state, rested.reason) == ("waiting", "eth0: has no carrier; eth1: no such interface")
    world.seen.lost.add("web0")
    world.host.change("eth0", flags=IFF_UP | IFF_LOWER_UP)
    assert world.look().state == "connected"
    assert kinds(world.look()) == [Announce]


def test_of_two_uplinks_without_carrier_the_first_is_pointed_at_and_the_one_that_gets_it_wins() -> None:
    world = World(nic("web0", "eth0", "eth1"))
    world.host.add("eth0", flags=IFF_UP)
    world.host.add("eth1", flags=IFF_UP)
    world.settle()
    devices = {link.lower: link.index for link in world.seen.links.owned("web0") if link.kind == "macvlan"}
    assert world.host.taps["web0"].target == devices[1]
    world.host.change("eth1", flags=IFF_UP | IFF_LOWER_UP)
    assert kinds(world.look()) == [Splice, Announce]
    assert world.settle().uplink is world.seen.links.named("eth1")


def test_an_uplink_that_stays_down_gets_no_macvlan() -> None:
    world = World(nic(bring_up=False))
    world.settle()
    world.host.add("eth0", flags=0)
    assert world.look().actions == []


def test_an_uplink_that_is_gone_leaves_the_nic_pointed_at_nothing() -> None:
    world = World(nic())
    world.host.add("eth0")
    world.settle()
    world.host.remove("eth0")
    found = world.look()
    assert [str(action) for action in found.actions] == ["disconnect"]
    assert world.settle().state == "waiting"
    assert world.host.taps["web0"].target == 0


def test_a_lost_carrier_without_an_alternative_leaves_the_splice_in_place() -> None:
    world = World(nic())
    world.host.add("eth0")
    target = (world.settle(), world.host.taps["web0"].target)[1]
    world.host.change("eth0", flags=IFF_UP)
    rested = world.settle()
    assert (rested.state, rested.reason) == ("waiting", "eth0: has no carrier")
    assert world.host.taps["web0"].target == target


def test_hot_failover_is_one_map_update_and_failback_waits_for_the_delay() -> None:
    world = World(nic("web0", "eth0", "eth1"))
    world.host.add("eth0")
    world.host.add("eth1")
    world.settle()
    world.now = 10.0
    world.host.change("eth0", flags=IFF_UP)
    assert kinds(world.look()) == [Splice, Announce]
    assert world.settle().uplink is world.seen.links.named("eth1")
    world.now = 20.0
    world.host.change("eth0", flags=IFF_UP | IFF_LOWER_UP)
    waiting = world.look()
    assert waiting.actions == []
    assert waiting.again_at == 25.0
    world.now = 25.0
    assert kinds(world.look()) == [Splice, Announce]
    assert world.settle().uplink is world.seen.links.named("eth0")


def test_failback_delay_of_minus_one_means_never() -> None:
    world = World(nic("web0", "eth0", "eth1", failback_delay=-1))
    world.host.add("eth1")
    world.settle()
    world.host.add("eth0")
    world.now = 1e6
    rested = world.settle()
    assert rested.uplink is world.seen.links.named("eth1")
    assert rested.again_at == float("inf")


def test_a_new_wish_needs_no_failback_delay() -> None:
    world = World(nic("web0", "eth0"))
    world.host.add("eth0")
    world.host.add("eth1")
    world.settle()
    world.now = 1.0
    world.want(nic("web0", "eth1", "eth0", failback_delay=-1), since=1.0)
    assert world.settle().uplink is world.seen.links.named("eth1")


def test_cold_failover_keeps_one_macvlan_only() -> None:
    world = World(nic("web0", "eth0", "eth1", failover="cold"))
    world.host.add("eth0")
    world.host.add("eth1")
    world.settle()
    assert [link.lower for link in world.seen.links.owned("web0") if link.kind == "macvlan"] == [1]
    world.host.change("eth0", flags=IFF_UP)
    assert kinds(world.look()) == [CreateMacvlan, Splice, Announce, RemoveMacvlan]
    assert world.settle().state == "connected"


def test_an_uplink_that_flaps_is_avoided_while_another_is_usable() -> None:
    world = World(nic("web0", "eth0", "eth1", failback_delay=0, flap_hold=30))
    world.host.add("eth0")
    world.host.add("eth1")
    for second in range(5):
        world.now = float(second)
        world.host.change("eth0", flags=IFF_UP)
        world.settle()
        world.host.change("eth0", flags=IFF_UP | IFF_LOWER_UP)
        rested = world.settle()
    assert rested.uplink is world.seen.links.named("eth1")
    assert rested.again_at == 34.0
    assert "failed 5 times" in rested.found[0].reason
    world.host.remove("eth1")
    assert world.settle().uplink is world.seen.links.named("eth0")
    world.host.add("eth1")
    world.now = 34.0
    assert world.settle().uplink is world.seen.links.named("eth0")


def test_from_macvlan_to_bridge_and_back_overlaps() -> None:
    world = World(nic("web0", "eth0"))
    world.host.add("eth0")
    world.host.add("br0", kind="bridge", flags=IFF_UP)
    world.settle()
    world.want(nic("web0", {"bridge": "br0"}))
    assert kinds(world.look()) == [JoinBridge, Splice, Announce, RemoveMacvlan]
    assert world.settle().uplink is world.seen.links.named("br0")
    world.want(nic("web0", "eth0"))
    assert kinds(world.look()) == [CreateMacvlan, Splice, Announce, LeaveBridge]
    assert world.settle().uplink is world.seen.links.named("eth0")


def test_a_deleted_bridge_stops_frames_from_reaching_the_host() -> None:
    world = World(nic("web0", {"bridge": "br0"}))
    world.host.add("br0", kind="bridge")
    world.settle()
    world.host.remove("br0")
    world.settle()
    assert world.host.taps["web0"].target == 0


def test_an_uplink_is_brought_up_once_only() -> None:
    world = World(nic())
    world.host.add("eth0", flags=0)
    assert BringUp in kinds(world.look())
    world.apply(world.look().actions)
    assert world.settle().state == "connected"
    world.host.change("eth0", flags=0)
    assert kinds(world.look()) == []


def test_a_down_uplink_under_an_old_macvlan_of_ours_was_served_before() -> None:
    world = World(nic())
    world.host.add("eth0")
    world.settle()
    world.host.change("eth0", flags=0)
    world.seen = Observed()
    world.seen.fold_all(world.host.read_links(), 0.0)
    assert BringUp not in kinds(world.look())


def test_disconnect_removes_the_backend_and_keeps_the_tap() -> None:
    world = World(nic())
    world.host.add("eth0")
    world.settle()
    world.want(nic(), disconnected=True)
    assert kinds(world.look()) == [Splice, RemoveMacvlan]
    rested = world.settle()
    assert rested.state == "disconnected"
    assert [link.kind for link in world.seen.links.owned("web0")] == ["tun"]


def test_a_removed_definition_leaves_the_tap_to_its_vm() -> None:
    world = World(nic())
    world.host.add("eth0")
    world.settle()
    world.host.change("web0", flags=IFF_UP | IFF_LOWER_UP)  # a VM has opened it
    world.want(nic(), removed=True)
    assert kinds(world.look()) == [Splice, RemoveMacvlan]
    world.settle()
    world.host.change("web0", flags=IFF_UP)
    assert kinds(world.look()) == [RemoveTap]
    world.settle()
    assert world.seen.links.owned("web0") == []


def test_an_interface_of_the_nics_name_that_is_not_ours_is_left_alone() -> None:
    world = World(nic())
    world.host.add("web0", kind="tun")
    world.host.add("eth0")
    found = world.look()
    assert found.state == "failed"
    assert found.actions == []
    assert 'interface named "web0" exists that evertap did not make' in found.reason


def test_mtu_follows_the_definition_within_what_the_uplink_allows() -> None:
    world = World(nic(mtu=9000))
    world.host.add("eth0", mtu=1500)
    rested = world.settle()
    assert rested.reason == "MTU 1500 is smaller than the NIC's 9000"
    world.host.change("eth0", mtu=9000)
    assert kinds(world.look()) == [SetMtu]
    assert world.settle().reason == ""


def test_a_changed_mode_makes_the_macvlan_anew() -> None:
    world = World(nic())
    world.host.add("eth0")
    world.settle()
    world.want(nic(mode="private"))
    assert kinds(world.look()) == [RemoveMacvlan, CreateMacvlan, Splice, Announce]
    world.settle()


def test_what_the_living_tap_cannot_change_waits_until_the_vm_lets_go() -> None:
    world = World(nic())
    world.host.add("eth0")
    world.settle()
    world.host.change("web0", flags=IFF_UP | IFF_LOWER_UP)
    world.want(nic(queues=4))
    assert world.look().actions == []
    world.host.change("web0", flags=IFF_UP)
    # The macvlans lead to the old tap: they go first.
    assert kinds(world.look()) == [RemoveMacvlan, RemoveTap, CreateTap, CreateMacvlan, Splice, Announce]
    assert world.settle().state == "connected"


def test_the_reason_names_every_obstacle() -> None:
    wanted = nic("web0", "eth0", "eth1", "eth2", "eth3", "eth4", {"bridge": "eth5"}, "gone")
    world = World(wanted)
    bridge = world.host.add("br9", kind="bridge")
    world.host.add("eth0", master=bridge.index, port_kind="bridge")
    eth1 = world.host.add("eth1")
    world.host.add("mv1", kind="macvtap", lower=eth1.index, mac=wanted.mac)
    eth2 = world.host.add("eth2")
    world.host.add("mv2", kind="macvlan", mode="passthru", lower=eth2.index, alias="evertap:other")
    world.host.add("eth3", mac=wanted.mac)
    world.host.add("eth4", type=772)
    world.host.add("eth5")
    assert world.settle().reason == (
        'eth0: is a port of bridge br9; use { bridge = "br9" }; '
        "eth1: has a foreign macvtap mv1 with this NIC's MAC; remove it: ip link del mv1; "
        'eth2: is taken by NIC "other" in mode passthru; '
        "eth3: has this NIC's own MAC address; give one of them another; "
        "eth4: is not an Ethernet interface; "
        "eth5: is not a bridge; write the name alone for a macvlan on it; "
        "gone: no such interface"
    )


def test_passthru_needs_the_uplink_alone() -> None:
    world = World(nic(mode="passthru"))
    eth0 = world.host.add("eth0")
    world.host.add("mv0", kind="macvlan", mode="bridge", lower=eth0.index, alias="evertap:other")
    assert 'is used by NIC "other", and mode passthru needs it alone' in world.settle().reason


def test_uplinks_are_found_by_altname_glob_mac_and_bus_path() -> None:
    for spec in ("lan", "en*", {"mac": "02:00:00:00:00:07"}, {"path": "pci-0000:3b:00.0"}):
        world = World(nic("web0", spec))
        world.host.add("other")
        world.host.add(
            "enp7s0",
            perm_mac="02:00:00:00:00:07",
            parent_bus="pci",
            parent_dev="0000:3b:00.0",
            altnames=("lan",),
        )
        rested = world.settle()
        assert rested.uplink is world.seen.links.named("enp7s0"), spec


def test_a_mac_means_the_interface_and_not_the_vlan_or_bridge_that_bears_it_too() -> None:
    world = World(nic("web0", {"mac": "02:00:00:00:00:07"}))
    eth0 = world.host.add("eth0.5", kind="vlan", mac="02:00:00:00:00:07")
    world.host.add("eth0", mac="02:00:00:00:00:07")
    assert world.settle().uplink is not eth0
    assert world.settle().uplink is world.seen.links.named("eth0")
