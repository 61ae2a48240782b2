"""What reads bytes from outside, each as a function of bytes, with inputs to start from.

A function returns or raises nothing, whatever it is given: it takes the errors that are the project's own.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from evertap.config.text import parse, with_uplinks
from evertap.kernel import codec
from evertap.kernel.codec import NetlinkFormatError
from evertap.model import domain_retarget
from evertap.model.arguments import qemu_arguments
from evertap.model.domain import Domain
from evertap.model.domain_adopt import adopt, difference, release
from evertap.model.domain_direct import direct_interfaces
from evertap.model.domain_interface import metadata_xml, nic_interface_xml
from evertap.model.domain_nics import nics_in, refused_nic, wants_replug
from evertap.model.domain_parse import parse_domain, tap_names
from evertap.model.domain_replug import device_xml
from evertap.model.errors import DefinitionError
from evertap.model.nic import check_together, parse_nic, parse_uplink
from evertap.model.observed import Observed
from tests.fuzz.api import Api
from tests.fuzz.qmp import Qmp, qmp_seeds
from tests.model.domain_xmls import MAC, MIXED, RUNNING, domain_xml, nic_xml, nics_xml, tap_xml


class Target(NamedTuple):
    """`words` are what a mutation may put in; `inputs` is how many of them make a long run."""

    run: Callable[[bytes], None]
    seeds: list[bytes]
    words: list[bytes]
    inputs: int = 100_000


# Definitions


def definitions(data: bytes) -> None:
    """A file in nics.d, and what is done with a good one."""
    with suppress(DefinitionError):
        nic = parse("web0", data, "web0.toml")
        assert nic.uplinks
        qemu_arguments(nic, vhost=True)
        other = parse_nic(
            "db0", {"mac": "52:54:00:00:00:02", "uplinks": ["eth0", {"bridge": "web0"}]}, "db0.toml"
        )
        with suppress(DefinitionError):
            check_together(nic, {"db0": other}, "web0.toml")
        wanted = [parse_uplink("eth7"), parse_uplink("mac=02:00:00:00:00:01,mode=vepa")]
        changed = parse("web0", with_uplinks(data, wanted), "web0.toml")
        assert [str(spec) for spec in changed.uplinks] == ["eth7", "mac=02:00:00:00:00:01"]


_DEFINITIONS = [
    b"""mac = "52:54:00:12:34:56"
uplinks = ["eth0", "eth1"]   # mine
""",
    b"""mac = "52:54:00:12:34:56"
uplinks = ["eth0", { mac = "02:00:00:00:0a:01" }, { name = "enx*", mode = "private" }, { bridge = "br0" },
    { path = "pci-0000:3b:00.0" }]
backend = "macvtap"
[vm]
qmp = "/run/vm/web0.qmp"
""",
    b"""mac = "52:54:00:12:34:56"
mode = "vepa"
failover = "cold"
failback_delay = 2.5
flap_hold = 0
guest_link = "bounce"
spoof_check = false
multicast = "guest"
queues = 4
mtu = 9000
owner = "nobody"
announce = false
bring_up = false
[[uplinks]]
name = "eth0"
[[uplinks]]
name = "eth1"
""",
    b"""uplinks = ["eth0"]
vm.domain = "web"
mac = "52:54:00:12:34:56"
""",
    b"""\"mac\" = '52:54:00:12:34:56'
uplinks = [
  \"\"\"eth0\"\"\", # one
]
""",
]
_DEFINITIONS += [
    _DEFINITIONS[0] + b"x = " + b"[" * 2000,
    _DEFINITIONS[0] + b"mtu = " + b"9" * 5000,
    b"a." * 2000 + b"b = 1\n" + _DEFINITIONS[0],
    b"\xef\xbb\xbf" + _DEFINITIONS[0] + b"\xff",
]
_TOML_WORDS = [
    b"=",
    b"[",
    b"]",
    b"[[",
    b"{",
    b"}",
    b'"',
    b"'''",
    b'"""',
    b".",
    b",",
    b"\n",
    b"#",
    b"inf",
    b"nan",
]
_TOML_WORDS += [
    b"9" * 5000,
    b"1e999",
    b"-0",
    b"0x",
    b"1979-05-27T07:32:00Z",
    b"\\u0000",
    b"\\ud800",
    b"[" * 400,
]
_TOML_WORDS += [
    b"mac",
    b"uplinks",
    b"vm",
    b"qmp",
    b"mtu",
    b"name",
    b"mode",
    b"true",
    b"uplinks.x = 1\n",
    b"\xff",
]

# The XML of libvirt's domains


