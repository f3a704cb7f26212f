"""Who may read a message, and which observations of a channel change that."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtfm.events import ChannelKind
from rtfm.visibility import PARENT_DECIDES, ChannelFacts, acl_channel_id, is_readable, is_wider, merge_facts

KINDS = list(ChannelKind)
TEXT, POST, OPEN, CLOSED, DIRECT, UNKNOWN = (
    ChannelKind.TEXT,
    ChannelKind.FORUM_POST,
    ChannelKind.PUBLIC_THREAD,
    ChannelKind.PRIVATE_THREAD,
    ChannelKind.DIRECT,
    ChannelKind.UNKNOWN,
)
FACTS = st.builds(
    ChannelFacts,
    kind=st.sampled_from(KINDS),
    parent_channel_id=st.sampled_from([None, "1", "2"]),
    observed_at=st.integers(0, 5),
    from_discord=st.booleans(),
)


def facts(kind: ChannelKind, parent: str | None = "1", at: int = 0, *, discord: bool = False) -> ChannelFacts:
    return ChannelFacts(kind=kind, parent_channel_id=parent, observed_at=at, from_discord=discord)


@pytest.mark.parametrize("kind", KINDS)
def test_the_parent_decides_for_public_threads_and_posts_alone(kind: ChannelKind) -> None:
    """The parent decides who may read a public thread or post; for any other channel its own id decides."""
    assert is_readable("5", "1", kind, ["5"])
    assert is_readable("5", "1", kind, ["1"]) == (kind in PARENT_DECIDES) == (acl_channel_id("5", "1", kind) == "1")
    assert not is_readable("5", None, kind, ["1"])
    assert not is_readable("5", "1", kind, [])
    assert not is_readable(None, "1", kind, ["1"])


@pytest.mark.parametrize(
    ("before", "after"),
    [(CLOSED, OPEN), (CLOSED, TEXT), (UNKNOWN, OPEN), (UNKNOWN, POST), (DIRECT, TEXT), (TEXT, OPEN), (OPEN, TEXT)],
)
def test_only_a_newer_report_of_discord_widens_who_may_read(before: ChannelKind, after: ChannelKind) -> None:
    """Only a newer report of Discord lets more people read a channel.

    An export, another program, an old report, and an event that did not change its message do not.
    """
    known = facts(before, at=5, discord=True)
    for at, discord, unchanged in itertools.product((0, 4, 5, 6, 9), (False, True), (False, True)):
        seen = facts(after, at=at, discord=discord)
        believed = merge_facts("9", known, seen, unchanged=unchanged)
        assert believed == (seen if discord and at > 5 and not unchanged else known)


def test_an_export_cannot_change_the_parent() -> None:
    """An export cannot give a thread another parent, for instance #general in place of #staff."""
    known = facts(OPEN, "1", at=5, discord=True)
    assert merge_facts("9", known, facts(OPEN, "2", at=9)) == known
    assert merge_facts("9", known, facts(POST, "1", at=9)) == facts(POST, "1", at=9)
    moved = facts(OPEN, "2", at=9, discord=True)
    assert merge_facts("9", known, moved) == moved


@pytest.mark.parametrize("discord", [False, True])
def test_the_newest_observation_wins_if_nobody_gains_access(discord: bool) -> None:
    """If nobody gains access, the newest observation counts, from any source, and an older one changes nothing."""
    known = facts(OPEN, at=5, discord=True)
    for at in (5, 6):
        closed = facts(CLOSED, at=at, discord=discord)
        assert merge_facts("9", known, closed) == closed
    assert merge_facts("9", known, facts(CLOSED, at=4, discord=discord)) == known


def test_discord_corrects_what_others_said_however_old_it_is() -> None:
    """A report of Discord replaces what an export or a program said, even if the report is older."""
    closed = facts(CLOSED, at=1, discord=True)
    assert merge_facts("9", facts(OPEN, at=9), closed) == closed
    assert merge_facts("9", facts(OPEN, at=9), closed, unchanged=True) == closed
    assert merge_facts("9", facts(OPEN, at=9, discord=True), closed) != closed


@given(known=FACTS, seen=st.lists(FACTS, max_size=6), listed=st.sets(st.sampled_from(["1", "2", "9"])))
def test_other_sources_never_give_anyone_access(
    known: ChannelFacts, seen: list[ChannelFacts], listed: set[str]
) -> None:
    """Exports and programs never make a channel readable for people who could not read it already."""
    believed = known
    for one in seen:
        believed = merge_facts("9", believed, facts(one.kind, one.parent_channel_id, one.observed_at))
    if "9" not in listed and is_readable("9", believed.parent_channel_id, believed.kind, listed):
        assert is_readable("9", known.parent_channel_id, known.kind, listed)


@given(known=FACTS, at=st.integers(0, 9), discord=st.booleans())
def test_an_unknown_kind_changes_nothing(known: ChannelFacts, at: int, discord: bool) -> None:
    """If the kind in an observation is UNKNOWN, as in the report of a deletion, the observation changes nothing."""
    assert merge_facts("9", known, facts(UNKNOWN, at=at, discord=discord)) == known


@given(known=FACTS, seen=FACTS, listed=st.sets(st.sampled_from(["1", "2"])))
def test_an_observation_that_is_not_wider_gives_nobody_access(
    known: ChannelFacts, seen: ChannelFacts, listed: set[str]
) -> None:
    """``is_wider`` is true for every observation that gives anyone access."""
    gains = is_readable("9", seen.parent_channel_id, seen.kind, listed) and not is_readable(
        "9", known.parent_channel_id, known.kind, listed
    )
    assert is_wider("9", known, seen) or not gains
