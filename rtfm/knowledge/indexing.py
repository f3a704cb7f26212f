"""Indexing: links changed messages to conversations and updates the passages and vectors of those conversations.

A batch is written in three steps: one embedding call, the changes in Chroma, and one transaction of the archive. The
archive comes last because a batch counts as done when its transaction is committed. If a step fails, the batch is
repeated. The entries of a batch have the same ids each time, so the repetition replaces the entries that the failed
attempt has written. The caller decides which version of a message is the newest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import attrs
from attrs import define, field

from rtfm.errors import Unavailable
from rtfm.knowledge.archive import (
    Change,
    Channel,
    CollectionChanged,
    GuildCollection,
    Place,
    SqlArchive,
    StoredMessage,
    StoredPassage,
)
from rtfm.knowledge.conversations import ConversationLine, build_passages, spoken_text
from rtfm.knowledge.embedding import Embedding, is_compatible
from rtfm.knowledge.entries import message_entry, passage_entry
from rtfm.knowledge.float32 import Vectors, to_bytes
from rtfm.knowledge.linking import CONTEXT, LEARNED_WEIGHTS, is_one_conversation, link, thread_conversation_id
from rtfm.knowledge.vectors import ChromaVectors, VectorEntry, WrongCollection
from rtfm.scrubbing import scrub
from rtfm.telemetry import get_logger

RULES = f"4-{hashlib.sha256(repr(tuple(LEARNED_WEIGHTS.values())).encode()).hexdigest()[:8]}"
"""The version of linking, splitting, scrubbing and terms, with a digest of the linker's weights.

