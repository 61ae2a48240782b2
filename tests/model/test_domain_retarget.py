"""retarget changes a NIC's uplinks in the metadata, and nothing else there."""

from __future__ import annotations

import pytest

from evertap.model.domain_nics import nics_in
from evertap.model.domain_retarget import with_uplinks
from evertap.model.errors import DefinitionError
from tests.model.domain_xmls import MAC, MAC2, domain_xml, nic_xml, nics_xml, tap_xml

METADATA = f"""\
<nics replug="yes">
  <!-- mine -->
  <nic mac="{MAC.upper()}" mode="vepa">
    <uplink name="eth0"/>
    <uplink name="eth1" mode="private"/>
    <original><![CDATA[<interface type='direct'/>]]></original>
  </nic>
  <nic mac="{MAC2}"><uplink name="eth0"/></nic>
</nics>
"""


def test_uplinks_change_and_the_rest_stays() -> None:
    changed = with_uplinks(METADATA, MAC, ["a&b", {"mac": "02:00:00:00:00:01", "mode": "vepa"}], "domain web")
    assert changed == METADATA.replace(
        '<uplink name="eth0"/>\n    <uplink name="eth1" mode="private"/>',
        '<uplink name="a&amp;b"/><uplink mac="02:00:00:00:00:01" mode="vepa"/>',
    )


def test_prefixes_are_kept() -> None:
    changed = with_uplinks(nics_xml(nic_xml()), MAC, ["eth7"], "domain web")
    nics, problems = nics_in(domain_xml(tap_xml(), metadata=changed), "domain web", "web")
    assert problems == []
    assert [str(uplink) for uplink in nics["web0"].uplinks] == ["eth7"]


def test_a_nic_that_is_not_there_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"domain web: nic\[02:.*\]: is not there"):
        with_uplinks(METADATA, "02:00:00:00:00:09", ["eth0"], "domain web")
