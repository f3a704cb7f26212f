"""The passages that retrieval returns, with their messages. Pure."""

from __future__ import annotations

import attrs
from attrs import field, frozen

from rtfm.events import ChannelKind, TimestampMillis


@frozen(kw_only=True)
class PassageMessage:
    """A message of a passage. In ``content``, mentions of users are replaced by the users' names.

    ``thread_title`` is the title of the message's thread or forum post. It is None if the message is not in a thread or
    forum post, or if the title is unknown.
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
    """A found passage, with its messages in order.

    ``boosted_score`` is higher than ``score`` if the passage is near the best passage and shares speakers with the best
    passage. Passages with the highest boosted score are shown first.
    """

    passage_id: str
    score: float
    boosted_score: float = field(default=attrs.Factory(lambda self: self.score, takes_self=True))
    text: str
    messages: list[PassageMessage]
