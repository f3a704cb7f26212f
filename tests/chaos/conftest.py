"""Fleets for the tests in this folder. The report of a failed test contains the logs of its fleets."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.chaos.fleet import Fleet

LOG_CHARACTERS = 20_000
"""A report contains at most this many characters from the end of each fleet's log."""

_FLEETS = pytest.StashKey[list[Fleet]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes over a minute, runs only with -m long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked long, unless -m selects tests."""
    if not config.option.markexpr:
        items[:] = [item for item in items if item.get_closest_marker("long") is None]


@pytest.fixture
def fleets(request: pytest.FixtureRequest) -> Iterator[list[Fleet]]:
    """A list to which a test adds its fleets. When the test ends, the fleets are closed, even if the test failed."""
    started = request.node.stash[_FLEETS] = list[Fleet]()
    yield started
    for fleet in started:
        fleet.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add each fleet's log and the state of its workers to the report of a failed test."""
    report = yield
    if report.failed and report.when == "call":
        started = item.stash.get(_FLEETS, list[Fleet]())
        for number, fleet in enumerate(started, start=1):
            log = fleet.log.read_text(encoding="utf-8", errors="replace")[-LOG_CHARACTERS:]
            report.sections.append((f"fleet {number}: {fleet.status}", log))
    return report
