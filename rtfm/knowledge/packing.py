"""Packing: which messages of the found passages fit into a number of words.

Passages near the best one with the same speakers move forward, because a conversation is often found in pieces. A
passage that does not fit whole contributes the messages that fit. Each message appears once. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from rtfm.knowledge.passages import Passage

NEARBY_WEIGHT = 0.5
"""What nearness in the channel adds to a passage's score at most, as a share of the best passage's score.

Coverage grows with it and is flat from 0.3 to 0.5. It was chosen on conversations that the linker had not seen."""

NEARBY_MESSAGES = 100
"""Messages before and after the best passage that count as near it."""


def speaker_overlap(best: frozenset[str], others: Mapping[str, frozenset[str]]) -> dict[str, float]:
    """Return the share of speakers, 0..1, that each passage has in common with the best one, if there are any.

    ``best`` and the values of ``others`` (by passage id) are author ids.
    """
    return {
        passage_id: len(best & speakers) / min(len(best), len(speakers))
        for passage_id, speakers in others.items()
        if best & speakers
    }


def pack(passages: Sequence[Passage], max_words: int) -> list[Passage]:
    """Return the passages by ``boosted_score``, highest first, with the messages that fit into ``max_words`` in all.

    A message that does not fit is skipped in favour of shorter ones, which answer as often.
    """
    packed: list[Passage] = []
    seen: set[tuple[str, str]] = set()
    left = max_words
    for passage in sorted(passages, key=lambda passage: -passage.boosted_score):
        kept = []
        for message in passage.messages:
            words = len(message.content.split())
            # The parts of a long message share its id.
            if words <= left and (message.message_id, message.content) not in seen:
                seen.add((message.message_id, message.content))
                kept.append(message)
                left -= words
        if kept:
            packed.append(attrs.evolve(passage, messages=kept))
    return packed
