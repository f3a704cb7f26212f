"""Makes a guild's vectors again in a new collection of Chroma, and lets it take the place of the old one.

Owns the choice of what has to be done: copy the vectors that the archive keeps (Chroma lost some), make them anew
(another model, or none when the texts came), or make the conversations anew as well (other rules of linking and
splitting). Until the switch everybody searches and writes what was there before; what ingest wrote meanwhile is made up
for, the last of it while ingest waits. Promises that a rebuild which dies leaves the old collection in use, and in the
archive nothing; what it leaves in Chroma the next one removes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import attrs
from attrs import frozen

from rtfm.errors import ConfigError
from rtfm.knowledge import Knowledge, Retriever
from rtfm.knowledge.archive import GuildCollection, SqlArchive, StoredMessage
from rtfm.knowledge.archive.staging import Staging, open_staging
from rtfm.knowledge.embedding import model_name, same_model
from rtfm.knowledge.entries import TABLES, Table, entry_id, row_ids
from rtfm.knowledge.float32 import from_bytes
from rtfm.knowledge.floor import calibrate
from rtfm.knowledge.indexing import RULES, BatchState, Indexer, first_collection
from rtfm.knowledge.vectors import ChromaVectors, Entry
from rtfm.settings import Settings

BATCH = 500
"""Messages or vectors that are read and written at once."""

_ROUNDS = 5
"""Times that is caught up with ingest before it has to wait for the rest."""

Work = Literal["nothing", "clean", "copy", "embed", "link"]
"""Nothing; remove what an earlier rebuild left; copy vectors; make them anew; make conversations anew, too."""

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, how much there is."""


@frozen(kw_only=True)
class Plan:
    """What is to be done for a guild ('' for direct messages), and why.

    ``entries`` are the vectors that the archive holds, ``missing`` those of them that Chroma does not, ``superfluous``
    what it holds beside them, ``left_over`` its collections that an earlier rebuild left.
    """

    guild_id: str
    work: Work
    why: str
    messages: int
    passages: int
    without_vectors: int
    entries: int
    missing: int
    superfluous: int
    left_over: Sequence[int]
    collection: GuildCollection

    @property
    def changes(self) -> int:
        """What would be different afterwards: vectors that are made, come back or go, and collections that go."""
        made = {"embed": self.passages, "link": self.passages}.get(self.work, self.missing + self.superfluous)
        return made + len(self.left_over)


def plan(knowledge: Knowledge, guild_id: str, *, force: bool = False) -> Plan:
    """What is to be done for a guild; ``force`` makes anew even what is right.

    Raises Unavailable when a store does not answer, ConfigError when a model is needed and there is none.
    """
    archive, embedding = knowledge.archive, knowledge.embedding
    known = archive.collections.find([guild_id]).get(guild_id)
    passages, without = archive.collections.count_passages(guild_id)
    collection = known or first_collection(guild_id, embedding)
    entries: set[str] = set()
    found: set[str] = set()
    left_over: list[int] = []
    if passages > without or collection.model is not None:
        entries = archive.collections.entry_ids(guild_id)
        found = knowledge.vectors.entry_ids(guild_id, generation=collection.generation, model=collection.model or "")
        there = knowledge.vectors.generations(guild_id)
        left_over = [generation for generation in there if generation != collection.generation]
    made = Plan(
        guild_id=guild_id,
        work="nothing",
        why="nothing to do",
        messages=archive.collections.count_messages(guild_id),
        passages=passages,
        without_vectors=without,
        entries=len(entries),
        missing=len(entries - found),
        superfluous=len(found - entries),
        left_over=left_over,
        collection=collection,
    )
    model = embedding.name if embedding else None
    work, why = _why(collection, model, passages=passages, without=without) or _lost(made, force=force)
    if work in ("embed", "link") and embedding is None and entries:
        raise ConfigError(
            f"guild {guild_id or 'of direct messages'}: {why}, and there is no embedding model",
            hint="`rtfm-cli doctor --fetch-model` fetches it, or set RTFM_EMBEDDING_MODEL_DIR.",
        )
    return attrs.evolve(made, work=work, why=why)


