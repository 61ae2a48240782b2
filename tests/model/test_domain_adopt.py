"""adopt keeps what type='ethernet' can have and tells the rest; release gives back exactly what was there."""

from __future__ import annotations

import contextlib
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evertap.model.domain import Domain
from evertap.model.domain_adopt import adopt, difference, release
from evertap.model.domain_direct import direct_interfaces, interface_xml
from evertap.model.domain_nics import nics_of
from evertap.model.errors import DefinitionError
from tests.model.domain_xmls import MAC, MIXED, RUNNING, domain_xml, nic_xml, nics_xml, tap_xml


def canonical(xml: str) -> str:
    return ElementTree.canonicalize(xml, strip_text=True, rewrite_prefixes=True)


def as_libvirt_keeps_it(xml: str) -> str:
    """The same XML written anew, with other white space, quotes and prefixes."""
    root = ElementTree.fromstring(xml)
    ElementTree.indent(root, " " * 3)
    return ElementTree.tostring(root, encoding="unicode")


def test_a_mixed_domain() -> None:
    told = adopt(MIXED, {"eth0", "db-1-0"})
    assert told.nics == {
        "52:54:00:00:00:02": "db-1-1",
        "52:54:00:00:00:03": "db-1-2",
        "52:54:00:00:00:04": "db-1-3",
    }
    nics, problems = nics_of(Domain("u", "db-1", config_xml=told.xml))
    assert problems == []
    assert {name: (nic.mac, nic.mode, str(nic.uplinks[0]), nic.queues) for name, nic in nics.items()} == {
        "db-1-1": ("52:54:00:00:00:02", "vepa", "eth0", 5),
        "db-1-2": ("52:54:00:00:00:03", "vepa", "eth1", 1),
        "db-1-3": ("52:54:00:00:00:04", "passthru", "enp3s0f0v1", 1),
    }
    assert (nics["db-1-1"].multicast, nics["db-1-1"].spoof_check) == ("guest", False)
    assert (nics["db-1-2"].multicast, nics["db-1-2"].spoof_check) == ("all", True)
    assert not nics["db-1-3"].spoof_check
    assert direct_interfaces(told.xml) == []
    assert release(told.xml).xml == MIXED


def test_the_device_stays_as_the_guest_knows_it() -> None:
    told = adopt(MIXED, ())
    assert interface_xml(told.xml, "52:54:00:00:00:02") == (
        """<interface type='ethernet'>
      <mac address='52:54:00:00:00:02'/>
      <target dev='db-1-0' managed='no'/>
      <bandwidth>
        <inbound average='1000' peak='5000' burst='1024'/>
      </bandwidth>
      <model type='virtio'/>
      <driver name='vhost' txmode='iothread' ioeventfd='on' event_idx='off' queues='5' rx_queue_size='256'>
        <host csum='off' gso='off'/>
        <guest csum='off'/>
      </driver>
      <link state='down'/>
      <boot order='1'/>
      <alias name='ua-front'/>
      <rom bar='on' file='/etc/fake/boot.bin'/>
      <address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x0'/>
    </interface>"""
    )


def test_what_is_lost_and_what_is_left_is_told() -> None:
    told = adopt(MIXED, ())
    assert [re.sub("[:;] libvirt.*|[(].*", "", loss) for loss in told.losses] == [
        "interface 52:54:00:00:00:02: <bandwidth>'s <outbound>",
        "interface 52:54:00:00:00:03: <virtualport type='802.1Qbg'>",
        "interface 52:54:00:00:00:04: <vlan>",
        "interface 52:54:00:00:00:04: <bandwidth>'s <outbound>",
    ]
    assert [text.partition(": where")[0] for text in told.left] == [
        "interface 52:54:00:00:00:01: type='network'"
    ]
    assert 'interface 52:54:00:00:00:02: the host\'s device is "db-1-0" instead of "lan0"' in told.changes
    assert "<bandwidth>" not in interface_xml(told.xml, "52:54:00:00:00:04")


def test_an_interface_of_a_network_is_not_the_domains_to_change() -> None:
    told = adopt(RUNNING, ())
    assert list(told.nics) == ["52:54:00:12:34:56"]
    assert 'the network "macvtaps" chose its interface' in told.left[0]
    assert release(told.xml).xml == RUNNING


def test_the_uplinks_mtu_becomes_the_nics() -> None:
    told = adopt(MIXED, (), {"eth0": 9000})
    nics, _ = nics_of(Domain("u", "db-1", config_xml=told.xml))
    assert [nic.mtu for nic in nics.values()] == [9000, 1500, 1500]


@pytest.mark.parametrize(
    ("domain", "taken", "name"),
    [
        ("web", (), "web0"),
        ("web", {"web0", "web1"}, "web2"),
        ("web1", (), "web1-0"),
        ("a very long name of a domain", (), "averylongnameo0"),
        ("a very long nam8 of 1", (), "averylongnam8-0"),
        ("x" * 40, {"x" * 14 + str(place) for place in range(10)}, "x" * 13 + "10"),
        ("ü/:%.", (), "vm0"),
        ("vnet7", (), "vm-vnet7-0"),
        ("macvtap", (), "vm-macvtap0"),
    ],
)
def test_names_are_free_and_fit_the_kernel(domain: str, taken: set[str], name: str) -> None:
    told = adopt(domain_xml(direct(), name=domain), taken)
    assert told.nics == {MAC: name}