def metadata(data: bytes) -> None:
    """A domain's description, and a <metadata> alone."""
    text = data.decode("utf-8", "surrogateescape")
    nics, problems = nics_in(text, "domain", "vm1")
    for nic in nics.values():
        nic_interface_xml(nic)
    for problem in problems:
        with suppress(DefinitionError):
            refused_nic(text, problem)
    for read in (parse_domain, tap_names, metadata_xml):
        with suppress(DefinitionError):
            read(text)
    with suppress(DefinitionError):
        for interface in direct_interfaces(text):
            device_xml(interface)
    for wanted in (["eth7"], [{"bridge": "b'r\"&<0"}]):
        with suppress(DefinitionError):
            domain_retarget.with_uplinks(text, MAC, wanted, "domain")
    for rewrite in (lambda xml: adopt(xml, {"eth0"}), release):
        with suppress(DefinitionError):
            done = rewrite(text)
            difference(text, done.xml)
            if done.nics:
                nics_in(done.xml, "domain", "vm1")
    wants_replug(Domain(uuid="", name="vm1", running=True, live_xml=text))


_OURS = domain_xml(tap_xml(), metadata=nics_xml(nic_xml(mtu="9000", queues="1"), replug="yes"))
_METADATA_ALONE = (
    f"<nics><nic mac='{MAC}'><uplink name='eth0'/><uplink mac='02:00:00:00:00:01'/></nic></nics>"
)
_XMLS = [RUNNING, MIXED, _OURS, adopt(RUNNING, set()).xml, adopt(MIXED, set()).xml, _METADATA_ALONE]
_XMLS += ["<a>" * 3000, _OURS.replace("9000", "9" * 5000), _OURS.replace("web", "\udcff"), "", "\0"]
_XML_WORDS = [
    "<",
    ">",
    "/>",
    "</",
    "&",
    "&lt;",
    "&#0;",
    "&#xd800;",
    "&x;",
    "<![CDATA[",
    "]]>",
    "<!--",
    "-->",
    "<?",
]
_XML_WORDS += [
    "<!DOCTYPE x [<!ENTITY e 'e'>]>",
    "xmlns:evertap='urn:evertap:1'",
    "xmlns=''",
    "xmlns='urn:evertap:1'",
]
_XML_WORDS += [
    "<evertap:nic>",
    "<evertap:uplink/>",
    "<evertap:original>",
    "mac='",
    "\0",
    "\u2028",
    "\ufeff",
    "<a>" * 300,
]
_XML_WORDS += [
    "<?xml version='1.0' encoding='UTF-16'?>",
    "managed='no'",
    "type='direct'",
    "queues='9999999999'",
]

# Netlink


def netlink(data: bytes) -> None:
    """A datagram of the kernel: links, filters, answers."""
    seen = Observed()
    with suppress(NetlinkFormatError):
        for kind, _, _, _, offset, length in codec.split(data):
            for decode in (codec.decode_filter, codec.decode_error):
                with suppress(NetlinkFormatError):
                    decode(data, offset, length)
            event = codec.decode_link(data, offset, length)
            if event is not None:
                seen.fold(event, float(kind))
    seen.fold_all([], 1.0)


def _attribute(number: int, *payloads: bytes) -> bytes:
    payload = b"".join(payloads)
    return struct.pack("=HH", 4 + len(payload), number) + payload + bytes(-len(payload) % 4)


def _message(kind: int, body: bytes, flags: int = 0) -> bytes:
    return codec.HEADER.pack(16 + len(body), kind, flags, 1, 0) + body + bytes(-len(body) % 4)


def _link(*attributes: bytes, kind: int = 16, family: int = 0, index: int = 7) -> bytes:
    return _message(kind, struct.pack("=BxHiII", family, 1, index, 0x1003, 0) + b"".join(attributes))


_INFO = _attribute(18, _attribute(1, b"macvlan\0"), _attribute(2, _attribute(1, struct.pack("=I", 4))))
_WHOLE = _link(
    _attribute(3, b"ev1048577\0"),
    _attribute(1, bytes.fromhex("525400123456")),
    _attribute(4, struct.pack("=I", 1500)),
    _attribute(5, struct.pack("=I", 3)),
    _attribute(10, struct.pack("=I", 9)),
    _attribute(20, b"evertap:web0"),
    _attribute(37, struct.pack("=i", -1)),
    _attribute(47, struct.pack("=I", 1)),
    _attribute(52, _attribute(53, b"lan0\0"), _attribute(53, b"\xff\xfe\0")),
    _attribute(56, b"0000:3b:00.0\0"),
    _attribute(57, b"pci\0"),
    _INFO,
)
_FILTER = _attribute(1, b"bpf\0") + _attribute(2, _attribute(7, b"evertap_tap\0"), _attribute(11, bytes(4)))
_NETLINK = [
    _WHOLE,
    _WHOLE + _link(_attribute(3, b"eth0\0"), index=3) + _link(kind=17),
    _link(_attribute(3, b"eth0\0"), family=7),
    _link(_attribute(3, b"wlan0\0"), _attribute(11, b"xxxx")),
    _message(44, struct.pack("=BxxxiIII", 0, 7, 1, 0xFFFFFFF2, 1 << 16) + _FILTER),
    _message(2, struct.pack("=i", -19) + _WHOLE[:16] + _attribute(1, b"no such device\0"), 0x300),
    _message(3, struct.pack("=i", 0) + _attribute(1, b"done\0"), 0x202),
]
_NUMBERS = [
    b"\0\0",
    b"\xff\xff",
    b"\4\0",
    b"\3\0",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x10\0",
    b"\x12\0",
    b"\x12\x80",
]

