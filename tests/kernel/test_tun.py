"""Taps are made, kept, opened and deleted as a VMM needs them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from evertap.kernel import codec, tun
from tests.kernel.conftest import Lab

TAP = 500_000


def names(lab: Lab) -> set[str]:
    return {link.name for link in lab.rtnetlink.dump_links()}


def test_tap_that_is_not_persistent_dies_with_its_descriptor(lab: Lab) -> None:
    fd = tun.create_tap("web0", index=TAP)
    assert (lab.link("web0").index, lab.link("web0").kind) == (TAP, "tun")
    os.close(fd)
    assert "web0" not in names(lab)


def test_persistent_tap_outlives_it_and_can_be_deleted(lab: Lab) -> None:
    fd = tun.create_tap("web0")
    tun.persist(fd)
    os.close(fd)
    assert "web0" in names(lab)
    tun.delete_tap("web0")
    assert "web0" not in names(lab)


def test_tap_has_no_carrier_until_a_vmm_holds_it(lab: Lab) -> None:
    fd = tun.create_tap("web0", index=TAP)
    tun.persist(fd)
    lab.do(codec.set_link(TAP, up=True))
    assert lab.link("web0").carrier
    os.close(fd)
    assert not lab.link("web0").carrier
    fd = tun.open_tap("web0")
    assert lab.link("web0").carrier
    os.close(fd)


def test_taken_name_is_not_taken_over(lab: Lab) -> None:
    fd = tun.create_tap("web0")
    with pytest.raises(FileExistsError, match='an interface named "web0"'):
        tun.create_tap("web0")
    os.close(fd)
    lab.ip("link add v0 type veth peer name v1")
    with pytest.raises(FileExistsError):
        tun.create_tap("v0")


def test_taken_index_is_told_from_a_taken_name(lab: Lab) -> None:
    with pytest.raises(OSError, match="interface index 1 is taken") as caught:
        tun.create_tap("web0", index=1)
    assert caught.value.errno == errno.EBUSY


@pytest.mark.parametrize("name", ["", "a" * 16, "a/b", ".."])
def test_impossible_names_are_refused(lab: Lab, name: str) -> None:
    with pytest.raises(OSError) as caught:
        tun.create_tap(name)
    assert caught.value.errno == errno.EINVAL


def test_single_queue_is_held_by_one_only(lab: Lab) -> None:
    fd = tun.create_tap("web0")
    with pytest.raises(OSError) as caught:
        tun.open_tap("web0")
    assert caught.value.errno == errno.EBUSY
    os.close(fd)


def test_every_queue_can_be_opened(lab: Lab) -> None:
    first = tun.create_tap("web0", queues=2, index=TAP)
    second = tun.open_tap("web0", queues=2)
    queues = Path("/sys/class/net/web0/queues")
    assert lab.link("web0").index == TAP
    os.close(second)
    os.close(first)
    assert not queues.exists()


def test_tap_is_opened_with_the_kind_of_queues_it_was_made_with(lab: Lab) -> None:
    fd = tun.create_tap("web0", queues=2)
    tun.persist(fd)
    os.close(fd)
    with pytest.raises(OSError) as caught:
        tun.open_tap("web0")
    assert caught.value.errno == errno.EINVAL
    tun.delete_tap("web0", queues=2)
    assert "web0" not in names(lab)


def test_opening_a_missing_tap_does_not_make_it(lab: Lab) -> None:
    with pytest.raises(OSError, match="no interface") as caught:
        tun.open_tap("web0")
    assert caught.value.errno == errno.ENODEV
    assert "web0" not in names(lab)


@pytest.mark.parametrize(("uid", "error"), [(65534, 0), (65533, errno.EPERM)])
def test_tap_belongs_to_its_owner(lab: Lab, uid: int, error: int) -> None:
    fd = tun.create_tap("web0", index=TAP)
    tun.persist(fd)
    tun.set_owner(fd, 65534)
    os.close(fd)
    child = os.fork()
    if child == 0:
        device = tun._open_device()  # before, for on some machines it is root's; the kernel asks at TUNSETIFF
        os.setuid(uid)
        try:
            tun._set_interface(device, "web0", 1, 0)
        except OSError as refusal:
            os._exit(refusal.errno or 255)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == error
    tun.delete_tap("web0")


def test_descriptor_is_not_inherited(lab: Lab) -> None:
    fd = tun.create_tap("web0")
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_held_tap_can_be_deleted_as_a_link(lab: Lab) -> None:
    fd = tun.create_tap("web0", index=TAP)
    lab.do(codec.del_link(TAP))
    assert "web0" not in names(lab)
    os.close(fd)