def test_nothing_to_do_changes_nothing() -> None:
    xml = domain_xml(tap_xml(), metadata=nics_xml(nic_xml()))
    for told in (adopt(xml, ()), release(xml)):
        assert (told.xml, told.nics) == (xml, {})
    assert "it was not adopted" in release(xml).left[0]
    assert difference(xml, xml) == ""


def test_a_mac_that_has_a_nic_already_is_left() -> None:
    told = adopt(domain_xml(direct(), metadata=nics_xml(nic_xml())), ())
    assert told.nics == {}
    assert "has another NIC with this MAC address" in told.left[0]


@pytest.mark.parametrize(
    "interface",
    [
        "<interface type='direct'><source dev='eth0'/></interface>",
        f"<interface type='direct'><mac address='{MAC}'/></interface>",
        f"<interface type='direct'><mac address='{MAC}'/><source dev='eth0' mode='odd'/></interface>",
        f"<interface type='direct'><mac address='{MAC}'/><source dev='eth0'/>"
        "<driver queues='999'/></interface>",
    ],
)
def test_what_makes_no_nic_is_left_with_the_reason(interface: str) -> None:
    told = adopt(domain_xml(interface), ())
    assert told.nics == {}
    assert len(told.left) == 1


def test_the_difference_shows_just_that() -> None:
    xml = domain_xml(direct())
    lines = difference(xml, adopt(xml, ()).xml).splitlines()
    assert lines[:2] == ["--- now", "+++ next start"]
    assert not any("<memory" in line or "<os>" in line for line in lines if line[0] in "+-")


def test_changes_made_in_between_are_kept() -> None:
    told = adopt(MIXED, ())
    edited = told.xml.replace("<vcpu placement='static'>2", "<vcpu placement='static'>8").replace(
        '<evertap:nic mac="52:54:00:00:00:03" mode="vepa">\n        <evertap:uplink name="eth1"/>',
        '<evertap:nic mac="52:54:00:00:00:03" mode="private">\n        <evertap:uplink name="eth7"/>',
    )
    assert "eth7" in edited
    expected = MIXED.replace("<vcpu placement='static'>2", "<vcpu placement='static'>8")
    assert release(edited).xml == expected


def test_an_interface_removed_in_between_stays_away() -> None:
    told = adopt(MIXED, ())
    gone = interface_xml(told.xml, "52:54:00:00:00:03")
    back = release(told.xml.replace(gone, ""))
    assert back.losses == ["interface 52:54:00:00:00:03: it was removed from the domain since, and stays so"]
    assert canonical(back.xml) == canonical(MIXED.replace(interface_xml(MIXED, "52:54:00:00:00:03"), ""))


def test_what_else_is_in_the_metadata_is_kept() -> None:
    other = "52:54:00:00:00:99"
    metadata = f'<!-- mine --><app:x xmlns:app="urn:app">1</app:x>{nics_xml(nic_xml(other), replug="yes")}'
    xml = domain_xml(direct(), tap_xml(other, "mine"), metadata=metadata)
    told = adopt(xml, ())
    nics, problems = nics_of(Domain("u", "web", config_xml=told.xml))
    assert (set(nics), problems) == ({"web0", "mine"}, [])
    assert release(told.xml).xml == xml


@pytest.mark.parametrize(
    "nics",
    [
        '<nics xmlns="urn:evertap:1"></nics>',
        '<e:nics xmlns:e="urn:evertap:1" replug="yes"/>',
        '<e:nics xmlns:e="urn:evertap:1" replug="yes"><!-- mine --></e:nics>',
    ],
)
def test_nics_element_of_any_looks(nics: str) -> None:
    xml = domain_xml(direct(), metadata=nics)
    told = adopt(xml, ())
    assert list(nics_of(Domain("u", "web", config_xml=told.xml))[0]) == ["web0"]
    again = adopt(told.xml.replace("</devices>", direct("52:54:00:00:00:77") + "</devices>"), ())
    assert set(nics_of(Domain("u", "web", config_xml=again.xml))[0]) == {"web0", "web1"}
    assert canonical(interface_xml(release(again.xml).xml, MAC)) == canonical(direct())


def test_the_original_outlives_virsh_metadata() -> None:
    """`virsh metadata --edit` takes away the namespace and gives it to every element that has none."""
    told = adopt(MIXED, ())
    start, end = told.xml.index("<evertap:nics"), told.xml.index("</evertap:nics>")
    bare = told.xml[start:end].replace("evertap:nic ", "nic ").replace("evertap:uplink", "uplink")
    bare = bare.replace("evertap:original", "original").replace("</evertap:", "</")
    bare = bare.replace("<evertap:nics xmlns:evertap=", "<nics xmlns=") + "</nics>"
    again = told.xml[:start] + bare + told.xml[end + len("</evertap:nics>") :]
    assert nics_of(Domain("u", "db-1", config_xml=again)) == nics_of(Domain("u", "db-1", config_xml=told.xml))
    assert release(again).xml == MIXED


