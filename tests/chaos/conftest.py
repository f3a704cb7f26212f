"""Fleets for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.fleet import Fleet


@pytest.fixture
def fleets() -> Iterator[list[Fleet]]:
    """Fleets that are closed at the end, whatever happens."""
    started: list[Fleet] = []
    yield started
    for fleet in started:
        fleet.close()
