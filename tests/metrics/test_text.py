"""The metrics' text: read by Prometheus' own parser, named by its conventions, bounded."""

from __future__ import annotations

import math
import re
import time

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from evertap import __version__
from evertap.engine.journal import Tally
from evertap.engine.ports import Distribution, Figures, NicFigures
from evertap.metrics.text import Text

NONE = Distribution((0.1, 1.0), (0, 0, 0), 0.0)


def figures(*nics: NicFigures, **changes: object) -> Figures:
    fields: dict[str, object] = {"nics": nics, "events": {}, "latencies": NONE, "outages": NONE}
    fields |= {"notifications": 1, "resyncs": 2, "failures": 3, "lost": 4, "clients": 5}
    return Figures(**fields | changes)  # type: ignore[arg-type]


def read(found: Figures) -> dict[str, Metric]:
    text = b"".join(Text().pieces(found)).decode()
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))  # each stands in one place
    return {family.name: family for family in families}


def samples(families: dict[str, Metric], name: str) -> dict[tuple[str, ...], float]:
    return {tuple(sample.labels.values()): sample.value for sample in families[name].samples}


def test_every_figure_is_there_under_its_name() -> None:
    families = read(
        figures(
            NicFigures("web0", "connected", "eth0", 7, 1.25),
            NicFigures("web1", "waiting", None, 0, 60.0),
            events={"connected": 3, "waiting": 2},
        )
    )
    assert samples(families, "evertap_nic_state") == {
        (name, state): float(state == is_in)
        for name, is_in in (("web0", "connected"), ("web1", "waiting"))
        for state in ("connected", "waiting", "disconnected", "failed")
    }
    assert samples(families, "evertap_nic_uplink_info") == {("web0", "eth0"): 1}
    assert samples(families, "evertap_nic_without_uplink_seconds") == {("web0",): 1.25, ("web1",): 60}
    assert samples(families, "evertap_nic_outages") == {("web0",): 7, ("web1",): 0}
    assert samples(families, "evertap_events") == {("connected",): 3, ("waiting",): 2}
    plain = ("kernel_notifications", "resyncs", "action_failures", "history_lost_events", "api_connections")
    assert [samples(families, f"evertap_{name}") for name in plain] == [{(): n} for n in (1, 2, 3, 4, 5)]
    assert samples(families, "evertap_build_info") == {(__version__,): 1}
    assert samples(families, "process_resident_memory_bytes")[()] > 1e6


def test_durations_are_a_histogram_as_prometheus_wants_it() -> None:
    tally = Tally((0.1, 1.0, 5.0))
    for seconds in (0.05, 0.1, 0.7, 4.0, 100.0, 200.0):
        tally.add(seconds)
    families = read(figures(latencies=tally.read(), outages=NONE))
    found = families["evertap_connect_latency_seconds"]
    assert found.type == "histogram"
    values = [(sample.name.rpartition("_")[2], sample.labels, sample.value) for sample in found.samples]
    assert values == [
        ("bucket", {"le": "0.1"}, 2),
        ("bucket", {"le": "1.0"}, 3),
        ("bucket", {"le": "5.0"}, 4),
        ("bucket", {"le": "+Inf"}, 6),
        ("count", {}, 6),
        ("sum", {}, 304.85),
    ]
    assert samples(families, "evertap_outage_seconds")[()] == 0


def test_names_and_texts_follow_the_conventions() -> None:
    """What `promtool check metrics` objects to."""
    text = b"".join(Text().pieces(figures(NicFigures("web0", "waiting", None, 0, 0.5))))
    families = read(figures(NicFigures("web0", "waiting", None, 0, 0.5)))
    for name, family in families.items():
        assert re.fullmatch("[a-z_]+", name)
        assert family.documentation
        assert not re.search("(milliseconds|minutes|_ms|kilobytes)", name)
        assert ("_total" in name) is False  # the parser takes it off counters, and nothing else has it
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
            assert math.isfinite(sample.value)
    lines = text.decode().splitlines()
    assert text.endswith(b"\n")
    assert len([line for line in lines if line.startswith("# HELP")]) == len(families)
    assert len([line for line in lines if line.startswith("# TYPE")]) == len(families)
    assert len({line.rpartition(" ")[0] for line in lines if line[0] != "#"}) == len(
        [line for line in lines if line[0] != "#"]
    )


def test_any_name_of_an_interface_is_told_unharmed() -> None:
    odd = 'e"\\\n# 0'
    families = read(
        figures(
            NicFigures("web0", "connected", odd, 0, 0.0), NicFigures("web1", "connected", "eth\udcff", 0, 0.0)
        )
    )
    assert samples(families, "evertap_nic_uplink_info") == {("web0", odd): 1, ("web1", "eth\\udcff"): 1}


def test_four_thousand_nics_are_all_there_in_pieces_that_hold_nobody_up() -> None:
    many = figures(*(NicFigures(f"vm{n}", "connected", "eth0", n, n / 8) for n in range(4000)))
    longest, began = 0.0, time.process_time()
    pieces = []
    for piece in Text().pieces(many):
        now = time.process_time()
        longest, began = max(longest, now - began), now
        pieces.append(piece)
    lines = b"".join(pieces).splitlines()
    assert lines[-4000:] == [b'evertap_nic_outages_total{nic="vm%d"} %d.0' % (n, n) for n in range(4000)]
    assert sum(line.startswith(b"evertap_nic_state{") for line in lines) == 16000
    assert len(pieces) > 4 * 100
    assert longest < 0.1  # a millisecond or two; all together is a quarter of a second
