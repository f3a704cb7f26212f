"""From changed messages to what retrieval can find: which conversations they touch, their passages, and the vectors.

Owns the order of a batch's last steps: one embedding call, Chroma, then one archive transaction. Chroma comes first
because the archive decides what counts as done: whatever fails before its transaction is simply done again, with the
same ids. Promises that a batch indexed twice leaves everything as it was. Does not decide which version of a message is
the newest.
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
from rtfm.knowledge.conversations import Line, passages, spoken_text
from rtfm.knowledge.embedding import Embedding, serves
from rtfm.knowledge.entries import message_entry, passage_entry
from rtfm.knowledge.float32 import Vectors, to_bytes
from rtfm.knowledge.linking import CONTEXT, LEARNED, in_one_conversation, link, thread_conversation
from rtfm.knowledge.vectors import ChromaVectors, Entry, WrongCollection
from rtfm.scrubbing import scrub
from rtfm.telemetry import get_logger

RULES = f"4-{hashlib.sha256(repr(tuple(LEARNED.values())).encode()).hexdigest()[:8]}"
"""Version of linking, splitting, scrubbing and terms, with the linker's weights: raise the number when one of them
makes something else of the same messages."""

_log = get_logger(__name__)


@define(kw_only=True)
class BatchState:
    """One batch on its way: what is known of its messages and channels, the archive's state overlaid with changes."""

    messages: dict[str, StoredMessage] = field(factory=dict)
    channels: dict[Place, Channel]
    changed: dict[str, StoredMessage] = field(factory=dict)
    touched_channels: dict[Place, Channel] = field(factory=dict)


