"""Whatever a file holds, the answer is a NIC or a DefinitionError."""

from __future__ import annotations

import contextlib
from datetime import date, datetime, time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from evertap.config.text import parse, with_uplinks
from evertap.model.errors import DefinitionError
from evertap.model.nic import Nic, check_together, parse_nic, parse_uplink
from evertap.model.together import Together

FIELDS = [*Nic.__struct_fields__, "name", "path", "bridge", "qmp", ""]
scalars = st.one_of(
    st.text(),
    st.sampled_from(["eth0", "52:54:00:00:00:01", "02:00:00:00:00:02", "br0", "passthru", "tap", "all"]),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.booleans(),
    st.builds(date, st.just(2026), st.just(1), st.just(1)),
    st.just(datetime(2026, 1, 1)),
    st.just(time(1, 2)),
)
keys = st.one_of(st.sampled_from(FIELDS), st.text())
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3))
)
tables = st.dictionaries(keys, values, max_size=6)
likely = st.fixed_dictionaries(
    {"mac": st.one_of(st.just("52:54:00:00:00:01"), values), "uplinks": st.one_of(st.just(["eth0"]), values)},
    optional={field: values for field in FIELDS if field not in ("mac", "uplinks")},
)


@given(st.one_of(st.just("web0"), st.text(st.characters(), max_size=20)), st.one_of(tables, likely))
def test_any_table_is_a_nic_or_refused(name: str, raw: dict[str, Any]) -> None:
    try:
        nic = parse_nic(name, raw, "f.toml")
    except DefinitionError:
        return
    assert nic.name == name
    assert nic.uplinks


@given(st.one_of(st.binary(), st.text().map(str.encode)))
def test_any_bytes_are_a_nic_or_refused(data: bytes) -> None:
    with contextlib.suppress(DefinitionError):
        parse("web0", data, "f.toml")


@given(
    st.lists(st.one_of(st.text(), st.sampled_from(["eth1", "mac=02:00:00:00:00:02,mode=vepa", "=", "a=b"])))
)
def test_any_uplinks_of_the_command_line_are_a_nic_or_refused(texts: list[str]) -> None:
    data = b'mac = "52:54:00:00:00:01"\nuplinks = ["eth0"] # mine\n'
    uplinks = [parse_uplink(text) for text in texts]
    try:
        nic = parse("web0", with_uplinks(data, uplinks), "f.toml")
    except DefinitionError:
        return
    assert len(nic.uplinks) == len(texts)


names = st.sampled_from(["a", "b", "c", "d"])
uplink = st.one_of(
    names,
    st.sampled_from(["eth0", "eth1"]),
    st.fixed_dictionaries({"name": st.just("eth0"), "mode": st.just("passthru")}),
    st.fixed_dictionaries({"bridge": names}),
)


@given(st.lists(st.tuples(names, st.integers(1, 3), st.lists(uplink, min_size=1, max_size=2)), max_size=5))
def test_the_index_refuses_exactly_what_the_check_of_all_refuses(
    wanted: list[tuple[str, int, list[Any]]],
) -> None:
    together = Together()
    plain: dict[str, Nic] = {}
    for name, number, uplinks in wanted:
        if name in plain:
            continue
        try:
            nic = parse_nic(name, {"mac": f"52:54:00:00:00:0{number}", "uplinks": uplinks}, "f")
        except DefinitionError:
            continue
        refused = False
        try:
            check_together(nic, plain, "f")
            plain[name] = nic
        except DefinitionError:
            refused = True
        try:
            together.add(nic, "f")
        except DefinitionError:
            assert refused
        else:
            assert not refused
    assert together.nics == plain
