"""Passages with their messages, as retrieval returns them. Pure."""

from __future__ import annotations

import attrs
from attrs import field, frozen

from rtfm.events import ChannelKind, TimestampMillis


@frozen(kw_only=True)
class PassageMessage:
    """A message of a passage. Mentions of users are replaced by their names.

    ``thread_title`` is the title of the message's thread or forum post; None outside of one or if it is unknown.
    """

    message_id: str
    guild_id: str | None
    channel_id: str
    parent_channel_id: str | None
    channel_kind: ChannelKind
    thread_title: str | None = None
    author_id: str | None = None
    author_name: str
    created_at: TimestampMillis
    content: str


@frozen(kw_only=True)
class Passage:
    """A conversation or a part of one, with its messages in order.

    Passages are shown in the order of ``boosted_score``: the score, raised for passages near the best one.
    """

    passage_id: str
    score: float
    boosted_score: float = field(default=attrs.Factory(lambda self: self.score, takes_self=True))
    text: str
    messages: list[PassageMessage]