@pytest.mark.parametrize("original", ["", "<interface", "<disk/>"])
def test_a_spoilt_original_is_left(original: str) -> None:
    kept = f'<evertap:uplink name="eth0"/><evertap:original><![CDATA[{original}]]></evertap:original>'
    xml = domain_xml(tap_xml(), metadata=nics_xml(nic_xml(uplinks=kept)))
    told = release(xml)
    assert told.xml == xml
    assert "Correct the <metadata> by hand" in told.left[0]


def test_a_dtd_is_refused() -> None:
    for function in (lambda xml: adopt(xml, ()), release):
        with pytest.raises(DefinitionError, match="document type declaration"):
            function("<!DOCTYPE domain><domain/>")


def direct(mac: str = MAC, inner: str = "", attributes: str = "", source: str = "dev='eth0'") -> str:
    return f"<interface type='direct'{attributes}><mac address='{mac}'/><source {source}/>{inner}</interface>"


PARTS = (
    "<target dev='lan0'/>",
    "<model type='virtio'/>",
    "<driver name='vhost' queues='4'><host csum='off'/></driver>",
    "<virtualport type='802.1Qbh'><parameters profileid='finance'/></virtualport>",
    "<vlan><tag id='42'/></vlan>",
    "<bandwidth>\n<inbound average='1'/>\n<outbound average='1'/></bandwidth>",
    "<bandwidth><inbound average='1'/></bandwidth>",
    "<link state='down'/>",
    "<mtu size='9000'/>",
    "<tune>\n        <sndbuf>1600</sndbuf>\n      </tune>",
    "<alias name='ua-1'/>",
    "<rom bar='off'/>",
    "<boot order='1'/>",
    "<filterref filter='clean-traffic'><parameter name='IP' value='&lt;10.0.0.1&gt;'/></filterref>",
    "<address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x0'/>",
    "<teaming type='persistent'/>",
    "<coalesce><rx><frames max='7'/></rx></coalesce>",
    "<unheard-of x='type=&apos;direct&apos; &gt;'>text</unheard-of>",
    "<!-- a comment > -->",
    "<script path='a]]&gt;b'/>",
    "<![CDATA[]]]]><![CDATA[>]]>",
)


@st.composite
def interfaces(draw: st.DrawFn) -> list[str]:
    found = []
    for place in range(draw(st.integers(0, 4))):
        mac = f"52:54:00:00:01:{place:02X}"
        if draw(st.booleans()):
            parts = draw(st.lists(st.sampled_from(PARTS), max_size=6, unique_by=lambda part: part[:7]))
            space = draw(st.sampled_from(["", "\n      ", "\t"]))
            attributes = draw(st.sampled_from(["", " trustGuestRxFilters='yes'", " x=\"type='direct'\""]))
            mode = draw(st.sampled_from(["", " mode='bridge'", " mode='passthrough'", " mode='private'"]))
            dev = draw(st.sampled_from(["eth0", "a&amp;b", "&apos;"]))
            inner = "".join(space + part for part in parts)
            found.append(direct(mac, inner, attributes, f"dev='{dev}'{mode}"))
        else:
            found.append(f"<interface type='bridge'><mac address='{mac}'/><source bridge='b'/></interface>")
    return found


metadatas = st.sampled_from(
    ["", '<app:x xmlns:app="urn:app">\n      <app:y>1 &lt; 2</app:y></app:x>', nics_xml(replug="yes")]
)


@given(interfaces(), metadatas, st.sampled_from(["web", "Ünïcode", "a&lt;b"]))
def test_release_undoes_adopt(present: list[str], metadata: str, name: str) -> None:
    xml = domain_xml(*present, metadata=metadata, name=name)
    told = adopt(xml, ())
    adopted = [text for text in present if "type='direct'><" in text or "type='direct' " in text]
    assert len(told.nics) == len(adopted)
    assert direct_interfaces(told.xml) == []
    nics, problems = nics_of(Domain("u", name, config_xml=told.xml))
    assert problems == []
    assert {nic.mac: key for key, nic in nics.items()} == told.nics
    assert release(told.xml).xml == xml
    assert canonical(release(as_libvirt_keeps_it(told.xml)).xml) == canonical(re.sub("<!--.*?-->", "", xml))
    assert adopt(told.xml, ()).nics == {}


@given(st.text("<>/&;'\"=abc:![]- \n", max_size=60), st.integers(0, 4000))
def test_a_spoilt_description_is_rewritten_or_refused(spoilt: str, place: int) -> None:
    for xml in (MIXED, adopt(MIXED, ()).xml):
        for function in (lambda xml: adopt(xml, ()), release):
            with contextlib.suppress(DefinitionError):
                function(xml[:place] + spoilt + xml[place + 5 :])