def due(archive: SqlArchive, vectors: ChromaVectors, model: str | None) -> dict[str, str]:
    """Why a rebuild is due, by guild ('' for direct messages); counts only, so that it is quick.

    ``model`` is the name of the embedding model, None without one.
    """
    found = {}
    for guild_id in [*archive.guilds(), ""]:
        passages, without = archive.collections.count_passages(guild_id)
        collection = archive.collections.find([guild_id]).get(guild_id)
        if collection is None or not passages:
            continue
        reason = _why(collection, model, passages=passages, without=without)
        if reason is None and collection.model is not None:
            there = vectors.count(guild_id, generation=collection.generation)
            kept = archive.collections.count_entries(guild_id)
            if there != kept:
                reason = ("copy", f"vectors lost: Chroma has {there} of {kept}")
        if reason is not None:
            found[guild_id] = reason[1]
    return found


def outdated(archive: SqlArchive, model: str | None) -> dict[str, str]:
    """``due`` by what is recorded of each guild's vectors alone: nothing is counted, so size costs nothing."""
    recorded = archive.collections.find([*archive.guilds(), ""])
    return {guild_id: why[1] for guild_id, one in recorded.items() if (why := _outdated(one, model))}


def due_by(settings: Settings) -> dict[str, str]:
    """``due`` for the stores and the model of the settings; the model is not loaded.

    Raises Unavailable when a store does not answer, ConfigError for an archive that is not of this version.
    """
    archive = SqlArchive(settings.database_url)
    vectors = ChromaVectors(settings.chroma_url, settings.kafka_topic_prefix)
    try:
        return due(archive, vectors, model_name(settings))
    finally:
        vectors.close()
        archive.close()


def _why(collection: GuildCollection, model: str | None, *, passages: int, without: int) -> tuple[Work, str] | None:
    """What the archive alone makes necessary."""
    if not passages:
        return None
    if (why := _outdated(collection, model)) is not None:
        return why
    if without and model is not None:
        return "embed", f"{without} of {passages} texts have no vectors"
    return None


def _outdated(collection: GuildCollection, model: str | None) -> tuple[Work, str] | None:
    if collection.rules != RULES:
        return "link", f"rules differ: conversations were made by {collection.rules}, these are {RULES}"
    if model is not None and not same_model(collection.model, model):
        if collection.model is None:
            return "embed", "texts have no vectors: there was no embedding model when they came"
        return "embed", f"model differs: the vectors are of {collection.model}, the model is {model}"
    return None


def _lost(made: Plan, *, force: bool) -> tuple[Work, str]:
    """What Chroma makes necessary."""
    if made.missing or made.superfluous:
        return "copy", f"vectors lost: Chroma misses {made.missing} and has {made.superfluous} that should not be there"
    if force and made.messages:
        return "link", "asked for"
    if made.left_over:
        return "clean", "an earlier rebuild left something in Chroma"
    return "nothing", "nothing to do"


def rebuild(knowledge: Knowledge, todo: Plan, *, progress: Progress = lambda *_: None) -> None:
    """Do what was planned for a guild. Nothing that is searched changes before it is complete.

    Raises Unavailable when a store does not answer, ConfigError when the guild is being rebuilt by somebody else. After
    either, the old collection is in use.
    """
    if todo.work == "nothing":
        return
    guild_id, now = todo.guild_id, todo.collection
    with open_staging(knowledge.archive, guild_id) as staging:
        current = knowledge.archive.collections.find([guild_id]).get(guild_id, now)
        if current.generation != now.generation:
            raise ConfigError(f"guild {guild_id} was rebuilt by somebody else", hint="Look again with --dry-run.")
        for generation in todo.left_over:
            knowledge.vectors.forget(guild_id, generation)
        if todo.work == "clean":
            return
        if todo.work == "copy":
            _copy(knowledge, staging, attrs.evolve(now, generation=now.generation + 1), todo, progress)
        else:
            made = attrs.evolve(first_collection(guild_id, knowledge.embedding), generation=now.generation + 1)
            making = _Making(knowledge=knowledge, staging=staging, new=made, relink=todo.work == "link")
            making.run(todo, progress)
        knowledge.vectors.forget(guild_id, now.generation)


