"""A daemon in a laboratory, for each test its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from evertap.lab.trial import Trial
from evertap.lab.wires import Lab


@pytest.fixture
def trial(lab: Lab) -> Iterator[Trial]:
    with Trial(lab.host) as made:
        made.start()
        yield made
        # Whatever a test did, the daemon has not met a defect of its own.
        assert "Traceback" not in made.log, made.log
