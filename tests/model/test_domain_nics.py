"""NICs in a domain's metadata: the same schema as the files', errors that name domain, element and remedy."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evertap.model.domain import Domain
from evertap.model.domain_nics import nics_in, nics_of, taps_of, wants_replug
from evertap.model.errors import DefinitionError
from evertap.model.nic import Nic, parse_nic
from tests.model.domain_xmls import MAC, MAC2, RUNNING, domain_xml, nic_xml, nics_xml, tap_xml

UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"


def one(*nics: str, interfaces: tuple[str, ...] = (tap_xml(),)) -> tuple[dict[str, Nic], list[str]]:
    xml = domain_xml(*interfaces, metadata=nics_xml(*nics))
    found, problems = nics_of(Domain(UUID, "web", config_xml=xml))
    return found, [str(problem) for problem in problems]


def refused(*nics: str, interfaces: tuple[str, ...] = (tap_xml(),)) -> str:
    found, problems = one(*nics, interfaces=interfaces)
    assert found == {}
    assert len(problems) == 1, problems
    assert problems[0].startswith("domain web (configuration): nic[")
    return problems[0]


def test_every_field_means_what_it_means_in_a_file() -> None:
    attributes = {
        "backend": "tap",
        "mode": "vepa",
        "failover": "cold",
        "failback_delay": "2.5",
        "flap_hold": "0",
        "guest_link": "follow",
        "spoof_check": "no",
        "multicast": "guest",
        "mtu": "9000",
        "owner": "kvm",
        "announce": "false",
        "bring_up": "yes",
    }
    uplinks = (
        '<evertap:uplink name="eth0"/><evertap:uplink mac="02:00:00:00:0A:01" mode="private"/>'
        '<evertap:uplink path="pci-0000:3b:00.0"/><evertap:uplink bridge="br0"/>'
    )
    found, problems = one(nic_xml(MAC.upper(), uplinks, **attributes))
    assert problems == []
    raw = {
        **attributes,
        "mac": MAC,
        "uplinks": [
            "eth0",
            {"mac": "02:00:00:00:0a:01", "mode": "private"},
            {"path": "pci-0000:3b:00.0"},
            {"bridge": "br0"},
        ],
        "failback_delay": 2.5,
        "flap_hold": 0,
        "spoof_check": False,
        "mtu": 9000,
        "announce": False,
        "bring_up": True,
    }
    assert found == {"web0": parse_nic("web0", raw, "web0.toml")}


def test_queues_and_mtu_are_the_interfaces() -> None:
    inner = "<model type='virtio'/><driver name='vhost' queues='4'/><mtu size='9000'/>"
    found, problems = one(nic_xml(), interfaces=(tap_xml(inner=inner),))
    assert problems == []
    assert (found["web0"].queues, found["web0"].mtu) == (4, 9000)


def test_a_prefix_of_ones_own_or_none_will_do() -> None:
    nics = f'<nics xmlns="urn:evertap:1"><nic mac="{MAC}"><uplink name="eth0"/></nic></nics>'
    found, problems = nics_in(domain_xml(tap_xml(), metadata=nics), "f", "web")
    assert (list(found), problems) == (["web0"], [])


@pytest.mark.parametrize(
    ("nic", "interface", "message"),
    [
        (nic_xml(MAC2), tap_xml(), f"nic[{MAC2}]: no interface of the domain has this MAC address. Add an"),
        (
            nic_xml(),
            tap_xml().replace(" managed='no'", ""),
            "<target dev='web0'> is without managed='no', so libvirt would set up the tap itself. Add",
        ),
        (nic_xml(), tap_xml().replace("'no'", "'yes'"), "is without managed='no'"),
        (nic_xml(), tap_xml(name=""), "has no <target>. Add <target dev='NAME' managed='no'/>"),
        (nic_xml(), tap_xml(name="a" * 16), "found 16 bytes; allowed: 1 to 15. Rename it in the interface's"),
        (nic_xml(), tap_xml().replace("ethernet", "bridge"), "found <interface type='bridge'>; allowed"),
        (nic_xml(), tap_xml().replace("ethernet", "direct"), "run: evertap adopt web"),
        (nic_xml(uplinks=""), tap_xml(), "has no uplink; add at least one <evertap:uplink>"),
        (nic_xml(nmae="x"), tap_xml(), ".nmae: unknown attribute; allowed: mac, backend"),
        (nic_xml(failbck_delay="5"), tap_xml(), 'did you mean "failback_delay"?'),
        (nic_xml(name="web0"), tap_xml(), ".name: unknown attribute"),
        (nic_xml(vm="x"), tap_xml(), ".vm: unknown attribute"),
        (
            nic_xml(uplinks="<evertap:uplnk/>"),
            tap_xml(),
            "unknown element <uplnk>; allowed: <evertap:uplink>",
        ),
        (nic_xml(uplinks="<uplink/>"), tap_xml(), "<uplink> (not in the namespace urn:evertap:1)"),
        (nic_xml(uplinks="<evertap:uplink/>"), tap_xml(), "uplinks[0]: found none of them; allowed:"),
        (
            nic_xml(uplinks='<evertap:uplink name="eth0" bridge="br0"/>'),
            tap_xml(),
            "uplinks[0]: found name and bridge; allowed:",
        ),
        (
            nic_xml(uplinks='<evertap:uplink name="eth0" mode="bridged"/>'),
            tap_xml(),
            f'nic[{MAC}].uplinks[0].mode: found "bridged"; allowed: "bridge", "vepa"',
        ),
        (nic_xml(uplinks='<evertap:uplink name="eth0" vlan="5"/>'), tap_xml(), "uplinks[0].vlan: unknown"),
        (nic_xml(mode="bridged"), tap_xml(), f'nic[{MAC}].mode: found "bridged"; allowed: "bridge", "vepa"'),
        (nic_xml(spoof_check="maybe"), tap_xml(), '.spoof_check: found "maybe"; allowed: true or false'),
        (nic_xml(failback_delay="soon"), tap_xml(), '.failback_delay: found "soon"; allowed: a number'),
        (nic_xml(failback_delay="nan"), tap_xml(), '.failback_delay: found "nan"'),
        (nic_xml(failback_delay="-0.5"), tap_xml(), ".failback_delay: found -0.5"),
        (nic_xml(mtu="1"), tap_xml(), ".mtu: found 1; allowed: a whole number from 68"),
        (nic_xml(mtu="1" * 5000), tap_xml(), ".mtu: found"),
        (
            nic_xml(queues="4"),
            tap_xml(),
            ".queues: found 4, but the interface has 1 (<driver queues>). Remove",
        ),
        (nic_xml(mtu="1500"), tap_xml(inner="<mtu size='9000'/>"), "but the interface tells the guest 9000"),
        (nic_xml("03:00:00:00:00:01"), tap_xml("03:00:00:00:00:01"), "(not zero, not multicast)"),
        (
            nic_xml(uplinks='<evertap:uplink name="eth0"/>' * 2),
            tap_xml(),
            'uplinks[1]: found "eth0"; it stands in the list twice',
        ),
        (nic_xml().replace(f' mac="{MAC}"', ""), tap_xml(), "nic[0].mac: missing; add it"),
    ],
)
def test_an_error_names_domain_element_and_remedy(nic: str, interface: str, message: str) -> None:
    assert message in refused(nic, interfaces=(interface,))


def test_one_bad_nic_leaves_the_others_alone() -> None:
    found, problems = one(nic_xml(mode="x"), nic_xml(MAC2), interfaces=(tap_xml(), tap_xml(MAC2, "web1")))
    assert list(found) == ["web1"]
    assert len(problems) == 1


def test_of_two_nics_of_one_mac_the_first_counts() -> None:
    found, problems = one(nic_xml(), nic_xml(MAC.upper(), mode="vepa"))
    assert found["web0"].mode == "bridge"
    assert problems == [
        f"domain web (configuration): nic[{MAC}]: stands in the <metadata> twice; the first one counts. "
        "Remove one"
    ]


def test_two_nics_cannot_have_one_tap() -> None:
    found, problems = one(nic_xml(), nic_xml(MAC2), interfaces=(tap_xml(), tap_xml(MAC2)))
    assert list(found) == ["web0"]
    assert "Rename one <target dev>" in problems[0]


def test_two_interfaces_of_one_mac_are_ambiguous() -> None:
    assert "2 interfaces of the domain have" in refused(nic_xml(), interfaces=(tap_xml(), tap_xml(name="b")))


def test_strangers_beside_the_nics_are_told_of() -> None:
    metadata = nics_xml(nic_xml(), "<evertap:nick/>", replug="perhaps") + nics_xml()
    found, problems = nics_in(domain_xml(tap_xml(), metadata=metadata), "domain web (live)", "web")
    assert list(found) == ["web0"]
    assert [problem.field for problem in problems] == ["nics.replug", "nics", "nics"]
    assert 'found "perhaps"; allowed: "yes" or "no"' in str(problems[0])


def test_the_live_description_counts_while_the_domain_runs() -> None:
    live = domain_xml(tap_xml(), metadata=nics_xml(nic_xml(uplinks='<evertap:uplink name="eth1"/>')))
    config = domain_xml(tap_xml(), tap_xml(MAC2, "new0"), metadata=nics_xml(nic_xml(), nic_xml(MAC2)))
    running = Domain(UUID, "web", True, live, config)
    assert {name: str(nic.uplinks[0]) for name, nic in nics_of(running)[0].items()} == {"web0": "eth1"}
    stopped = Domain(UUID, "web", False, "", config)
    assert {name: str(nic.uplinks[0]) for name, nic in nics_of(stopped)[0].items()} == {
        "web0": "eth0",
        "new0": "eth0",
    }
    assert {name: str(nic.uplinks[0]) for name, nic in taps_of(running).items()} == {
        "web0": "eth1",
        "new0": "eth0",
    }


def test_a_domain_without_metadata_of_ours_has_no_nics() -> None:
    assert nics_of(Domain(UUID, "web", True, RUNNING, RUNNING)) == ({}, [])
    assert nics_of(Domain(UUID, "web")) == ({}, [])
    assert taps_of(Domain(UUID, "web")) == {}


@pytest.mark.parametrize(("replug", "wanted"), [("yes", True), ("no", False), ("perhaps", False)])
def test_a_domain_opts_in_for_replug(replug: str, wanted: bool) -> None:
    xml = domain_xml(metadata=nics_xml(replug=replug))
    assert wants_replug(Domain(UUID, "web", True, xml, domain_xml())) is wanted
    assert wants_replug(Domain(UUID, "web", False, "", xml)) is wanted
    assert not wants_replug(Domain(UUID, "web", True, domain_xml(), xml))
    assert not wants_replug(Domain(UUID, "web"))


BOMB = '<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><domain><name>&b;</name></domain>'


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (BOMB, "has a document type declaration"),
        ("<!DOCTYPE domain SYSTEM 'file:///etc/passwd'><domain/>", "has a document type declaration"),
        ("<domain>", "is not XML: no element found"),
        ("<domain>&x;</domain>", "is not XML: undefined entity"),
        ("<a:domain/>", "is not XML: unbound prefix"),
        ("<network/>", "found <network>; allowed: <domain>"),
        ("\ud800", "is not XML"),
        ("<domain>" + "<a>" * 100_000, "is nested more than 256 deep"),
    ],
)
def test_what_is_no_domain_is_refused(xml: str, message: str) -> None:
    found, problems = nics_of(Domain(UUID, "web", True, xml))
    assert found == {}
    assert str(problems[0]).startswith("domain web (live): ")
    assert message in str(problems[0])
    assert not wants_replug(Domain(UUID, "web", True, xml))


words = st.one_of(
    st.sampled_from(
        ["evertap:nic", "evertap:nics", "evertap:uplink", "evertap:original", "nic", "interface", "x"]
    ),
    st.text("<>&'\"evertap:nic/! []-", max_size=8),
)
attributes = st.dictionaries(
    st.one_of(st.sampled_from([*Nic.__struct_fields__, "path", "bridge", "replug"]), st.just("x:y")),
    st.one_of(
        st.sampled_from([MAC, MAC2, "yes", "1", "-1", "1e400", "eth0", "tap", ""]), st.text(max_size=6)
    ),
    max_size=4,
)


@st.composite
def elements(draw: st.DrawFn, depth: int = 3) -> str:
    tag = draw(words)
    given_ = "".join(f' {key}="{value}"' for key, value in draw(attributes).items())
    inner = "".join(draw(st.lists(elements(depth - 1), max_size=2))) if depth else draw(words)
    return f"<{tag}{given_}>{inner}</{tag}>"


@given(st.lists(elements(), max_size=3))
def test_any_metadata_gives_nics_and_definition_errors_only(inner: list[str]) -> None:
    xml = domain_xml(tap_xml(), tap_xml(MAC2, "web1"), metadata=nics_xml(*inner))
    found, problems = nics_of(Domain(UUID, "web", True, xml))
    assert all(nic.uplinks and nic.mac in (MAC, MAC2) for nic in found.values())
    assert all(str(problem).startswith("domain web (live)") for problem in problems)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    assert nics_of(Domain(UUID, "web", True, text))[0] == {}
    with contextlib.suppress(DefinitionError):
        parse = nics_in(f"<domain><metadata>{text}</metadata></domain>", "f", "web")
        assert parse[0] == {}
