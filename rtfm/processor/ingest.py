"""Ingest: from the events of a batch to the messages that they change, which are then indexed.

Owns which version of a message is the newest, and what is kept of it. Promises that a late event never undoes a newer
one, that a message never moves, and that a batch handled twice leaves everything as it was. Does not read Kafka.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from attrs import frozen

from rtfm.clock import now_ms
from rtfm.errors import InvalidEvent
from rtfm.events import DISCORDS_OWN_SOURCES, ChannelKind, DiscordMessage, MessageChange, find_broken_rule
from rtfm.knowledge import Knowledge
from rtfm.knowledge.archive import Channel, CollectionChanged, Erasures, StoredMessage, guild_key
from rtfm.knowledge.indexing import BatchState, Indexer
from rtfm.names import MESSAGES
from rtfm.streams.pipeline import Output
from rtfm.telemetry import ARCHIVED, IGNORED_EVENTS, get_logger
from rtfm.visibility import ChannelFacts

MAX_TEXT_CHARACTERS = 64 * 1024
"""Of a text file that came with a message; the bot brings no larger ones."""

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

_log = get_logger(__name__)


class MessageRecord(Protocol):
    """What ingest needs of a record: its event."""

    @property
    def event(self) -> object: ...


@frozen(kw_only=True)
class Ingest:
    """The handler of ``discord-messages``. Raises Unavailable when the archive or Chroma does not answer.

    ``note_guilds`` learns in which guilds something changed, after it is written.
    """

    knowledge: Knowledge
    note_guilds: Callable[[Collection[str]], None] = lambda _: None

    def __call__(self, records: Sequence[MessageRecord]) -> list[Output]:
        """Handle a batch; there are no outputs. Raises InvalidEvent for an event that breaks a rule."""
        events = [self._valid(record.event) for record in records]
        self.take([event for event in events if event is not None])
        return []

    def take(self, events: Sequence[DiscordMessage]) -> None:
        """Bring the archive and Chroma up to date with ``events``, in order."""
        if not events:
            return
        while True:
            try:
                state, changes = self._taken(events)
                break
            except CollectionChanged as exc:
                _log.info("batch begun again", reason=str(exc))
        for change in changes:
            ARCHIVED.labels(change=change.value).inc()
        self.note_guilds({message.guild_id for message in state.changed.values()})

    def _taken(self, events: Sequence[DiscordMessage]) -> tuple[BatchState, list[MessageChange]]:
        """What a batch changed, once it is written. Raises CollectionChanged when it has to be begun again."""
        archive = self.knowledge.archive
        messages = archive.writing.messages({event.message_id for event in events})
        places = {(guild_key(event.guild_id), event.channel_id) for event in events}
        places |= {message.place for message in messages.values()}
        state = BatchState(messages=messages, channels=archive.writing.channels(places))
        erasures = archive.removals.erasures()
        changes = [event.change for event in events if _apply(state, event, erasures)]
        if state.changed or state.touched_channels:
            Indexer(archive, self.knowledge.vectors, self.knowledge.embedding).index(state)
        return state, changes

    def _valid(self, event: object) -> DiscordMessage | None:
        if not isinstance(event, DiscordMessage):
            raise InvalidEvent(f"{type(event).__name__} is not a DiscordMessage")
        if (broken := find_broken_rule(event, now=now_ms())) is not None:
            raise InvalidEvent(f"DiscordMessage.{broken}")
        if event.change is MessageChange.UNKNOWN:
            IGNORED_EVENTS.labels(topic=MESSAGES, reason="unknown change").inc()
            return None
        if event.change is not MessageChange.DELETED and not event.author_id:
            raise InvalidEvent("DiscordMessage.author_id must be given, unless change is DELETED")
        return event


def _apply(state: BatchState, event: DiscordMessage, erasures: Erasures) -> bool:
    """Take an event into ``state``; whether it changed its message."""
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
    after = _deleted(event, before) if event.change is MessageChange.DELETED else _said_anew(event, before)
    channel = _channel(event, guild_id, known, unchanged=after is None)
    # Of an erased channel a deletion keeps nothing; where one is not known, its messages are not either.
    if not erased and channel is not None and channel != known:
        state.channels[channel.place] = channel
        state.touched_channels[channel.place] = channel
    if after is not None:
        state.messages[event.message_id] = after
        state.changed[event.message_id] = after
    return after is not None


def _channel(event: DiscordMessage, guild_id: str, known: Channel | None, *, unchanged: bool) -> Channel | None:
    """What is known of the event's channel after it; None while nothing is."""
    seen = Channel(
        channel_id=event.channel_id,
        guild_id=guild_id,
        facts=ChannelFacts(
            kind=event.channel_kind,
            parent_channel_id=event.parent_channel_id,
            observed_at=event.observed_at or 0,
            from_discord=event.source in DISCORDS_OWN_SOURCES,
        ),
        name=_storable(event.channel_name) if event.channel_name else None,
    )
    if known is not None:
        return known.after(seen, unchanged=unchanged)
    # A deletion that does not know its channel must not keep later events from telling what it is.
    is_told = event.change is not MessageChange.DELETED or event.channel_kind is not ChannelKind.UNKNOWN
    return seen if is_told else None


def _guild_of(event: DiscordMessage, before: StoredMessage | None) -> str:
    """The guild of the message. Raises InvalidEvent where the event puts a known message into another place.

    A deletion need not name the guild; nor does what it left behind then.
    """
    guild_id = guild_key(event.guild_id)
    if before is None:
        return guild_id
    if before.channel_id != event.channel_id:
        raise InvalidEvent("DiscordMessage.channel_id must be that of the message as it is known, in another channel")
    if before.guild_id == guild_id or (before.deleted and not before.guild_id):
        return guild_id
    if guild_id or event.change is not MessageChange.DELETED:
        raise InvalidEvent("DiscordMessage.guild_id must be that of the message as it is known, in another guild")
    return before.guild_id


def _said_anew(event: DiscordMessage, before: StoredMessage | None) -> StoredMessage | None:
    # Twice the time, so that an edit of the same millisecond is newer than the message that already carries it.
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


def _deleted(event: DiscordMessage, before: StoredMessage | None) -> StoredMessage | None:
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
    """PostgreSQL stores no NUL, and UTF-8 no half of a surrogate pair."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)
