"""Fixtures that several folders share: private namespaces, a laboratory in them, a real guest."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from evertap.lab.image import GuestImage, build
from evertap.lab.netns import Namespace, usable
from evertap.lab.wires import Lab

_REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips the test where no network namespace can be made."""
    reason = usable()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def namespace(namespaces: None) -> Iterator[Namespace]:
    with Namespace("test") as made:
        yield made


@pytest.fixture
def lab(namespaces: None) -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="session")
def guest_image(namespaces: None) -> GuestImage:
    """A real guest, kept between runs."""
    cache = os.environ.get("EVERTAP_GUEST_CACHE")
    return build(Path(cache) if cache else _REPOSITORY / ".cache" / "guest", print)
