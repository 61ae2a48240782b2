"""A trial's daemon, told by its API: a command takes a tenth of a second to start."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from evertap.api.client import Client
from evertap.lab.trial import Trial


def ask(trial: Trial, question: Callable[[Client], Awaitable[object]]) -> None:
    """Whatever the answer is."""
    trial.ask(question)


def define(trial: Trial, **texts: str) -> None:
    """Define NICs by name."""
    trial.ask(lambda client: client.define(texts))


def retarget(trial: Trial, *uplinks: str) -> None:
    """Give web0 other uplinks."""
    trial.ask(lambda client: client.retarget("web0", uplinks))
