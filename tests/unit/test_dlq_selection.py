"""The dead letters that `rtfm-cli dlq` selects."""

from typing import Any

import click
import pytest
from rtfm_cli.dlq.selection import build_change_filter, build_filter, has_filter

NOTHING: dict[str, Any] = {
    "topic": None,
    "error_class": None,
    "stage": None,
    "key": None,
    "since_ms": None,
    "until_ms": None,
}


def test_a_key_stays_given_after_the_filter_was_made() -> None:
    """Building a filter leaves the options unchanged, so that a key still counts as given afterwards.

    Otherwise the command would say for an empty result that there are no dead letters at all.
    """
    given = NOTHING | {"key": "200"}
    assert build_filter(given, (), state="open").key == b"200"
    assert has_filter(given)


def test_letters_named_by_id_are_found_in_every_state() -> None:
    """A filter by id finds dead letters in every state, and other filters only those in the requested state."""
    assert build_filter(NOTHING, ("0-1",), state="open").states == {"OPEN", "REPLAYED", "DISCARDED"}
    assert build_filter(NOTHING, (), state="open").states == {"OPEN"}


@pytest.mark.parametrize(("ids", "all_"), [((), False), (("0-1",), True)])
def test_a_change_needs_exactly_one_filter(ids: tuple[str, ...], all_: bool) -> None:
    """A change needs either ids or --all, but not both."""
    with pytest.raises(click.UsageError):
        build_change_filter(NOTHING, ids, all_)
