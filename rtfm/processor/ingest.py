"""Ingest: from changed messages to what retrieval can find.

Owns the order of a batch's steps: what is newer than the archive, which conversations that touches, their passages, one
embedding call, Chroma, then one archive transaction. Chroma comes first because the archive decides what counts as
done: whatever fails before its transaction is simply done again, with the same ids. Promises that a batch handled twice
leaves everything as it was. Does not read Kafka.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import attrs
from attrs import define, field, frozen

from rtfm.errors import InvalidEvent
from rtfm.events import ChannelKind, DiscordMessage, MessageChange
from rtfm.knowledge import Knowledge
from rtfm.knowledge.archive import Change, Channel, Erasures, StoredMessage, StoredPassage, guild_key
from rtfm.knowledge.conversations import Line, PassageText, passages, spoken_text
from rtfm.knowledge.embedding import to_bytes
from rtfm.knowledge.floor import calibrate
from rtfm.knowledge.linking import CONTEXT, Said, in_one_conversation, link, thread_conversation
from rtfm.knowledge.vectors import Entry, message_entry, passage_entry
from rtfm.scrubbing import scrub
from rtfm.telemetry import ARCHIVED, IGNORED_EVENTS, get_logger

TOPIC = "discord-messages"

MAX_TEXT_CHARACTERS = 64 * 1024
"""Of a text file that came with a message; the bot brings no larger ones."""

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

_log = get_logger(__name__)


class MessageRecord(Protocol):
    """What ingest needs of a record: its event."""

    @property
    def event(self) -> object: ...


@define(kw_only=True)
class _BatchState:
    """One batch on its way: what is known of its messages and channels, the archive's state overlaid with changes."""

    messages: dict[str, StoredMessage]
    channels: dict[str, Channel]
    changed: dict[str, StoredMessage] = field(factory=dict)
    change_names: list[str] = field(factory=list)
    touched_channels: dict[str, Channel] = field(factory=dict)


