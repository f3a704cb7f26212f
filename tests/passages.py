"""Passages as retrieval returns them, for tests of answering."""

from __future__ import annotations

from collections.abc import Sequence

from rtfm.events import ChannelKind, TimestampMillis
from rtfm.knowledge import Passage, PassageMessage

GUILD = "500"
CHANNEL = "600"
MORNING = 1_772_438_400_000
"""2026-03-02 08:00 UTC."""


def said(
    author_name: str,
    content: str,
    *,
    message_id: str = "",
    minute: int = 0,
    channel_id: str = CHANNEL,
    parent_channel_id: str | None = None,
    kind: ChannelKind = ChannelKind.TEXT,
    guild_id: str | None = GUILD,
) -> PassageMessage:
    """Return a message that was written ``minute`` minutes after ``MORNING``."""
    return PassageMessage(
        message_id=message_id or f"7{minute:04}",
        guild_id=guild_id,
        channel_id=channel_id,
        parent_channel_id=parent_channel_id,
        channel_kind=kind,
        author_name=author_name,
        created_at=TimestampMillis(MORNING + minute * 60_000),
        content=content,
    )


def passage(messages: Sequence[PassageMessage], score: float = 0.8) -> Passage:
    """Return a passage of ``messages``."""
    return Passage(
        passage_id=f"p{messages[0].message_id}",
        score=score,
        text="\n".join(message.content for message in messages),
        messages=list(messages),
    )
