"""What is planned for the macvtap backend, for the guest's link, and for its receive filter."""

from __future__ import annotations

import msgspec

from evertap.model.actions import (
    Announce,
    CreateMacvlan,
    Plug,
    RemoveMacvlan,
    SetGuestLink,
    SetMac,
    SetMulticast,
    Unplug,
)
from evertap.model.links import IFF_UP
from evertap.model.observed import Observed
from evertap.model.plan import Plan
from evertap.model.vmm import (
    RxFilter,
    Vmm,
    card_port,
    plugged,
    qemu_id,
    sink_port,
    uplink_netdev,
    uplink_port,
)
from tests.model.test_plan import World, kinds
from tests.support.nics import nic

QMP = "/run/web0.qmp"
PARTS = frozenset({qemu_id("web0"), card_port("web0"), sink_port("web0")})


class MacvtapWorld(World):
    """A simulated host with a NIC of backend macvtap, whose QEMU runs."""

    def __init__(self, *uplinks: str, **fields: object) -> None:
        super().__init__(nic("web0", *uplinks, backend="macvtap", **fields), qmp=QMP)
        self.boot()

    def boot(self, *more: str) -> None:
        self.seen.vmms[QMP] = Vmm(running=True, parts=PARTS | set(more))

    def plug(self, index: int) -> None:
        parts = self.seen.vmms[QMP].parts
        ports = {uplink_port("web0", other) for other in plugged("web0", parts)}
        self.boot(*(parts - ports), uplink_netdev("web0", index), uplink_port("web0", index))

    def unplug(self, index: int) -> None:
        self.boot(*(self.seen.vmms[QMP].parts - {uplink_netdev("web0", index), uplink_port("web0", index)}))

    def carry_out(self, found: Plan) -> None:
        for action in found.actions:
            match action:
                case Plug(index=None):
                    return  # by the next plan
                case Plug(index=int(index)):
                    self.plug(index)
                case Unplug(index=index):
                    self.unplug(index)
                case SetGuestLink():
                    self.seen.guest_links["web0"] = action.up
                case _:
                    self.apply([action])

    def settle(self) -> Plan:
        for _ in range(4):
            found = self.look()
            if not found.actions:
                return found
            self.carry_out(found)
        raise AssertionError(self.look().actions)


def test_a_macvtap_is_made_and_handed_to_qemu_when_the_uplink_appears() -> None:
    world = MacvtapWorld("eth0")
    assert world.settle().state == "waiting"
    world.host.add("eth0")
    assert [str(action) for action in world.look().actions][:2] == [
        "create macvtap (mode bridge) on eth0",
        "hand the macvtap on eth0 to QEMU",
    ]
    rested = world.settle()
    assert (rested.state, rested.uplink) == ("connected", world.seen.links.named("eth0"))


def test_a_dead_macvtap_is_taken_out_of_qemu_and_a_new_one_handed_over() -> None:
    world = MacvtapWorld("eth0")
    world.host.add("eth0")
    world.settle()
    world.host.remove("eth0")
    assert kinds(world.look()) == [Unplug]
    assert world.settle().state == "waiting"
    world.host.add("eth0")
    assert world.settle().state == "connected"


def test_two_macvtaps_are_never_on_the_hub_together() -> None:
    world = MacvtapWorld("eth0", "eth1")
    world.host.add("eth0")
    world.host.add("eth1")
    world.settle()
    world.host.change("eth0", flags=IFF_UP)
    assert [kind for kind in kinds(world.look()) if kind is not Announce] == [
        CreateMacvlan,
        Plug,
        Unplug,
        RemoveMacvlan,
    ]
    assert world.settle().uplink == world.seen.links.named("eth1")
    assert sum(link.kind == "macvtap" for link in world.host.links.values()) == 1


def test_a_half_plugged_macvtap_is_plugged_anew() -> None:
    world = MacvtapWorld("eth0")
    world.host.add("eth0")
    world.settle()
    (index,) = [link.index for link in world.host.links.values() if link.kind == "macvtap"]
    world.boot(uplink_netdev("web0", index))
    assert kinds(world.look())[:2] == [Unplug, Plug]
    assert world.settle().state == "connected"


