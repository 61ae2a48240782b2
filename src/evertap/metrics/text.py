"""The metrics as text for Prometheus, in pieces that each take a millisecond at most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from evertap import __version__
from evertap.engine.ports import Distribution, Figures, NicFigures

STATES: Final = ("connected", "waiting", "disconnected", "failed")

_SLICE: Final = 25
"""NICs in a piece."""


class _Given:
    """A collector of metrics that are there already."""

    def __init__(self, *metrics: Metric) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
        return self._metrics


class Text:
    """Makes the text. The parts that are of NICs come a slice of NICs at a time."""

    def __init__(self) -> None:
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)

    def pieces(self, figures: Figures) -> Iterator[bytes]:
        """The text, to be joined."""
        yield generate_latest(_Given(*_of_daemon(figures)))
        yield generate_latest(self._process)
        for family in _OF_NICS:
            yield generate_latest(_Given(family(())))  # its head
            for start in range(0, len(figures.nics), _SLICE):
                yield _without_head(generate_latest(_Given(family(figures.nics[start : start + _SLICE]))))


def _without_head(text: bytes) -> bytes:
    """The samples without their HELP and TYPE, which may stand there only once."""
    return b"".join(line for line in text.splitlines(keepends=True) if not line.startswith(b"#"))


def _of_daemon(figures: Figures) -> Iterator[Metric]:
    yield InfoMetricFamily("evertap_build", "The daemon.", {"version": __version__})
    events = CounterMetricFamily("evertap_events", "Events of NICs, by kind.", labels=["event"])
    for event, number in sorted(figures.events.items()):
        events.add_metric([event], number)
    yield events
    yield _histogram(
        "evertap_connect_latency_seconds",
        "From the kernel's notification to the NIC being connected again or by another uplink.",
        figures.latencies,
    )
    yield _histogram(
        "evertap_outage_seconds",
        "Times without an uplink, by their length, when they end.",
        figures.outages,
    )
    counters = {
        "kernel_notifications": ("Notifications of the kernel that were read.", figures.notifications),
        "resyncs": ("Times that the kernel dropped notifications and all was read anew.", figures.resyncs),
        "interrupted_readings": (
            "Readings of the interfaces that changes interrupted, and that were repeated.",
            figures.interrupted,
        ),
        "action_failures": ("Steps that the kernel or QEMU refused.", figures.failures),
        "history_lost_events": ("Events that the history could not keep.", figures.lost),
    }
    for name, (what, number) in counters.items():
        yield CounterMetricFamily(f"evertap_{name}", what, value=number)
    yield GaugeMetricFamily("evertap_api_connections", "Connections to the local API.", value=figures.clients)


def _histogram(name: str, what: str, found: Distribution) -> Metric:
    family = HistogramMetricFamily(name, what)
    bounds = [*(str(float(bound)) for bound in found.bounds), "+Inf"]
    family.add_metric([], list(zip(bounds, accumulate(found.counts), strict=True)), found.sum)
    return family


def _state(nics: Sequence[NicFigures]) -> Metric:
    family = GaugeMetricFamily(
        "evertap_nic_state", "1 for the state that the NIC is in.", labels=["nic", "state"]
    )
    for nic in nics:
        for state in STATES:
            family.add_metric([_label(nic.name), state], nic.state == state)
    return family


def _uplink(nics: Sequence[NicFigures]) -> Metric:
    what = "The uplink that the NIC is connected to."
    family = GaugeMetricFamily("evertap_nic_uplink_info", what, labels=["nic", "uplink"])
    for nic in nics:
        if nic.uplink is not None:
            family.add_metric([_label(nic.name), _label(nic.uplink)], 1)
    return family


def _without(nics: Sequence[NicFigures]) -> Metric:
    what = "Seconds that the NIC was without an uplink, since the daemon started."
    family = CounterMetricFamily("evertap_nic_without_uplink_seconds", what, labels=["nic"])
    for nic in nics:
        family.add_metric([_label(nic.name)], nic.without)
    return family


def _outages(nics: Sequence[NicFigures]) -> Metric:
    what = "How often the NIC lost its uplink, since the daemon started."
    family = CounterMetricFamily("evertap_nic_outages", what, labels=["nic"])
    for nic in nics:
        family.add_metric([_label(nic.name)], nic.outages)
    return family


_OF_NICS: Final[Sequence[Callable[[Sequence[NicFigures]], Metric]]] = (_state, _uplink, _without, _outages)


def _label(text: str) -> str:
    """Interfaces may have names that are not text."""
    return text.encode("utf-8", "backslashreplace").decode()
