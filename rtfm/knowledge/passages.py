"""What retrieval finds: passages with their messages. Pure."""

from __future__ import annotations

import attrs
from attrs import field, frozen

from rtfm.events import ChannelKind, TimestampMillis


@frozen(kw_only=True)
class PassageMessage:
    """A message of a passage. Mentions of users are replaced by their names.

    ``thread_title`` is that of the thread or forum post that it stands in, None outside and where it is not known.
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
    """What was found: a conversation or a part of one, with its messages in order.

    ``pull`` is the score, raised for passages beside the best one: the order in which they are shown.
    """

    passage_id: str
    score: float
    pull: float = field(default=attrs.Factory(lambda self: self.score, takes_self=True))
    text: str
    messages: list[PassageMessage]