def test_a_qemu_that_hangs_keeps_its_macvtap_and_one_that_ended_does_not() -> None:
    world = MacvtapWorld("eth0")
    world.host.add("eth0")
    world.settle()
    world.seen.vmms[QMP] = Vmm(reason="does not answer within 5 s")
    hanging = world.look()
    assert hanging.actions == []
    assert hanging.reason == f"the VM's QEMU at {QMP}: does not answer within 5 s"
    world.seen.vmms[QMP] = Vmm(gone=True, reason="QEMU has ended")
    assert kinds(world.look()) == [RemoveMacvlan]


def test_a_new_daemon_that_does_not_know_the_qemu_yet_leaves_the_macvtap_alone() -> None:
    world = MacvtapWorld("eth0")
    world.host.add("eth0")
    world.settle()
    parts = world.seen.vmms[QMP]
    world.seen = Observed()
    world.seen.fold_all(world.host.read_links(), 0.0)
    assert world.look().actions == []
    world.seen.vmms[QMP] = parts
    rested = world.look()
    assert (rested.state, rested.actions) == ("connected", [])


def test_a_qemu_without_the_card_is_told_of_and_not_touched() -> None:
    world = MacvtapWorld("eth0")
    world.host.add("eth0")
    world.seen.vmms[QMP] = Vmm(running=True)
    found = world.look()
    assert found.actions == []
    assert "start it with what `evertap args web0` prints" in found.reason


def test_a_bridge_is_no_uplink_for_a_macvtap() -> None:
    world = MacvtapWorld("br0")
    world.host.add("br0", kind="bridge")
    assert 'is a bridge, which backend "macvtap" cannot join' in world.settle().reason


def guest_link(policy: str) -> MacvtapWorld:
    world = MacvtapWorld("eth0", "eth1", guest_link=policy)
    world.seen.told["web0"] = 0
    return world


def test_keep_never_touches_the_guests_link() -> None:
    world = guest_link("keep")
    world.host.add("eth0")
    world.settle()
    world.host.remove("eth0")
    world.settle()
    assert world.seen.guest_links == {}


def test_follow_shows_the_guest_what_the_nic_has() -> None:
    world = guest_link("follow")
    world.settle()
    assert world.seen.guest_links == {"web0": False}
    world.host.add("eth0")
    world.settle()
    assert world.seen.guest_links == {"web0": True}
    world.host.remove("eth0")
    world.settle()
    assert world.seen.guest_links == {"web0": False}


def test_bounce_tells_the_guest_of_every_new_uplink_once() -> None:
    world = guest_link("bounce")
    eth0 = world.host.add("eth0")
    for _ in range(3):
        found = world.look()
        if any(isinstance(action, SetGuestLink) for action in found.actions):
            break
        world.carry_out(found)
    (bounce,) = [action for action in found.actions if isinstance(action, SetGuestLink)]
    assert (bounce.bounce, bounce.lower) == (True, eth0.index)
    world.seen.told["web0"] = eth0.index
    assert world.look().actions == []


def test_a_policy_that_changes_back_to_keep_gives_the_guest_its_link_back() -> None:
    world = guest_link("follow")
    world.settle()
    world.wanted = msgspec.structs.replace(world.wanted, nic=nic("web0", "eth0", backend="macvtap"))
    (action,) = [action for action in world.look().actions if isinstance(action, SetGuestLink)]
    assert action.up


def test_the_guests_receive_filter_sets_the_macvlans_multicast() -> None:
    world = World(nic(multicast="guest"), qmp=QMP)
    world.host.add("eth0")
    world.settle()
    wanted = frozenset({"01:00:5e:00:00:01", "33:33:00:00:00:01"})
    world.seen.rx_filters["web0"] = RxFilter("52:54:00:6e:34:04", wanted)
    (action,) = world.look().actions
    assert isinstance(action, SetMulticast)
    assert (action.all, action.add, action.remove) == (False, wanted, frozenset())
    world.apply([action])
    world.seen.multicast[action.index] = wanted
    assert world.look().actions == []
    world.seen.rx_filters["web0"] = RxFilter("52:54:00:6e:34:04", frozenset(), all_multicast=True)
    (action,) = world.look().actions
    assert isinstance(action, SetMulticast)
    assert (action.all, action.remove) == (True, wanted)


def test_the_guests_own_mac_counts_only_without_spoof_check() -> None:
    own = "52:54:00:99:99:99"
    for check in (True, False):
        world = World(nic(multicast="guest", spoof_check=check), qmp=QMP)
        world.host.add("eth0")
        world.settle()
        world.seen.rx_filters["web0"] = RxFilter(own, frozenset(), all_multicast=True)
        assert [type(action) for action in world.look().actions] == ([] if check else [SetMac])
