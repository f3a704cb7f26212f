"""The values that the archive reads and writes."""

from __future__ import annotations

from typing import Any, Literal

import attrs
from attrs import field, frozen

from rtfm.events import BotQuery, ChannelKind, DiscordMessage, MessageChange, TimestampMillis
from rtfm.visibility import ChannelFacts, acl_channel_id, merge_facts


def guild_key(guild_id: str | None) -> str:
    """Return a guild id as the archive stores it: None, which stands for direct messages, becomes ''."""
    return guild_id or ""


Place = tuple[str, str]
"""(guild id, channel id). Programs other than the bot may use one channel id in several guilds."""


@frozen(kw_only=True)
class Channel:
    """A channel that has messages. ``guild_id`` is '' for a channel of direct messages."""

    channel_id: str
    guild_id: str
    facts: ChannelFacts
    name: str | None = None

    @property
    def place(self) -> Place:
        """The channel's guild id and channel id."""
        return self.guild_id, self.channel_id

    @property
    def kind(self) -> ChannelKind:
        """The kind of the channel."""
        return self.facts.kind

    @property
    def parent_channel_id(self) -> str | None:
        """The channel or forum that a thread or forum post belongs to."""
        return self.facts.parent_channel_id

    @property
    def acl_channel_id(self) -> str:
        """The access channel: the channel whose permissions decide who can read this channel."""
        return acl_channel_id(self.channel_id, self.parent_channel_id, self.kind)

    def merge(self, seen: Channel, *, unchanged: bool = False) -> Channel:
        """Return this channel, updated with the facts and the name of ``seen``.

        ``merge_facts`` decides which facts are replaced, and its docstring explains ``unchanged``. The name is replaced
        if ``seen`` has a name and was not observed earlier than this channel, and ``unchanged`` is False.
        """
        is_newer = seen.facts.observed_at >= self.facts.observed_at and not unchanged
        return attrs.evolve(
            self,
            facts=merge_facts(self.channel_id, self.facts, seen.facts, unchanged=unchanged),
            name=seen.name if seen.name and is_newer else self.name,
        )


@frozen(kw_only=True)
class StoredMessage:
    """A message in the archive. A deleted message has neither author nor content."""

    message_id: str
    guild_id: str
    channel_id: str
    author_id: str | None = None
    author_name: str | None = None
    author_is_bot: bool = False
    content: str = ""
    created_at: TimestampMillis
    edited_at: TimestampMillis | None = None
    version: int
    deleted: bool
    reply_to_message_id: str | None = None
    mentioned_user_ids: list[str] = field(factory=list)
    attachments: list[dict[str, Any]] = field(factory=list)
    conversation_id: str | None = None
    passage_id: str | None = None

    @property
    def place(self) -> Place:
        """The guild id and channel id of the message."""
        return self.guild_id, self.channel_id

    @property
    def position(self) -> tuple[int, int, str]:
        """The sort key of the message in its channel: its time, then its id as a number."""
        return self.created_at, len(self.message_id), self.message_id

    def tombstone(self) -> StoredMessage:
        """Return the row that remains of the message when it is deleted.

        The row keeps its conversation, so that the conversation's passages can be built again from the other messages.
        """
        return StoredMessage(
            message_id=self.message_id,
            guild_id=self.guild_id,
            channel_id=self.channel_id,
            created_at=self.created_at,
            version=self.version,
            deleted=True,
            conversation_id=self.conversation_id,
        )


@frozen(kw_only=True)
class StoredPassage:
    """A passage in the archive.

    A passage consists either of whole messages, or of a part of one message or of its file. In the second case,
    ``part_of`` is the id of this message; in the first case it is None. ``vector`` is little-endian float32 as bytes;
    None without an embedding model.
    """

    passage_id: str
    conversation_id: str
    guild_id: str
    channel_id: str
    acl_channel_id: str
    text: str
    vector: bytes | None
    first_at: TimestampMillis
    last_at: TimestampMillis
    part_of: str | None = None


@frozen(kw_only=True)
class GuildCollection:
    """The collection of a guild, and the embedding model and rules with which its vectors and passages were made.

    ``generation`` is increased by each rebuild. ``model`` is the name of the embedding model, and ``dimension`` the
    length of its vectors; both are None if the passages have no vectors.
    ``rules`` is the version of linking, splitting, scrubbing and terms; see ``indexing.RULES``.
    """

    guild_id: str
    generation: int = 0
    model: str | None
    dimension: int | None
    rules: str


@frozen(kw_only=True)
class StoredVector:
    """The vector of the passage or message ``id``. If a search finds the vector, it returns passage ``passage_id``."""

    id: str
    passage_id: str
    vector: bytes


@frozen(kw_only=True)
class Change:
    """The changes of one batch, which are written in one transaction.

    ``channels`` contain the facts of the batch's events. If the archive has newer facts, the newer facts are kept.
    ``collections`` are the collections to which the batch has written its vectors.
    """

    channels: list[Channel]
    messages: list[StoredMessage]
    collections: list[GuildCollection] = field(factory=list)
    message_vectors: dict[str, bytes] = field(factory=dict)
    passage_of_message: dict[str, str | None] = field(factory=dict)
    passages: list[StoredPassage] = field(factory=list)
    removed_passage_ids: list[str] = field(factory=list)


Scope = Literal["user", "channel", "guild"]


@frozen(kw_only=True)
class Erasures:
    """All erasures.

    ``before`` maps (scope, id, guild id) to a time: the messages and questions of the target from before this time are
    erased. The guild id is '' unless a person was erased in a single guild only.
    """

    before: dict[tuple[str, str, str], TimestampMillis]

    def covers(
        self, *, guild_id: str, channel_id: str, parent_channel_id: str | None, author_id: str | None, created_at: int
    ) -> bool:
        """Return whether a message with these fields is erased."""
        keys = [("guild", guild_id, ""), ("channel", channel_id, "")]
        if parent_channel_id:
            keys.append(("channel", parent_channel_id, ""))
        if author_id:
            keys += [("user", author_id, ""), ("user", author_id, guild_id)]
        return any(key in self.before and created_at < self.before[key] for key in keys)

    def covers_event(self, event: object) -> bool:
        """Return whether an event is an erased message or question. A DELETED event never counts as erased."""
        match event:
            case DiscordMessage(change=MessageChange.DELETED):
                return False
            case DiscordMessage():
                parent, author, at = event.parent_channel_id, event.author_id, event.created_at
            case BotQuery():
                parent, author, at = None, event.asker_id, event.asked_at
            case _:
                return False
        return self.covers(
            guild_id=guild_key(event.guild_id),
            channel_id=event.channel_id,
            parent_channel_id=parent,
            author_id=author,
            created_at=at,
        )
