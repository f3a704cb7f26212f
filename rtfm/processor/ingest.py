"""Ingest: the handler that applies events of ``discord-messages`` to the archive and Chroma.

It decides which version of a message is the newest and which fields are stored. ``indexing`` then updates the
conversations, passages and vectors. If an event arrives late, it does not overwrite a newer version of its message. No
event moves a message to another channel. Handling a batch again changes nothing. The pipeline reads the records.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from attrs import frozen

from rtfm.clock import now_ms
from rtfm.errors import InvalidEvent
from rtfm.events import DISCORD_SOURCES, ChannelKind, DiscordMessage, MessageChange, find_broken_rule
from rtfm.knowledge import Knowledge
from rtfm.knowledge.archive import Channel, CollectionChanged, Erasures, StoredMessage, guild_key
from rtfm.knowledge.indexing import BatchState, Indexer
from rtfm.names import MESSAGES
from rtfm.streams.pipeline import Output
from rtfm.telemetry import ARCHIVED, IGNORED_EVENTS, get_logger
from rtfm.visibility import ChannelFacts

MAX_TEXT_CHARACTERS = 64 * 1024
"""Maximum number of characters of an attached text file that are stored. The bot never sends more."""

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

_log = get_logger(__name__)


class HasEvent(Protocol):
    """A record. Ingest needs only its event."""

    @property
    def event(self) -> object:
        """The decoded value."""
        ...


@frozen(kw_only=True)
class Ingest:
    """The handler of ``discord-messages``. Raises Unavailable when the archive or Chroma does not respond.

    After each batch, ``on_guilds_changed`` is called with the ids of the guilds whose messages were changed.
    """

    knowledge: Knowledge
    on_guilds_changed: Callable[[Collection[str]], None] = lambda _: None

    def __call__(self, records: Sequence[HasEvent]) -> list[Output]:
        """Handle a batch, and return no outputs. Raises InvalidEvent for an event that breaks a rule."""
        events = [self._validate(record.event) for record in records]
        self.apply([event for event in events if event is not None])
        return []

    def apply(self, events: Sequence[DiscordMessage]) -> None:
        """Apply ``events``, in order, to the archive and Chroma."""
        if not events:
            return
        while True:
            try:
                state, changes = self._write_batch(events)
                break
            except CollectionChanged as exc:
                _log.info("a rebuild switched collections, repeating the batch", reason=str(exc))
        for change in changes:
            ARCHIVED.labels(change=change.value).inc()
        self.on_guilds_changed({message.guild_id for message in state.changed.values()})

    def _write_batch(self, events: Sequence[DiscordMessage]) -> tuple[BatchState, list[MessageChange]]:
        """Write a batch, and return its state and the kinds of changes that it made.

        Raises CollectionChanged if the batch must be repeated.
        """
        archive = self.knowledge.archive
        messages = archive.writing.messages({event.message_id for event in events})
        places = {(guild_key(event.guild_id), event.channel_id) for event in events}
        places |= {message.place for message in messages.values()}
        state = BatchState(messages=messages, channels=archive.writing.channels(places))
        erasures = archive.removals.erasures()
        changes = [event.change for event in events if _apply_event(state, event, erasures)]
        if state.changed or state.touched_channels:
            Indexer(archive, self.knowledge.vectors, self.knowledge.embedding).index(state)
        return state, changes

    def _validate(self, event: object) -> DiscordMessage | None:
        if not isinstance(event, DiscordMessage):
            raise InvalidEvent(f"{type(event).__name__} is not a DiscordMessage")
        if (broken := find_broken_rule(event, now=now_ms())) is not None:
            raise InvalidEvent(f"DiscordMessage.{broken}")
        if event.change is MessageChange.UNKNOWN:
            IGNORED_EVENTS.labels(topic=MESSAGES, reason="unknown change").inc()
            return None
        if event.change is not MessageChange.DELETED and not event.author_id:
            raise InvalidEvent("DiscordMessage.author_id is required unless change is DELETED")
        return event


def _apply_event(state: BatchState, event: DiscordMessage, erasures: Erasures) -> bool:
    """Apply an event to ``state``, and return whether the event changed its message."""
    before = state.messages.get(event.message_id)
    guild_id = _guild_of(event, before)
    known = state.channels.get((guild_id, event.channel_id))
    erased = erasures.covers(
        guild_id=guild_id,
        channel_id=event.channel_id,
        parent_channel_id=event.parent_channel_id or (known.parent_channel_id if known else None),
        author_id=event.author_id,
        created_at=event.created_at,
    )
    if erased and event.change is not MessageChange.DELETED:
        IGNORED_EVENTS.labels(topic=MESSAGES, reason="erased").inc()
        return False
    after = _tombstone(event, before) if event.change is MessageChange.DELETED else _newer_version(event, before)
    channel = _channel(event, guild_id, known, unchanged=after is None)
    # If the DELETED event is about an erased message, the facts of its channel are not stored, because the whole
    # channel may be erased. If the archive has no facts of the channel, it has no messages of the channel either, so it
    # does not need the facts.
    if not erased and channel is not None and channel != known:
        state.channels[channel.place] = channel
        state.touched_channels[channel.place] = channel
    if after is not None:
        state.messages[event.message_id] = after
        state.changed[event.message_id] = after
    return after is not None


def _channel(event: DiscordMessage, guild_id: str, known: Channel | None, *, unchanged: bool) -> Channel | None:
    """Return the event's channel with the facts that are known after the event; None if no facts are known."""
    seen = Channel(
        channel_id=event.channel_id,
        guild_id=guild_id,
        facts=ChannelFacts(
            kind=event.channel_kind,
            parent_channel_id=event.parent_channel_id,
            observed_at=event.observed_at or 0,
            from_discord=event.source in DISCORD_SOURCES,
        ),
        name=_storable(event.channel_name) if event.channel_name else None,
    )
    if known is not None:
        return known.merge(seen, unchanged=unchanged)
    # If the channel of a DELETED event without facts were stored, the channel would have the kind UNKNOWN, which counts
    # as private. A later import could not correct the kind, because imports never widen who can read a channel.
    has_facts = event.change is not MessageChange.DELETED or event.channel_kind is not ChannelKind.UNKNOWN
    return seen if has_facts else None