@frozen(kw_only=True)
class Ingest:
    """The handler of ``discord-messages``. Raises Unavailable when the archive or Chroma does not answer."""

    knowledge: Knowledge

    def __call__(self, records: Sequence[MessageRecord]) -> list[object]:
        """Handle a batch; there are no outputs. Raises InvalidEvent for an event that breaks a rule."""
        events = [self._valid(record.event) for record in records]
        self.take([event for event in events if event is not None])
        return []

    def take(self, events: Sequence[DiscordMessage]) -> None:
        """Bring the archive and Chroma up to date with ``events``, in order."""
        if not events:
            return
        writing = self.knowledge.archive.writing
        state = _BatchState(
            messages=writing.messages({event.message_id for event in events}),
            channels=writing.channels({event.channel_id for event in events}),
        )
        erasures = writing.erasures()
        for event in events:
            _apply(state, event, erasures)
        if not state.changed and not state.touched_channels:
            return
        touched = self._link(state)
        self._write(state, touched)
        for name in state.change_names:
            ARCHIVED.labels(change=name).inc()
        guilds = {message.guild_id for message in state.changed.values()}
        calibrate(self.knowledge.archive, self.knowledge.retriever, guilds)

    def _valid(self, event: object) -> DiscordMessage | None:
        if not isinstance(event, DiscordMessage):
            raise InvalidEvent(f"{type(event).__name__} is not a DiscordMessage")
        if event.change is MessageChange.UNKNOWN:
            IGNORED_EVENTS.labels(topic=TOPIC, reason="unknown change").inc()
            return None
        if not event.message_id or not event.channel_id:
            raise InvalidEvent("a message without message_id or channel_id")
        if event.change is not MessageChange.DELETED and not event.author_id:
            raise InvalidEvent(f"message {event.message_id} has no author")
        return event

    def _link(self, state: _BatchState) -> set[str]:
        """Give every new message a conversation; the conversations that have to be made anew."""
        touched = {m.conversation_id for m in state.changed.values() if m.conversation_id is not None}
        by_channel: dict[str, list[StoredMessage]] = {}
        for message in state.changed.values():
            if message.conversation_id is None and not message.deleted and not message.author_is_bot:
                by_channel.setdefault(message.channel_id, []).append(message)
        for channel_id, new in by_channel.items():
            for message_id, conversation_id in self._conversations(state, channel_id, new).items():
                message = state.changed[message_id]
                state.changed[message_id] = attrs.evolve(message, conversation_id=conversation_id)
                touched.add(conversation_id)
        return touched

    def _conversations(self, state: _BatchState, channel_id: str, new: Sequence[StoredMessage]) -> Mapping[str, str]:
        channel = state.channels[channel_id]
        if in_one_conversation(channel.kind):
            return {message.message_id: thread_conversation(channel_id) for message in new}
        writing = self.knowledge.archive.writing
        ordered = sorted(new, key=lambda message: message.position)
        context = {
            message.message_id: state.changed.get(message.message_id, message)
            for message in writing.context(
                channel_id, first_at=ordered[0].created_at, last_at=ordered[-1].created_at, window=CONTEXT
            )
        }
        context |= {message.message_id: message for message in ordered}
        said = sorted(
            (message for message in context.values() if not message.deleted), key=lambda message: message.position
        )
        outside = {m.reply_to_message_id for m in new if m.reply_to_message_id} - context.keys()
        replied = {
            message.message_id: message.conversation_id
            for message in (writing.messages(outside) if outside else {}).values()
            if message.conversation_id is not None and message.channel_id == channel_id
        }
        return link([_said(message) for message in said], replied=replied)

    def _write(self, state: _BatchState, touched: set[str]) -> None:
        archive, vectors, embedding = self.knowledge.archive, self.knowledge.vectors, self.knowledge.embedding
        members = {**archive.writing.conversations(touched), **state.changed} if touched else dict(state.changed)
        old = archive.writing.passages_of(touched) if touched else {}
        wanted, passage_of, texts_of = _passages(members.values(), touched, state.channels)

        fresh = [
            passage
            for passage in wanted
            if (before := old.get(passage.passage_id)) is None or _differs(before, passage, with_vector=bool(embedding))
        ]
        spoken = {message_id: texts_of[message_id] for message_id in state.changed if message_id in passage_of}
        message_vectors: dict[str, bytes] = {}
        gone = [passage for passage_id, passage in old.items() if passage_id not in {p.passage_id for p in wanted}]
        if embedding is not None:
            texts = [passage.text for passage in fresh]
            found = embedding.embed([*texts, *spoken.values()])
            entries: dict[str, list[Entry]] = {}
            for number, passage in enumerate(fresh):
                fresh[number] = attrs.evolve(passage, vector=to_bytes(found[number]))
                entries.setdefault(passage.guild_id, []).append(
                    Entry(
                        entry_id=passage_entry(passage.passage_id), passage_id=passage.passage_id, vector=found[number]
                    )
                )
            for message_id, vector in zip(spoken, found[len(texts) :], strict=True):
                message_vectors[message_id] = to_bytes(vector)
                passage_id = passage_of[message_id]
                entries.setdefault(members[message_id].guild_id, []).append(
                    Entry(entry_id=message_entry(message_id), passage_id=passage_id or "", vector=vector)
                )
            for guild_id, batch in entries.items():
                vectors.upsert(guild_id, batch)
            for guild_id, ids in _removals(gone, state.changed.values(), spoken).items():
                vectors.delete(guild_id, ids)
        archive.writing.write(
            Change(
                channels=list(state.touched_channels.values()),
                messages=list(state.changed.values()),
                message_vectors=message_vectors,
                passage_of_message={message_id: passage_of.get(message_id) for message_id in members},
                passages=fresh,
                replaced_passages=[old[passage.passage_id] for passage in fresh if passage.passage_id in old],
                removed_passages=gone,
            )
        )


def _apply(state: _BatchState, event: DiscordMessage, erasures: Erasures) -> None:
    guild_id = guild_key(event.guild_id)
    known = state.channels.get(event.channel_id)
    channel = Channel(
        channel_id=event.channel_id,
        guild_id=guild_id,
        parent_channel_id=event.parent_channel_id,
        kind=event.channel_kind,
        name=_storable(event.channel_name) if event.channel_name else known.name if known else None,
    )
    if erasures.covers(
        guild_id=guild_id,
        channel_id=event.channel_id,
        parent_channel_id=event.parent_channel_id or (known.parent_channel_id if known else None),
        author_id=event.author_id,
        created_at=event.created_at,
    ):
        IGNORED_EVENTS.labels(topic=TOPIC, reason="erased").inc()
        return
    before = state.messages.get(event.message_id)
    after = _deleted(event, before) if event.change is MessageChange.DELETED else _said_anew(event, before)
    if known is None or (channel != known and channel.kind is not ChannelKind.UNKNOWN):
        state.channels[event.channel_id] = channel
        state.touched_channels[event.channel_id] = channel
    if after is not None:
        state.messages[event.message_id] = after
        state.changed[event.message_id] = after
        state.change_names.append(event.change.value)


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
                "content_type": attachment.content_type,
                "size_bytes": attachment.size_bytes,
                "text": _storable(attachment.text[:MAX_TEXT_CHARACTERS]) if attachment.text else None,
            }
            for attachment in event.attachments
        ],
        conversation_id=before.conversation_id if before else None,
    )


