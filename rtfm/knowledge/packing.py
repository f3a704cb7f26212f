"""Packing: chooses the messages of the found passages that fit into a given number of words.

A conversation is often found in several passages. Therefore a passage moves forward if it is near the best passage in
the channel and shares speakers with the best passage. If a passage does not fit as a whole, those of its messages that
fit are kept. Each message appears only once. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from rtfm.knowledge.passages import Passage

NEARBY_WEIGHT = 0.5
"""The boosted score of a passage near the best passage gains at most this share of the best passage's score.

Coverage rises with this weight up to 0.3, and is about the same from 0.3 to 0.5. The value was chosen on conversations
from which the linker had not learned."""

NEARBY_MESSAGES = 100
"""The passages of this many messages before the best passage, and of this many after it, count as near."""


def speaker_overlap(best: frozenset[str], others: Mapping[str, frozenset[str]]) -> dict[str, float]:
    """Return the share of speakers, 0..1, that each passage has in common with the best passage, by passage id.

    ``best`` are the author ids of the best passage, ``others`` those of other passages, by passage id. A passage
    without common speakers is left out.
    """
    return {
        passage_id: len(best & speakers) / min(len(best), len(speakers))
        for passage_id, speakers in others.items()
        if best & speakers
    }


def pack(passages: Sequence[Passage], max_words: int) -> list[Passage]:
    """Return the passages by ``boosted_score``, highest first, with the messages that fit into ``max_words`` in all.

    If a message does not fit, it is left out, and shorter messages after it are still kept if they fit. This is useful
    because shorter messages answer a question as often as longer ones.
    """
    packed: list[Passage] = []
    seen: set[tuple[str, str]] = set()
    left = max_words
    for passage in sorted(passages, key=lambda passage: -passage.boosted_score):
        kept = []
        for message in passage.messages:
            words = len(message.content.split())
            # The parts of a long message share its id, so the content is compared, too.
            if words <= left and (message.message_id, message.content) not in seen:
                seen.add((message.message_id, message.content))
                kept.append(message)
                left -= words
        if kept:
            packed.append(attrs.evolve(passage, messages=kept))
    return packed