def _copy(knowledge: Knowledge, staging: Staging, new: GuildCollection, todo: Plan, progress: Progress) -> None:
    archive, guild_id = knowledge.archive.collections, new.guild_id

    def put(table: Table, ids: Iterable[str]) -> int:
        stored = archive.vectors_of(table, ids)
        rows = from_bytes([one.vector for one in stored])
        entries = [
            Entry(entry_id=entry_id(table, one.id), passage_id=one.passage_id, vector=row)
            for one, row in zip(stored, rows, strict=True)
        ]
        knowledge.vectors.upsert(guild_id, entries, generation=new.generation, model=new.model or "")
        staging.record_copied(
            [(entry.entry_id, one.passage_id, one.vector) for entry, one in zip(entries, stored, strict=True)]
        )
        return len(stored)

    def catch_up() -> int:
        gone = staging.drop_obsolete()
        knowledge.vectors.delete(guild_id, gone, generation=new.generation)
        wanted = staging.find_uncopied()
        for ids in _batches(wanted):
            for table in TABLES:
                put(table, row_ids(table, ids))
        return len(gone) + len(wanted)

    staging.record_copied([])
    done = 0
    for table in TABLES:
        after = ""
        while ids := archive.ids_with_vectors(table, guild_id, after, limit=BATCH):
            after = ids[-1]
            done += put(table, ids)
            progress("Copying", done, max(todo.entries, done))
    _caught_up(catch_up)
    with staging.archive.collections.block_ingest(guild_id):
        catch_up()
        staging.switch_collection(new)


def _batches(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[start : start + BATCH] for start in range(0, len(ids), BATCH))


def _caught_up(catch_up: Callable[[], int]) -> None:
    """Catch up until little is left, which ingest then waits for."""
    for _ in range(_ROUNDS):
        if catch_up() <= BATCH:
            return


@frozen(kw_only=True)
class _Making:
    """Passages and vectors on their way into staging."""

    _knowledge: Knowledge
    _staging: Staging
    _new: GuildCollection
    _relink: bool

    def run(self, todo: Plan, progress: Progress) -> None:
        """Make everything, and let it take the place of what is there."""
        guild_id = self._new.guild_id
        # First the channels that are gone through, so that staging knows them all.
        channels = self._knowledge.archive.channels(guild_id)
        self._staging.create_tables(self._new)
        done = 0
        for channel in channels:
            after: StoredMessage | None = None
            while messages := self._knowledge.archive.writing.channel_messages(channel.place, after, limit=BATCH):
                after = messages[-1]
                self._take(messages)
                done += len(messages)
                progress("Indexing", done, max(todo.messages, done))
            self._staging.analyze()
        _caught_up(self._catch_up)
        searched = Retriever(self._staging.archive, self._knowledge.vectors, self._knowledge.embedding)
        calibrate(self._staging.archive, searched, guild_id, anew=True)
        with self._staging.archive.collections.block_ingest(guild_id):
            self._catch_up()
            self._staging.replace_original(self._new)

    def _catch_up(self) -> int:
        wanted = self._staging.find_outdated()
        self._staging.copy_channels()
        for ids in _batches(wanted):
            now = self._knowledge.archive.writing.messages(ids)
            before = self._staging.archive.writing.messages(ids)
            gone = [
                message.tombstone()
                for message_id, message in before.items()
                if message_id not in now or now[message_id].deleted
            ]
            self._take([*(message for message in now.values() if not message.deleted), *gone])
        return len(wanted)

    def _take(self, messages: Sequence[StoredMessage]) -> None:
        writing = self._staging.archive.writing
        before = writing.messages([message.message_id for message in messages])
        state = BatchState(channels=writing.channels({message.place for message in messages}))
        for message in messages:
            if message.message_id in before:
                conversation = before[message.message_id].conversation_id
            else:
                conversation = None if self._relink else message.conversation_id
            state.changed[message.message_id] = attrs.evolve(message, conversation_id=conversation, passage_id=None)
        Indexer(self._staging.archive, self._knowledge.vectors, self._knowledge.embedding).index(state)