Raise the number when a change of one of these makes other conversations, passages or terms from the same messages."""

_log = get_logger(__name__)


@define(kw_only=True)
class BatchState:
    """The state of a batch while it is indexed.

    ``messages`` and ``channels`` are the messages and channels of the batch. They are read from the archive and updated
    by each event that is applied. ``changed`` and ``touched_channels`` are the messages and channels to write.
    """

    messages: dict[str, StoredMessage] = field(factory=dict)
    channels: dict[Place, Channel]
    changed: dict[str, StoredMessage] = field(factory=dict)
    touched_channels: dict[Place, Channel] = field(factory=dict)


@define
class Indexer:
    """Indexes batches in the archive and Chroma. If ``embedding`` is None, passages and messages get no vectors."""

    _archive: SqlArchive
    _vectors: ChromaVectors
    _embedding: Embedding | None

    def index(self, state: BatchState) -> None:
        """Link the changed messages, and update passages and vectors.

        Raises Unavailable when a store does not respond, and CollectionChanged when a rebuild switched a guild to
        another collection during the call. After CollectionChanged, the caller must read the state of the batch again
        and repeat the whole batch, because a rebuild may move messages to other conversations.
        """
        collections = self._find_collections(state)
        try:
            self._write(state, self._link(state), collections)
        except (CollectionChanged, Unavailable) as exc:
            replaced = self._find_replaced(collections)
            for collection in replaced:
                # The rebuild has deleted this collection, but the batch may have created it again, so it is deleted
                # here. If this fails, the next rebuild deletes the collection.
                with suppress(Unavailable):
                    self._vectors.forget(collection.guild_id, collection.generation)
            if replaced and isinstance(exc, Unavailable):
                raise CollectionChanged(f"{exc}; the collection was replaced") from exc
            raise

    def _find_replaced(self, collections: Mapping[str, GuildCollection]) -> list[GuildCollection]:
        now = self._archive.collections.find(collections)
        return [
            collection
            for guild_id, collection in collections.items()
            if guild_id in now and now[guild_id].generation > collection.generation
        ]

    def _link(self, state: BatchState) -> set[str]:
        """Assign a conversation to each new message. Return the conversations whose passages must be built again."""
        touched = {m.conversation_id for m in state.changed.values() if m.conversation_id is not None}
        by_channel: dict[Place, list[StoredMessage]] = {}
        for message in state.changed.values():
            if message.conversation_id is None and not message.deleted and not message.author_is_bot:
                by_channel.setdefault(message.place, []).append(message)
        for place, new in by_channel.items():
            for message_id, conversation_id in self._link_channel(state, place, new).items():
                message = state.changed[message_id]
                state.changed[message_id] = attrs.evolve(message, conversation_id=conversation_id)
                touched.add(conversation_id)
        return touched

    def _link_channel(self, state: BatchState, place: Place, new: Sequence[StoredMessage]) -> Mapping[str, str]:
        if is_one_conversation(state.channels[place].kind):
            return {message.message_id: thread_conversation_id(*place) for message in new}
        writing = self._archive.writing
        ordered = sorted(new, key=lambda message: message.position)
        context = {
            message.message_id: state.changed.get(message.message_id, message)
            for message in writing.context(
                place, first_at=ordered[0].created_at, last_at=ordered[-1].created_at, window=CONTEXT
            )
        }
        context |= {message.message_id: message for message in ordered}
        ordered_context = sorted(
            (message for message in context.values() if not message.deleted), key=lambda message: message.position
        )
        outside = {m.reply_to_message_id for m in new if m.reply_to_message_id} - context.keys()
        replied = {
            message.message_id: message.conversation_id
            for message in (writing.messages(outside) if outside else {}).values()
            if message.conversation_id is not None and message.place == place
        }
        return link(ordered_context, replied=replied)

    def _write(self, state: BatchState, touched: set[str], collections: Mapping[str, GuildCollection]) -> None:
        writing = self._archive.writing
        members = {**writing.conversation_messages(touched), **state.changed} if touched else dict(state.changed)
        old = writing.passages_of(touched) if touched else {}
        passages, passage_of, texts_of = _build_passages(members.values(), touched, state.channels)
        with_vectors = {guild_id for guild_id, found in collections.items() if is_compatible(found, self._embedding)}

        changed = [
            passage
            for passage in passages
            if (before := old.get(passage.passage_id)) is None
            or _is_changed(before, passage, with_vector=passage.guild_id in with_vectors)
        ]
        removed = [passage for passage_id, passage in old.items() if passage_id not in {p.passage_id for p in passages}]
        with_text = [message for message in state.changed.values() if message.message_id in texts_of]
        vector_of = self._embed(
            {passage_entry(p.passage_id): p.text for p in changed if p.guild_id in with_vectors}
            | {message_entry(m.message_id): texts_of[m.message_id] for m in with_text if m.guild_id in with_vectors}
        )
        passage_of_entry = {passage_entry(passage.passage_id): passage.passage_id for passage in changed}
        passage_of_entry |= {message_entry(message.message_id): passage_of[message.message_id] for message in with_text}
        for guild_id, collection in collections.items():
            # The guild's entries that this batch affects. Entries with a vector are written to Chroma, and entries
            # without a vector are deleted from Chroma.
            touched_ids = {passage_entry(p.passage_id) for p in [*removed, *changed] if p.guild_id == guild_id}
            touched_ids |= {
                message_entry(m.message_id)
                for m in state.changed.values()
                if m.guild_id == guild_id and _may_be_indexed(m)
            }
            touched_ids |= {message_entry(m.message_id) for m in with_text if m.guild_id == guild_id}
            self._write_vectors(
                collection,
                [
                    VectorEntry(entry_id=entry_id, passage_id=passage_of_entry[entry_id], vector=vector_of[entry_id])
                    for entry_id in passage_of_entry
                    if entry_id in touched_ids and entry_id in vector_of
                ],
                sorted(touched_ids - vector_of.keys()),
            )
        changed = [
            attrs.evolve(p, vector=_to_optional_bytes(vector_of.get(passage_entry(p.passage_id)))) for p in changed
        ]
        writing.write(
            Change(
                channels=list(state.touched_channels.values()),
                messages=list(state.changed.values()),
                collections=list(collections.values()),
                message_vectors={
                    message.message_id: to_bytes(vector_of[message_entry(message.message_id)])
                    for message in with_text
                    if message_entry(message.message_id) in vector_of
                },
                passage_of_message={message_id: passage_of.get(message_id) for message_id in members},
                passages=changed,
                removed_passage_ids=[passage.passage_id for passage in removed],
            )
        )

    def _find_collections(self, state: BatchState) -> dict[str, GuildCollection]:
        """Return the collections of the guilds of a batch; a guild without a collection gets its first one."""
        guild_ids = {message.guild_id for message in state.changed.values()}
        guild_ids |= {channel.guild_id for channel in state.touched_channels.values()}
        known = self._archive.collections.find(guild_ids)
        return {
            guild_id: known.get(guild_id) or build_first_collection(guild_id, self._embedding) for guild_id in guild_ids
        }

    def _embed(self, texts: Mapping[str, str]) -> dict[str, Vectors]:
        if self._embedding is None or not texts:
            return {}
        return dict(zip(texts, self._embedding.embed(list(texts.values())), strict=True))

    def _write_vectors(
        self, collection: GuildCollection, entries: Sequence[VectorEntry], removed: Sequence[str]
    ) -> None:
        if collection.model is None:
            return
        try:
            # The entries of removed messages are deleted first. So they are deleted even if writing the new vectors
            # fails.
            self._vectors.delete(collection.guild_id, removed, generation=collection.generation)
            self._vectors.upsert(collection.guild_id, entries, generation=collection.generation, model=collection.model)
        except WrongCollection as exc:
            # No vector is lost, because the archive stores all of them.
            _log.warning("vectors not written to Chroma, a rebuild is due", reason=str(exc), hint=exc.hint)


def build_first_collection(guild_id: str, embedding: Embedding | None) -> GuildCollection:
    """Return the first collection of a guild, for the current model and rules."""
    return GuildCollection(
        guild_id=guild_id,
        model=embedding.name if embedding else None,
        dimension=embedding.dimension if embedding else None,
        rules=RULES,
    )


def _build_passages(
    members: Iterable[StoredMessage], touched: set[str], channels: Mapping[Place, Channel]
) -> tuple[list[StoredPassage], dict[str, str], dict[str, str]]:
    """Build the passages of the touched conversations.

    Returns the passages, the passage id of each message, and the text of each message that gets a vector of its own.
    The passage id of a long message, which is split into parts, is that of its first part. A long message has no vector
    of its own, because its parts have vectors.
    """
    conversations: dict[str, list[StoredMessage]] = {conversation_id: [] for conversation_id in touched}
    for message in members:
        if message.conversation_id in conversations and not message.deleted and not message.author_is_bot:
            conversations[message.conversation_id].append(message)
    passages: list[StoredPassage] = []
    passage_of: dict[str, str] = {}
    texts_of: dict[str, str] = {}
    for conversation_id, messages in conversations.items():
        messages.sort(key=lambda message: message.position)
        names = [message.author_name for message in messages if message.author_name]
        lines = [
            ConversationLine(
                message_id=message.message_id,
                # Secrets are removed before the text is split, because a part of a secret would not be recognised.
                text=scrub(spoken_text(message.content, names)),
                created_at=message.created_at,
                files=tuple(
                    scrub(f"{attachment['filename']}\n{attachment['text']}")
                    for attachment in message.attachments
                    if str(attachment.get("text") or "").strip()
                ),
            )
            for message in messages
        ]
        if lines:
            found, passage_of_message = build_passages(conversation_id, lines, channels[messages[0].place])
            passages += found
            passage_of |= passage_of_message
        texts_of |= {line.message_id: line.text for line in lines if line.is_whole}
    return passages, passage_of, texts_of


def _is_changed(before: StoredPassage, after: StoredPassage, *, with_vector: bool) -> bool:
    if with_vector and before.vector is None:
        return True
    return attrs.evolve(before, vector=None) != attrs.evolve(after, vector=None)


def _may_be_indexed(message: StoredMessage) -> bool:
    """Whether the message is deleted or edited, so that Chroma may have an entry of an earlier version."""
    return message.deleted or message.version != 2 * message.created_at


def _to_optional_bytes(vector: Vectors | None) -> bytes | None:
    return None if vector is None else to_bytes(vector)
