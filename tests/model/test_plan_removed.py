"""What is planned for a NIC whose definition was removed, perhaps while no daemon ran."""

from __future__ import annotations

from evertap.model.actions import RemoveMacvlan, Unplug
from evertap.model.choice import Wanted
from evertap.model.links import MARK, Link
from evertap.model.nic import Nic
from evertap.model.observed import Observed
from evertap.model.plan import plan
from evertap.model.plan_macvtap import device_alias, qmp_of
from evertap.model.vmm import Vmm, uplink_netdev, uplink_port

QMP = "/run/vm/web 0.qmp"
MACVTAP = Link(index=7, name="ev7", lower=2, kind="macvtap", mode="bridge", alias=device_alias("web0", QMP))


def test_a_macvtap_remembers_whose_it_is_and_which_qemu_has_it() -> None:
    assert MACVTAP.owner == "web0"
    assert qmp_of([MACVTAP]) == QMP
    assert device_alias("web0", "libvirt:4711") == device_alias("web0", "") == f"{MARK}web0"
    assert qmp_of([Link(index=8, name="ev8", alias=f"{MARK}web0")]) == ""


def test_a_qemu_is_told_before_its_macvtap_goes() -> None:
    seen = Observed()
    seen.fold_all([MACVTAP], 0)
    removed = Wanted(Nic(name="web0", mac="", uplinks=()), removed=True, qmp=QMP)
    assert plan(removed, seen, 0).actions == []  # it was not looked at yet
    parts = frozenset({uplink_netdev("web0", 7), uplink_port("web0", 7)})
    seen.vmms[QMP] = Vmm(running=True, parts=parts)
    first, second = plan(removed, seen, 0).actions
    assert first == Unplug(nic="web0", qmp=QMP, index=7)
    assert isinstance(second, RemoveMacvlan)
    for without in (Vmm(gone=True), Vmm(reason="it hangs")):
        seen.vmms[QMP] = without
        assert [type(action) for action in plan(removed, seen, 0).actions] == [RemoveMacvlan]
