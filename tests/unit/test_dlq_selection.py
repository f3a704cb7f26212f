"""Which dead letters `rtfm-cli dlq` selects."""

from typing import Any

import click
import pytest
from rtfm_cli.dlq.selection import chosen_filter, given_any, letter_filter

NOTHING: dict[str, Any] = {
    "topic": None,
    "error_class": None,
    "stage": None,
    "key": None,
    "since_ms": None,
    "until_ms": None,
}


def test_a_key_stays_given_after_the_filter_was_made() -> None:
    """Otherwise an empty result would say that there are no dead letters at all."""
    given = NOTHING | {"key": "200"}
    assert letter_filter(given, (), state="open").key == b"200"
    assert given_any(given)


def test_letters_named_by_id_are_found_in_every_state() -> None:
    """Other filters find only letters in the requested state."""
    assert letter_filter(NOTHING, ("0-1",), state="open").states == {"OPEN", "REPLAYED", "DISCARDED"}
    assert letter_filter(NOTHING, (), state="open").states == {"OPEN"}


@pytest.mark.parametrize(("ids", "all_"), [((), False), (("0-1",), True)])
def test_a_change_needs_exactly_one_filter(ids: tuple[str, ...], all_: bool) -> None:
    """A missing filter or two of them change nothing."""
    with pytest.raises(click.UsageError):
        chosen_filter(NOTHING, ids, all_)
