"""What of the passages that were found may be shown, to the model and to readers. Pure.

Checks each message once more against the query alone, whatever retrieval did: this is the last place where a leak can
be stopped before words are made of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from rtfm.events import BotQuery, Citation
from rtfm.knowledge import Passage, PassageMessage
from rtfm.scrubbing import scrub
from rtfm.visibility import is_readable


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
    """Whether everyone who can read the ``listed`` channels of ``guild_id`` can read what was ``said``."""
    return said.guild_id == guild_id and is_readable(said.channel_id, said.parent_channel_id, said.channel_kind, listed)


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
