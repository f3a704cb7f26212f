"""The passages that are shown within a limit of words."""

from __future__ import annotations

import attrs

from rtfm.knowledge.packing import pack, speaker_overlap
from tests.passages import passage, said


def test_passages_near_the_best_one_are_ranked_higher() -> None:
    """A passage next to the best one is ranked by its boosted score."""
    best = passage([said("ada", "one two", message_id="1")], 0.9)
    second = passage([said("bo", "three four", message_id="2")], 0.7)
    beside = attrs.evolve(passage([said("ada", "five six", message_id="3")], 0.3), boosted_score=0.8)
    assert [one.passage_id for one in pack([best, second, beside], 4)] == [best.passage_id, beside.passage_id]


def test_a_message_that_does_not_fit_makes_room_for_shorter_ones() -> None:
    """If a message does not fit, shorter ones are taken instead; the limit holds, and no message is repeated."""
    long = said("ada", "word " * 9, message_id="1")
    short = said("bo", "two words", message_id="2")
    packed = pack([passage([long, short]), passage([short, said("cy", "three more words", message_id="3")], 0.5)], 6)
    assert [[message.message_id for message in one.messages] for one in packed] == [["2"], ["3"]]


def test_overlap_is_the_share_of_common_speakers() -> None:
    """The overlap of two passages is the share of common speakers in the passage with fewer speakers."""
    best = frozenset({"1", "2"})
    others = {"a": frozenset({"1"}), "b": frozenset({"1", "2", "3"}), "c": frozenset({"3"}), "d": frozenset({"2", "3"})}
    assert speaker_overlap(best, others) == {"a": 1.0, "b": 1.0, "d": 0.5}
