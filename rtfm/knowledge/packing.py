"""Chooses what of the found passages fits into a number of words. Pure.

What was said beside the best passage by the same people comes forward, since a conversation is often found in pieces.
Then whole passages in order; of one that does not fit, the messages that do. Each message stands once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from rtfm.knowledge.passages import Passage

COMPANY_WEIGHT = 0.5
"""What being beside the best passage adds to a passage's score at most, as a share of the best one's score.

Coverage grows with it and is flat from 0.3 to 0.5; it was chosen on conversations whose linker had not seen them."""

AROUND = 100
"""Messages before and after the best passage that count as beside it."""


def company(best: frozenset[str], others: Mapping[str, frozenset[str]]) -> dict[str, float]:
    """How much of the same people speak in passages beside the best one, 0..1; only those with anybody in common.

    ``best`` and the values of ``others`` (passage id → ...) are author ids.
    """
    return {
        passage_id: len(best & people) / min(len(best), len(people))
        for passage_id, people in others.items()
        if best & people
    }


def pack(passages: Sequence[Passage], max_words: int) -> list[Passage]:
    """The passages in the order of their ``pull``, with the messages that fit into ``max_words`` words in all.

    A message that does not fit is passed over for shorter ones: they answer as often, and the space is not wasted.
    """
    packed: list[Passage] = []
    seen: set[tuple[str, str]] = set()
    left = max_words
    for passage in sorted(passages, key=lambda passage: -passage.pull):
        kept = []
        for message in passage.messages:
            words = len(message.content.split())
            # Parts of a long message share its id.
            if words <= left and (message.message_id, message.content) not in seen:
                seen.add((message.message_id, message.content))
                kept.append(message)
                left -= words
        if kept:
            packed.append(attrs.evolve(passage, messages=kept))
    return packed
