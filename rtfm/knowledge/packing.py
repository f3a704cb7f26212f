"""Chooses what of the found passages fits into a number of words. Pure.

Whole passages in rank order; of one that does not fit, the messages that do. Each message stands once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rtfm.knowledge.retrieval import Passage, PassageMessage


def pack(passages: Sequence[Passage], max_words: int) -> list[PassageMessage]:
    """Messages in the order of their passages, ``max_words`` words in all at most.

    A message that does not fit is passed over for shorter ones: they answer as often, and the space is not wasted.
    """
    packed: dict[str, PassageMessage] = {}
    left = max_words
    for passage in passages:
        for message in passage.messages:
            words = len(message.content.split())
            if words <= left and message.message_id not in packed:
                packed[message.message_id] = message
                left -= words
    return list(packed.values())