@define
class Indexer:
    """Writes batches to the archive and Chroma. ``embedding`` None gives texts no vectors."""

    _archive: SqlArchive
    _vectors: ChromaVectors
    _embedding: Embedding | None

    def index(self, state: BatchState) -> None:
        """Link the changed messages, and bring passages and vectors up to date with them.

        Raises Unavailable when a store does not answer, CollectionChanged when a rebuild has switched a guild
        meanwhile: then the whole batch must be begun again, since messages may be in other conversations by now.
        """
        collections = self._collections(state)
        try:
            self._write(state, self._link(state), collections)
        except (CollectionChanged, Unavailable) as exc:
            stale = self._replaced(collections)
            for collection in stale:
                # What was written to it after it went would stay for ever. If Chroma cannot, the next rebuild does it.
                with suppress(Unavailable):
                    self._vectors.forget(collection.guild_id, collection.generation)
            if stale and isinstance(exc, Unavailable):
                raise CollectionChanged(f"{exc}; it was replaced") from exc
            raise

    def _replaced(self, collections: Mapping[str, GuildCollection]) -> list[GuildCollection]:
        now = self._archive.collections.find(collections)
        return [
            collection
            for guild_id, collection in collections.items()
            if guild_id in now and now[guild_id].generation > collection.generation
        ]

    def _link(self, state: BatchState) -> set[str]:
        """Give every new message a conversation; the conversations that have to be made anew."""
        touched = {m.conversation_id for m in state.changed.values() if m.conversation_id is not None}
        by_channel: dict[Place, list[StoredMessage]] = {}
        for message in state.changed.values():
            if message.conversation_id is None and not message.deleted and not message.author_is_bot:
                by_channel.setdefault(message.place, []).append(message)
        for place, new in by_channel.items():
            for message_id, conversation_id in self._conversations(state, place, new).items():
                message = state.changed[message_id]
                state.changed[message_id] = attrs.evolve(message, conversation_id=conversation_id)
                touched.add(conversation_id)
        return touched

    def _conversations(self, state: BatchState, place: Place, new: Sequence[StoredMessage]) -> Mapping[str, str]:
        if in_one_conversation(state.channels[place].kind):
            return {message.message_id: thread_conversation(*place) for message in new}
        writing = self._archive.writing
        ordered = sorted(new, key=lambda message: message.position)
        context = {
            message.message_id: state.changed.get(message.message_id, message)
            for message in writing.context(
                place, first_at=ordered[0].created_at, last_at=ordered[-1].created_at, window=CONTEXT
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
            if message.conversation_id is not None and message.place == place
        }
        return link(said, replied=replied)

    def _write(self, state: BatchState, touched: set[str], collections: Mapping[str, GuildCollection]) -> None:
        writing = self._archive.writing
        members = {**writing.conversation_messages(touched), **state.changed} if touched else dict(state.changed)
        old = writing.passages_of(touched) if touched else {}
        wanted, passage_of, texts_of = _passages(members.values(), touched, state.channels)
        with_vectors = {guild_id for guild_id, found in collections.items() if serves(found, self._embedding)}

        fresh = [
            passage
            for passage in wanted
            if (before := old.get(passage.passage_id)) is None
            or _differs(before, passage, with_vector=passage.guild_id in with_vectors)
        ]
        gone = [passage for passage_id, passage in old.items() if passage_id not in {p.passage_id for p in wanted}]
        spoken = [message for message in state.changed.values() if message.message_id in texts_of]
        vector_of = self._embedded(
            {passage_entry(p.passage_id): p.text for p in fresh if p.guild_id in with_vectors}
            | {message_entry(m.message_id): texts_of[m.message_id] for m in spoken if m.guild_id in with_vectors}
        )
        leads_to = {passage_entry(passage.passage_id): passage.passage_id for passage in fresh}
        leads_to |= {message_entry(message.message_id): passage_of[message.message_id] for message in spoken}
        for guild_id, collection in collections.items():
            # What is in Chroma and has no vector any more: what is gone, and what changed where texts get no vectors.
            stale = {passage_entry(p.passage_id) for p in [*gone, *fresh] if p.guild_id == guild_id}
            stale |= {message_entry(m.message_id) for m in state.changed.values() if m.guild_id == guild_id and _old(m)}
            stale |= {message_entry(m.message_id) for m in spoken if m.guild_id == guild_id}
            self._put(
                collection,
                [
                    Entry(entry_id=entry_id, passage_id=leads_to[entry_id], vector=vector_of[entry_id])
                    for entry_id in leads_to
                    if entry_id in stale and entry_id in vector_of
                ],
                sorted(stale - vector_of.keys()),
            )
        fresh = [attrs.evolve(p, vector=_bytes(vector_of.get(passage_entry(p.passage_id)))) for p in fresh]
        writing.write(
            Change(
                channels=list(state.touched_channels.values()),
                messages=list(state.changed.values()),
                collections=list(collections.values()),
                message_vectors={
                    message.message_id: to_bytes(vector_of[message_entry(message.message_id)])
                    for message in spoken
                    if message_entry(message.message_id) in vector_of
                },
                passage_of_message={message_id: passage_of.get(message_id) for message_id in members},
                passages=fresh,
                removed_passage_ids=[passage.passage_id for passage in gone],
            )
        )

    def _collections(self, state: BatchState) -> dict[str, GuildCollection]:
        """The collections of the guilds that a batch changes; one that has none yet gets one of this model."""
        guild_ids = {message.guild_id for message in state.changed.values()}
        guild_ids |= {channel.guild_id for channel in state.touched_channels.values()}
        known = self._archive.collections.find(guild_ids)
        return {guild_id: known.get(guild_id) or first_collection(guild_id, self._embedding) for guild_id in guild_ids}

    def _embedded(self, texts: Mapping[str, str]) -> dict[str, Vectors]:
        if self._embedding is None or not texts:
            return {}
        return dict(zip(texts, self._embedding.embed(list(texts.values())), strict=True))

    def _put(self, collection: GuildCollection, entries: Sequence[Entry], gone: Sequence[str]) -> None:
        if collection.model is None:
            return
        try:
            self._vectors.upsert(collection.guild_id, entries, generation=collection.generation, model=collection.model)
            self._vectors.delete(collection.guild_id, gone, generation=collection.generation)
        except WrongCollection as exc:
            # Chroma holds nothing that the archive does not hold: nothing is lost by going on.
            _log.warning("Chroma is passed over", reason=str(exc), mend=exc.hint)


def first_collection(guild_id: str, embedding: Embedding | None) -> GuildCollection:
    """What a guild without a collection gets."""
    return GuildCollection(
        guild_id=guild_id,
        model=embedding.name if embedding else None,
        dimension=embedding.dimension if embedding else None,
        rules=RULES,
    )


def _passages(
    members: Iterable[StoredMessage], touched: set[str], channels: Mapping[Place, Channel]
) -> tuple[list[StoredPassage], dict[str, str], dict[str, str]]:
    """The passages of the touched conversations; message id → passage id; message id → what is embedded of it alone.

    A message of parts leads to its first one, and has no vector beside theirs.
    """
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
                # Before it is cut: half of a secret is not recognised.
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
            found, leads_to = passages(conversation_id, lines, channels[messages[0].place])
            made += found
            passage_of |= leads_to
        texts_of |= {line.message_id: line.text for line in lines if line.whole}
    return made, passage_of, texts_of


def _differs(before: StoredPassage, after: StoredPassage, *, with_vector: bool) -> bool:
    if with_vector and before.vector is None:
        return True
    return attrs.evolve(before, vector=None) != attrs.evolve(after, vector=None)


def _old(message: StoredMessage) -> bool:
    """Whether the message may have been indexed before: it is deleted or edited."""
    return message.deleted or message.version != 2 * message.created_at


def _bytes(vector: Vectors | None) -> bytes | None:
    return None if vector is None else to_bytes(vector)