def _guild_of(event: DiscordMessage, before: StoredMessage | None) -> str:
    """Return the guild of the event's message, '' for direct messages.

    A DELETED event may lack the guild. So if a deleted message in the archive has no guild, a later event may name the
    guild. Raises InvalidEvent if the event names another channel or guild than the archive.
    """
    guild_id = guild_key(event.guild_id)
    if before is None:
        return guild_id
    if before.channel_id != event.channel_id:
        raise InvalidEvent("DiscordMessage.channel_id differs from the known channel of the message")
    if before.guild_id == guild_id or (before.deleted and not before.guild_id):
        return guild_id
    if guild_id or event.change is not MessageChange.DELETED:
        raise InvalidEvent("DiscordMessage.guild_id differs from the known guild of the message")
    return before.guild_id


def _newer_version(event: DiscordMessage, before: StoredMessage | None) -> StoredMessage | None:
    # The version is twice the time, plus 1 for an EDITED event. So an EDITED event has a higher version than a CREATED
    # event with the same edit time.
    version = 2 * (event.edited_at or event.created_at) + (event.change is MessageChange.EDITED)
    if before is not None and (before.deleted or before.version >= version):
        return None
    return StoredMessage(
        message_id=event.message_id,
        guild_id=guild_key(event.guild_id),
        channel_id=event.channel_id,
        author_id=event.author_id,
        author_name=_storable(event.author_name) if event.author_name else None,
        author_is_bot=event.author_is_bot,
        content=_storable(event.content),
        created_at=before.created_at if before else event.created_at,
        edited_at=event.edited_at,
        version=version,
        deleted=False,
        reply_to_message_id=event.reply_to_message_id,
        mentioned_user_ids=list(event.mentioned_user_ids),
        attachments=[
            {
                "filename": _storable(attachment.filename),
                "url": _storable(attachment.url),
                "content_type": _storable(attachment.content_type) if attachment.content_type else None,
                "size_bytes": attachment.size_bytes,
                "text": _storable(attachment.text[:MAX_TEXT_CHARACTERS]) if attachment.text else None,
            }
            for attachment in event.attachments
        ],
        conversation_id=before.conversation_id if before else None,
    )


def _tombstone(event: DiscordMessage, before: StoredMessage | None) -> StoredMessage | None:
    if before is not None:
        return None if before.deleted else before.tombstone()
    return StoredMessage(
        message_id=event.message_id,
        guild_id=guild_key(event.guild_id),
        channel_id=event.channel_id,
        created_at=event.created_at,
        version=0,
        deleted=True,
    )


def _storable(text: str) -> str:
    """Replace characters that cannot be stored: NUL in PostgreSQL, and unpaired surrogates in UTF-8."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)
