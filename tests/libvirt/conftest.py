"""A libvirtd of our own for all tests of this folder, and domains that start quickly: nothing boots."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from evertap.lab.libvirtd import Libvirtd, installed
from evertap.lab.netns import Namespace
from evertap.libvirt import available

MAC = "52:54:00:00:00:01"


@pytest.fixture(scope="session")
def libvirtd(namespaces: None) -> Iterator[Libvirtd]:
    if reason := installed():
        pytest.skip(reason)
    if not available():
        pytest.skip("libvirt-python is not installed: pip install evertap[libvirt]")
    with Namespace("libvirt") as namespace, Libvirtd(namespace) as made:
        made.start()
        yield made


class Blank:
    """A domain without anything to boot."""

    def __init__(self, libvirtd: Libvirtd, name: str) -> None:
        self.name = name
        self.uuid = str(uuid.uuid4())
        self.xml = libvirtd.domain_xml(name, None, card(MAC), f"<uuid>{self.uuid}</uuid>")


def card(mac: str) -> str:
    """A network card that needs nothing of the host."""
    return f"<interface type='user'><mac address='{mac}'/><model type='virtio'/></interface>"


@pytest.fixture
def blank(libvirtd: Libvirtd) -> Iterator[Blank]:
    """Defined."""
    made = Blank(libvirtd, "blank")
    libvirtd.define(made.xml)
    yield made
    libvirtd.try_virsh("destroy", made.uuid)
    libvirtd.try_virsh("undefine", made.uuid, "--managed-save")


@pytest.fixture
def paused(libvirtd: Libvirtd, blank: Blank) -> Blank:
    """Running, before its first instruction."""
    libvirtd.virsh("start", "--paused", blank.name)
    return blank
