"""Selects the found messages that the model and the readers may see. No I/O.

Retrieval has already searched only in the visible channels. This module checks each message again, independently of
retrieval, before the model reads the message.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from rtfm.events import BotQuery, Citation
from rtfm.knowledge import Passage, PassageMessage
from rtfm.scrubbing import scrub
from rtfm.visibility import is_readable


def select_usable(passages: Sequence[Passage], query: BotQuery) -> list[Passage]:
    """Return the parts of ``passages`` that an answer to ``query`` may use, in the same order.

    These messages are left out: those that the readers of the answer may not read, the question itself, blank messages,
    and messages that an earlier passage contains. A passage without a remaining message is left out, too. Secrets in
    the messages are replaced by a note.
    """
    listed = frozenset(query.visible_channel_ids)
    seen: set[tuple[str, str]] = set()
    kept = []
    for passage in passages:
        # Retrieval splits a long message into parts with the same id, so the content is compared as well as the id.
        messages = [
            m for m in passage.messages if (m.message_id, m.content) not in seen and _is_usable(m, query, listed)
        ]
        if messages:
            seen.update((message.message_id, message.content) for message in messages)
            scrubbed = [attrs.evolve(message, content=scrub(message.content)) for message in messages]
            kept.append(attrs.evolve(passage, messages=scrubbed))
    return kept


def is_visible(message: PassageMessage | Citation, guild_id: str | None, listed: frozenset[str]) -> bool:
    """Return whether everyone who can read all ``listed`` channels of guild ``guild_id`` can read ``message``."""
    return message.guild_id == guild_id and is_readable(
        message.channel_id, message.parent_channel_id, message.channel_kind, listed
    )


def without_messages(passages: Sequence[Passage], removed: frozenset[str]) -> list[Passage]:
    """Return ``passages`` without the messages whose ids are in ``removed``. Passages without messages are left out."""
    left = [attrs.evolve(p, messages=[m for m in p.messages if m.message_id not in removed]) for p in passages]
    return [passage for passage in left if passage.messages]


def _is_usable(message: PassageMessage, query: BotQuery, listed: frozenset[str]) -> bool:
    return (
        is_visible(message, query.guild_id, listed)
        and message.message_id != query.message_id
        and bool(message.content.strip())
    )
