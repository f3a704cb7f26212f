"""What the archive hands out and takes in, as frozen values."""

from __future__ import annotations

from typing import Any, Literal

import attrs
from attrs import field, frozen

from rtfm.events import BotQuery, ChannelKind, DiscordMessage, MessageChange, TimestampMillis
from rtfm.visibility import ChannelFacts, acl_channel_id, merge_facts


def guild_key(guild_id: str | None) -> str:
    """The archive's form of a guild id: '' for direct messages."""
    return guild_id or ""


Place = tuple[str, str]
"""(guild id, channel id): messages of another guild with the same channel id change nothing in this one."""


@frozen(kw_only=True)
class Channel:
    """A channel that something was said in. ``guild_id`` is '' for direct messages."""

    channel_id: str
    guild_id: str
    facts: ChannelFacts
    name: str | None = None

    @property
    def place(self) -> Place:
        """The channel within its guild."""
        return self.guild_id, self.channel_id

    @property
    def kind(self) -> ChannelKind:
        """What kind of channel it is."""
        return self.facts.kind

    @property
    def parent_channel_id(self) -> str | None:
        """The channel or forum that a thread or forum post belongs to."""
        return self.facts.parent_channel_id

    @property
    def acl_channel_id(self) -> str:
        """The channel whose readers may read this one."""
        return acl_channel_id(self.channel_id, self.parent_channel_id, self.kind)

    def after(self, seen: Channel, *, unchanged: bool = False) -> Channel:
        """What is known of the channel after it was ``seen``; see ``merge_facts`` for ``unchanged``."""
        is_newer = seen.facts.observed_at >= self.facts.observed_at and not unchanged
        return attrs.evolve(
            self,
            facts=merge_facts(self.channel_id, self.facts, seen.facts, unchanged=unchanged),
            name=seen.name if seen.name and is_newer else self.name,
        )


@frozen(kw_only=True)
class StoredMessage:
    """A message as the archive keeps it; a deleted one has neither author nor content."""

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
        """The channel that the message stands in, within its guild."""
        return self.guild_id, self.channel_id

    @property
    def position(self) -> tuple[int, int, str]:
        """Where the message stands in its channel: by time, then by id as a number."""
        return self.created_at, len(self.message_id), self.message_id

    def tombstone(self) -> StoredMessage:
        """What stays of the message when it is deleted: its conversation, so that what is left can be made anew."""
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
    """A part of a conversation: what is embedded, searched and shown.

    ``part_of`` is the message of which the passage is a part, a long one or a file; None where whole messages are in
    it. ``vector`` holds float32 values in the machine's little-endian order, None without an embedding model.
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
    """Where a guild's vectors stand in Chroma, and what they and its passages were made by.

    ``generation`` counts rebuilds. ``model`` is None, and ``dimension`` too, where texts have no vectors; ``rules`` is
    the version of linking, splitting and terms.
    """

    guild_id: str
    generation: int = 0
    model: str | None
    dimension: int | None
    rules: str


@frozen(kw_only=True)
class StoredVector:
    """The vector of a passage or message, and the passage that it leads to."""

    id: str
    passage_id: str
    vector: bytes


@frozen(kw_only=True)
class Change:
    """Everything that one batch writes, in one transaction.

    ``channels`` are as the batch saw them; if they are otherwise known by now, the newest facts stay. ``collections``
    are those that the batch was written to.
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
    """What was erased: (scope, id, guild id) → time before which nothing may be kept.

    The guild id is that of a person who was erased in one guild only, else ''.
    """

    before: dict[tuple[str, str, str], TimestampMillis]

    def covers(
        self, *, guild_id: str, channel_id: str, parent_channel_id: str | None, author_id: str | None, created_at: int
    ) -> bool:
        """Whether a message must not be kept."""
        keys = [("guild", guild_id, ""), ("channel", channel_id, "")]
        if parent_channel_id:
            keys.append(("channel", parent_channel_id, ""))
        if author_id:
            keys += [("user", author_id, ""), ("user", author_id, guild_id)]
        return any(key in self.before and created_at < self.before[key] for key in keys)

    def covers_event(self, event: object) -> bool:
        """Whether an event says what must not be kept: a message, unless it is deleted by it, or a question."""
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
