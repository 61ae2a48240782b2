"""What the metrics tell of, read at the moment of asking: the loop itself only counts."""

from __future__ import annotations

from collections.abc import Sequence

from evertap.engine.journal import Journal
from evertap.engine.ports import Figures, NicFigures
from evertap.engine.reconciler import Reconciler


def figures(reconciler: Reconciler, journal: Journal, refused: Sequence[str], clients: int) -> Figures:
    """The figures now.

    `refused`: NICs whose only definition was refused; `clients`: connections to the API.
    """
    nics = [
        NicFigures(name, record.state or "waiting", record.uplink, record.outages, journal.without(name))
        for name, record in reconciler.nics.items()
        if not record.wanted.removed
    ]
    return Figures(
        nics=[*nics, *(NicFigures(name, "failed", None, 0, 0.0) for name in refused)],
        events=journal.counted,
        latencies=journal.latencies.read(),
        outages=journal.outages.read(),
        notifications=reconciler.notifications,
        resyncs=reconciler.resyncs,
        failures=reconciler.failures,
        lost=journal.chronicle.lost if journal.chronicle else 0,
        clients=clients,
        interrupted=reconciler.interrupted,
    )
