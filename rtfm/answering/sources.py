"""What of the passages that were found may be shown, to the model and to readers. Pure.

Checks each message once more against the query alone, whatever retrieval did: this is the last place where a leak can
be stopped before words are made of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from rtfm.events import BotQuery, ChannelKind, Citation
from rtfm.knowledge import Passage, PassageMessage
from rtfm.scrubbing import scrub

PARENT_DECIDES = (ChannelKind.PUBLIC_THREAD, ChannelKind.FORUM_POST)
"""Channels that everybody may read who may read their parent."""


def usable(passages: Sequence[Passage], query: BotQuery) -> list[Passage]:
    """The parts of ``passages`` that an answer to ``query`` may rest on, in their order, without secrets.

    Left out are messages that the answer's readers may not read, the question itself and blank ones; a passage of which
    nothing remains; and a message that an earlier passage has, too.
    """
    listed = frozenset(query.visible_channel_ids)
    seen: set[tuple[str, str]] = set()
    kept = []
    for passage in passages:
        # Parts of a long message share its id.
        messages = [m for m in passage.messages if (m.message_id, m.content) not in seen and _usable(m, query, listed)]
        if messages:
            seen.update((message.message_id, message.content) for message in messages)
            scrubbed = [attrs.evolve(message, content=scrub(message.content)) for message in messages]
            kept.append(attrs.evolve(passage, messages=scrubbed))
    return kept


def visible(said: PassageMessage | Citation, guild_id: str | None, listed: frozenset[str]) -> bool:
    """Whether those may read what was ``said`` who may read the ``listed`` channels of ``guild_id``.

    A channel counts if it is listed itself, a public thread and a forum post also if their parent is.
    """
    if said.guild_id != guild_id:
        return False
    parent = said.parent_channel_id if said.channel_kind in PARENT_DECIDES else None
    return said.channel_id in listed or parent in listed


def acl_channel_id(message: PassageMessage) -> str:
    """The channel whose readers may read ``message``."""
    if message.channel_kind in PARENT_DECIDES and message.parent_channel_id is not None:
        return message.parent_channel_id
    return message.channel_id


def without(passages: Sequence[Passage], gone: frozenset[str]) -> list[Passage]:
    """``passages`` without the messages whose ids are in ``gone``."""
    left = [attrs.evolve(p, messages=[m for m in p.messages if m.message_id not in gone]) for p in passages]
    return [passage for passage in left if passage.messages]


def _usable(message: PassageMessage, query: BotQuery, listed: frozenset[str]) -> bool:
    return (
        visible(message, query.guild_id, listed)
        and message.message_id != query.message_id
        and bool(message.content.strip())
    )
