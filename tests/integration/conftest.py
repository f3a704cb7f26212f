"""Markers and fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rtfm.contracts import Contracts, open_contracts
from rtfm.settings import Settings


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "debian: needs the Debian packages kcat, nodejs and npm; left out without them")


@pytest.fixture
def contracts(settings: Settings) -> Iterator[Contracts]:
    """The contracts of ``settings`` with their registry."""
    opened = open_contracts(settings)
    yield opened
    opened.registry.close()