def _deleted(event: DiscordMessage, before: StoredMessage | None) -> StoredMessage | None:
    """The tombstone: without author and content, but in its conversation, so that what is left can be made anew."""
    if before is not None and before.deleted:
        return None
    return StoredMessage(
        message_id=event.message_id,
        guild_id=before.guild_id if before else guild_key(event.guild_id),
        channel_id=event.channel_id,
        author_id=None,
        author_name=None,
        author_is_bot=False,
        content="",
        created_at=before.created_at if before else event.created_at,
        edited_at=None,
        version=before.version if before else 0,
        deleted=True,
        reply_to_message_id=None,
        mentioned_user_ids=[],
        attachments=[],
        conversation_id=before.conversation_id if before else None,
    )


def _passages(
    members: Iterable[StoredMessage], touched: set[str], channels: Mapping[str, Channel]
) -> tuple[list[StoredPassage], dict[str, str], dict[str, str]]:
    """The passages of the touched conversations; message id → passage id; message id → what is searched of it."""
    conversations: dict[str, list[StoredMessage]] = {conversation_id: [] for conversation_id in touched}
    for message in members:
        if message.conversation_id in conversations and not message.deleted and not message.author_is_bot:
            conversations[message.conversation_id].append(message)
    made: list[StoredPassage] = []
    passage_of: dict[str, str] = {}
    texts_of: dict[str, str] = {}
    for conversation_id, messages in conversations.items():
        messages.sort(key=lambda message: message.position)
        names = [message.author_name for message in messages if message.author_name]
        lines = [
            Line(
                message_id=message.message_id,
                text=_searched(message, names),
                created_at=message.created_at,
            )
            for message in messages
        ]
        texts_of |= {line.message_id: line.text for line in lines}
        for part in passages(conversation_id, lines):
            made.append(_stored(part, conversation_id, channels[messages[0].channel_id]))
            passage_of |= dict.fromkeys(part.message_ids, part.passage_id)
    return made, passage_of, texts_of


def _searched(message: StoredMessage, names: Sequence[str]) -> str:
    """What is searched of a message: its words and those of its text files, without names and secrets."""
    said = spoken_text(message.content, names)
    texts = [str(attachment["text"]) for attachment in message.attachments if attachment.get("text")]
    return scrub("\n".join(filter(None, [said, *texts])))


def _stored(part: PassageText, conversation_id: str, channel: Channel) -> StoredPassage:
    return StoredPassage(
        passage_id=part.passage_id,
        conversation_id=conversation_id,
        guild_id=channel.guild_id,
        channel_id=channel.channel_id,
        acl_channel_id=channel.acl_channel_id,
        text=part.text,
        vector=None,
        first_at=part.first_at,
        last_at=part.last_at,
    )


def _differs(before: StoredPassage, after: StoredPassage, *, with_vector: bool) -> bool:
    if with_vector and before.vector is None:
        return True
    return attrs.evolve(before, vector=None) != attrs.evolve(after, vector=None)


def _removals(
    gone: Sequence[StoredPassage], changed: Iterable[StoredMessage], spoken: Mapping[str, str]
) -> dict[str, list[str]]:
    ids: dict[str, list[str]] = {}
    for passage in gone:
        ids.setdefault(passage.guild_id, []).append(passage_entry(passage.passage_id))
    for message in changed:
        if message.message_id not in spoken and (message.deleted or message.version != 2 * message.created_at):
            ids.setdefault(message.guild_id, []).append(message_entry(message.message_id))
    return ids


def _said(message: StoredMessage) -> Said:
    return Said(
        message_id=message.message_id,
        author_id=message.author_id or "",
        author_name=message.author_name,
        content=message.content,
        mentioned_user_ids=message.mentioned_user_ids,
        reply_to_message_id=message.reply_to_message_id,
        conversation_id=message.conversation_id,
    )


def _storable(text: str) -> str:
    """PostgreSQL stores no NUL, and UTF-8 no half of a surrogate pair."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)
