"""The limits on dead letters, and how the tally is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtfm.errors import ConfigError
from rtfm.streams.dead_letters.limits import MIN_SHARE_RECORDS, TALLY_RECORDS, DeadLetterPolicy, TallyState
from rtfm.streams.position import PartitionState

LIMIT = DeadLetterPolicy(max_consecutive=100, max_share=0.5)


def tally(*runs: int) -> TallyState:
    """Return a tally of ``runs``: numbers of good records and dead letters in turn, good records first."""
    made = TallyState()
    for place, count in enumerate(runs):
        if place % 2:
            for _ in range(count):
                made.count_dead_letter()
        else:
            made.count_handled(count)
    return made


def test_a_hundred_dead_letters_in_a_row_are_too_many() -> None:
    """The hundredth dead letter in a row reaches the limit."""
    assert LIMIT.limit_reason(tally(0, 99)) is None
    assert LIMIT.limit_reason(tally(0, 100)) is not None
    assert LIMIT.limit_reason(tally(50, 60, 1, 60)) is None


def test_more_than_half_of_the_last_thousand_are_too_many_once_two_hundred_were_seen() -> None:
    """If more than half of the last thousand records are dead letters, the limit is reached.

    With fewer than two hundred records, no share reaches the limit. Results from before the last thousand are dropped.
    """
    pattern = [0, 2, 1] + [2, 1] * 65  # two of three records are dead letters, and never many in a row
    assert LIMIT.limit_reason(tally(*pattern)) is None
    assert LIMIT.limit_reason(tally(*pattern, 3)) is not None
    assert tally(*pattern, 3).seen >= MIN_SHARE_RECORDS
    half = [1, 1] * 600
    assert LIMIT.limit_reason(tally(*half)) is None
    assert LIMIT.limit_reason(tally(*pattern, 3, 0, TALLY_RECORDS)) is not None
    assert LIMIT.limit_reason(tally(*([99, 1] * 10), 0, *([1, 1] * 500))) is None
    assert LIMIT.limit_reason(tally(0, 600, TALLY_RECORDS)) is None


@pytest.mark.parametrize(("before", "after"), [((0, 3, 1), (0, 3)), ((0, 3, 1, 2), (0, 5)), ((5, 1, 2), (5, 1, 1))])
def test_a_refused_record_no_longer_counts_as_handled(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    """When a record no longer counts as handled, the dead letters before and after it are in a row again."""
    made = tally(*before)
    made.undo_handled()
    assert made == tally(*after)


def test_zero_is_no_limit() -> None:
    """A limit of zero does not apply; if one of the two limits is zero, the other one still applies."""
    bad = tally(0, 1000)
    assert DeadLetterPolicy(max_consecutive=0, max_share=0).limit_reason(bad) is None
    assert DeadLetterPolicy(max_consecutive=0).limit_reason(bad) is not None
    assert DeadLetterPolicy(max_share=0).limit_reason(bad) is not None


@given(st.lists(st.integers(0, 300), max_size=20))
def test_a_committed_tally_is_restored(runs: list[int]) -> None:
    """A tally is restored from its encoded form, which is short enough for the metadata of a position."""
    made = tally(*runs)
    assert len(made.encode()) <= 270
    back = TallyState.decode(made.encode())
    assert back == (made if made.bits else TallyState())


def test_the_metadata_holds_the_finished_map_and_the_tally() -> None:
    """The metadata of a position holds the finished map and the tally, and either may be missing."""
    for unfinished in ([], [3, 5]):
        for dead in (0, 4):
            part = PartitionState.from_position(1, 0, "")
            for offset in range(9):
                part.admit(offset)
            for offset in set(range(9)) - set(unfinished):
                part.finish(offset)
            for _ in range(dead):
                part.tally.count_dead_letter()
            again = PartitionState.from_position(1, *part.position())
            assert list(again.unfinished) == unfinished
            assert again.end == 9
            assert again.tally.consecutive == dead


def test_a_tally_of_another_form_stops_the_processor() -> None:
    """A tally in an unknown format is an error, because it must not be treated as a missing tally."""
    with pytest.raises(ConfigError):
        PartitionState.from_position(0, 5, "1.many")