# QEMU's monitor, and the local API

_JSON_WORDS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b":",
    b",",
    b"null",
    b"true",
    b"1e999",
    b"-0",
    b"9" * 5000,
    b"NaN",
]
_JSON_WORDS += [
    b"[" * 2000,
    b'{"a":' * 500,
    b"\\ud800",
    b"\\u0000",
    b"\xff",
    b"\xc0\x80",
    b"\0",
    b"\r\n",
    b'"id":',
]
_QMP_WORDS = [
    b'"return"',
    b'"error"',
    b'"event"',
    b'"data"',
    b'"class"',
    b'"desc"',
    b'"timestamp"',
    b'"device"',
]
_QMP_WORDS += [b'"evertap-web0"', b'"QMP"', b"\n{}\n", b"$ID", b'{"return":{},"id":"$ID"}\n']


def _call(method: str, more: bool = False, **parameters: object) -> bytes:
    return json.dumps({"method": method, "parameters": parameters, "more": more}).encode() + b"\0"


_CALLS = [
    _call("org.evertap.Nics"),
    _call("org.evertap.Nic", name="web0") + _call("org.evertap.Nic", name="\ud800"),
    _call("org.evertap.Define", texts={"web0": "mac = 1", "x": "bad"}),
    _call("org.evertap.Undefine", names=["web0", "none"]) + _call("org.evertap.Plan"),
    _call("org.evertap.Retarget", name="web0", uplinks=["eth0", "mac=x,mode=y"], live=True),
    _call("org.evertap.Arguments", names=["web0"], descriptors={"web0": [3]}, vhost=True),
    _call("org.evertap.OpenTap", name="web0") + _call("org.evertap.Uplinks"),
    _call("org.evertap.Wait", name="web0", state="connected", timeout=0.0),
    _call("org.evertap.Attach", name="web0", qmp="/x"),
    _call("org.evertap.Adopt", domain="vm1", dry_run=True, live=False) + _call("org.evertap.Domains"),
    _call("org.evertap.PrepareDomain", xml="<domain/>"),
    _call("org.evertap.Follow", more=True, name=None),
    _call("org.evertap.History", name=None) + _call("org.evertap.NicHistory", name="web0", limit=3),
    _call("org.varlink.service.GetInfo"),
    _call("org.varlink.service.GetInterfaceDescription", interface="org.evertap"),
]
_CALLS += [
    b'{"method": "org.evertap.Nic", "parameters": {"name": ' + b"[" * 3000 + b"\0",
    b'{"method": "org.evertap.Wait", "parameters": {"timeout": ' + b"9" * 5000 + b"}}\0",
    b'{"method": "org.evertap.Nics", "x": "\xff"}\0',
    _call("org.evertap.Nics") * 3 + b"\0" * 3,
]
_API_WORDS = [b'"method"', b'"parameters"', b'"more"', b'"oneway"', b'"upgrade"', b'"org.evertap."', b"\0\0"]
_API_WORDS += [b'"name"', b'"org.varlink.service.GetInfo"', b'"oneway": true, "more": true']

_qmp = Qmp()
_api = Api()

TARGETS = {
    "definitions": Target(definitions, _DEFINITIONS, _TOML_WORDS),
    "metadata": Target(
        metadata,
        [xml.encode("utf-8", "surrogateescape") for xml in _XMLS],
        [word.encode() for word in _XML_WORDS],
    ),
    "netlink": Target(netlink, _NETLINK, _NUMBERS),
    "qmp": Target(_qmp.answers, qmp_seeds(), _JSON_WORDS + _QMP_WORDS),
    "qmp sessions": Target(_qmp.sessions, qmp_seeds(), _JSON_WORDS + _QMP_WORDS, 10_000),
    "api": Target(_api.run, _CALLS, _JSON_WORDS + _API_WORDS),
}


def close() -> None:
    """Give back what the targets hold."""
    _api.close()
    _qmp.close()
