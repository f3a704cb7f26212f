"""Rebuilds a guild's vectors in a new collection of Chroma, which then replaces the old collection.

This module decides how much work a guild needs:

- If Chroma lost vectors, the vectors that the archive stores are copied to a new collection.
- If the embedding model changed, or if there was no model before, all texts are embedded again.
- If the rules of linking and splitting changed, all messages are also linked again.

Searches and ingest use the old collection until the switch. The rebuild then catches up with the messages that ingest
has written in the meantime. While the rebuild catches up for the last time and switches, ingest waits.

If a rebuild is killed before the switch, the old collection stays in use and the archive is unchanged. If a rebuild is
killed before or after the switch, a collection that is not in use may be left in Chroma. The next rebuild removes this
collection.
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
from rtfm.knowledge.embedding import is_same_model, model_name
from rtfm.knowledge.entries import TABLES, Table, entry_id, row_ids
from rtfm.knowledge.float32 import from_bytes
from rtfm.knowledge.floor import calibrate
from rtfm.knowledge.indexing import RULES, BatchState, Indexer, build_first_collection
from rtfm.knowledge.vectors import ChromaVectors, VectorEntry
from rtfm.settings import Settings

BATCH = 500
"""Maximum number of messages or vectors that are read and written together."""

_MAX_CATCH_UPS = 5
"""Maximum number of times that a rebuild catches up while ingest continues. Then ingest waits for one last catch-up."""

Work = Literal["nothing", "clean", "copy", "embed", "link"]
"""The work of a rebuild.

``clean`` removes collections that an earlier rebuild left, ``copy`` copies vectors, ``embed`` embeds all texts again,
and ``link`` links all messages again and embeds all texts."""

Progress = Callable[[str, int, int], None]
"""A function that is called with the name of the step, the number of finished items, and the number of all items."""


@frozen(kw_only=True)
class RebuildPlan:
    """The work that a guild ('' for direct messages) needs, and the reason ``why``.

    ``without_vectors`` is the number of passages without a vector. ``entries`` is the number of vectors in the archive,
    ``missing`` the number of these that Chroma does not have, and ``superfluous`` the number of entries that only
    Chroma has. ``left_over`` are the generations of collections that an earlier rebuild left. ``collection`` is the
    collection in use.
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
        """An estimate of the changes in Chroma: vectors that are made, restored or removed, and collections removed."""
        vectors = {"embed": self.passages, "link": self.passages}.get(self.work, self.missing + self.superfluous)
        return vectors + len(self.left_over)


def plan(knowledge: Knowledge, guild_id: str, *, force: bool = False) -> RebuildPlan:
    """Plan the rebuild of a guild. With ``force``, a guild that is up to date is linked and embedded again.

    Raises Unavailable when a store does not respond, and ConfigError when an embedding model is needed and missing.
    """
    archive, embedding = knowledge.archive, knowledge.embedding
    known = archive.collections.find([guild_id]).get(guild_id)
    passages, without = archive.collections.count_passages(guild_id)
    collection = known or build_first_collection(guild_id, embedding)
    entries: set[str] = set()
    found: set[str] = set()
    left_over: list[int] = []
    if passages > without or collection.model is not None:
        entries = archive.collections.entry_ids(guild_id)
        found = knowledge.vectors.entry_ids(guild_id, generation=collection.generation, model=collection.model or "")
        generations = knowledge.vectors.generations(guild_id)
        left_over = [generation for generation in generations if generation != collection.generation]
    unchanged = RebuildPlan(
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
    work, why = _reason_in_archive(collection, model, passages=passages, without=without) or _reason_in_chroma(
        unchanged, force=force
    )
    if work in ("embed", "link") and embedding is None and entries:
        raise ConfigError(
            f"{f'guild {guild_id}' if guild_id else 'direct messages'}: {why}, but there is no embedding model",
            hint="Run `rtfm-cli doctor --fetch-model`, or set RTFM_EMBEDDING_MODEL_DIR.",
        )
    return attrs.evolve(unchanged, work=work, why=why)


def find_due(archive: SqlArchive, vectors: ChromaVectors, model: str | None) -> dict[str, str]:
    """Return the guilds ('' for direct messages) that need a rebuild, with the reason for each.

    ``model`` is the name of the embedding model, None if there is no model. The function is fast, because it counts
    vectors and does not compare them.
    """
    found = {}
    for guild_id in [*archive.guilds(), ""]:
        passages, without = archive.collections.count_passages(guild_id)
        collection = archive.collections.find([guild_id]).get(guild_id)
        if collection is None or not passages:
            continue
        reason = _reason_in_archive(collection, model, passages=passages, without=without)
        if reason is None and collection.model is not None:
            in_chroma = vectors.count(guild_id, generation=collection.generation)
            in_archive = archive.collections.count_entries(guild_id)
            if in_chroma != in_archive:
                reason = ("copy", f"vectors lost: Chroma has {in_chroma} of {in_archive}")
        if reason is not None:
            found[guild_id] = reason[1]
    return found


def find_outdated(archive: SqlArchive, model: str | None) -> dict[str, str]:
    """Return the guilds ('' for direct messages) with an outdated recorded model or rules, and the reason for each.

    Unlike ``find_due``, this function counts no passages or vectors. Therefore its time does not depend on the number
    of messages in the archive.
    """
    recorded = archive.collections.find([*archive.guilds(), ""])
    return {
        guild_id: reason[1]
        for guild_id, collection in recorded.items()
        if (reason := _reason_in_record(collection, model))
    }


def find_due_for(settings: Settings) -> dict[str, str]:
    """Call ``find_due`` with the stores and the embedding model of the settings. The model is not loaded.

    Raises Unavailable when a store does not respond, and ConfigError for an archive of another version.
    """
    archive = SqlArchive(settings.database_url)
    vectors = ChromaVectors(settings.chroma_url, settings.kafka_topic_prefix)
    try:
        return find_due(archive, vectors, model_name(settings))
    finally:
        vectors.close()
        archive.close()


def _reason_in_archive(
    collection: GuildCollection, model: str | None, *, passages: int, without: int
) -> tuple[Work, str] | None:
    """Return the work that the state of the archive requires, and the reason; None if it requires nothing."""
    if not passages:
        return None
    if (reason := _reason_in_record(collection, model)) is not None:
        return reason
    if without and model is not None:
        return "embed", f"{without} of {passages} passages have no vectors"
    return None


def _reason_in_record(collection: GuildCollection, model: str | None) -> tuple[Work, str] | None:
    """Return the work that the recorded rules and model require, and the reason; None if they are the current ones."""
    if collection.rules != RULES:
        return "link", f"rules differ: conversations were linked with rules {collection.rules}, now {RULES} apply"
    if model is not None and not is_same_model(collection.model, model):
        if collection.model is None:
            return "embed", "passages have no vectors: there was no embedding model when they were indexed"
        return "embed", f"model differs: the vectors were made with {collection.model}, the model is now {model}"
    return None


def _reason_in_chroma(unchanged: RebuildPlan, *, force: bool) -> tuple[Work, str]:
    """Return the work that the state of Chroma or ``force`` requires, and the reason."""
    if unchanged.missing or unchanged.superfluous:
        return (
            "copy",
            f"vectors lost: Chroma misses {unchanged.missing} and has {unchanged.superfluous} superfluous ones",
        )
    if force and unchanged.messages:
        return "link", "requested"
    if unchanged.left_over:
        return "clean", "an earlier rebuild left collections in Chroma"
    return "nothing", "nothing to do"


def rebuild(knowledge: Knowledge, rebuild_plan: RebuildPlan, *, progress: Progress = lambda *_: None) -> None:
    """Do the work of a plan. Searches use the old collection until the new collection is complete.

    Raises Unavailable when a store does not respond, and ConfigError when another process rebuilds the guild or has
    rebuilt it since the plan was made. After an error, the old collection is still in use, unless the switch succeeded
    and only removing the old collection failed.
    """
    if rebuild_plan.work == "nothing":
        return
    guild_id, old = rebuild_plan.guild_id, rebuild_plan.collection
    with open_staging(knowledge.archive, guild_id) as staging:
        current = knowledge.archive.collections.find([guild_id]).get(guild_id, old)
        if current.generation != old.generation:
            raise ConfigError(
                f"guild {guild_id} was rebuilt by another process", hint="Check with `rtfm-cli rebuild --dry-run`."
            )
        for generation in rebuild_plan.left_over:
            knowledge.vectors.forget(guild_id, generation)
        if rebuild_plan.work == "clean":
            return
        if rebuild_plan.work == "copy":
            _copy(knowledge, staging, attrs.evolve(old, generation=old.generation + 1), rebuild_plan, progress)
        else:
            new = attrs.evolve(build_first_collection(guild_id, knowledge.embedding), generation=old.generation + 1)
            reindexing = _Reindexing(knowledge=knowledge, staging=staging, new=new, relink=rebuild_plan.work == "link")
            reindexing.run(rebuild_plan, progress)
        knowledge.vectors.forget(guild_id, old.generation)


def _copy(
    knowledge: Knowledge, staging: Staging, new: GuildCollection, rebuild_plan: RebuildPlan, progress: Progress
) -> None:
    archive, guild_id = knowledge.archive.collections, new.guild_id

    def put(table: Table, ids: Iterable[str]) -> int:
        stored = archive.vectors_of(table, ids)
        vectors = from_bytes([row.vector for row in stored])
        entries = [
            VectorEntry(entry_id=entry_id(table, row.id), passage_id=row.passage_id, vector=vector)
            for row, vector in zip(stored, vectors, strict=True)
        ]
        knowledge.vectors.upsert(guild_id, entries, generation=new.generation, model=new.model or "")
        staging.record_copied(
            [(entry.entry_id, row.passage_id, row.vector) for entry, row in zip(entries, stored, strict=True)]
        )
        return len(stored)

    def catch_up() -> int:
        gone = staging.drop_obsolete()
        knowledge.vectors.delete(guild_id, gone, generation=new.generation)
        missing = staging.find_uncopied()
        for ids in _batches(missing):
            for table in TABLES:
                put(table, row_ids(table, ids))
        return len(gone) + len(missing)

    staging.record_copied([])
    done = 0
    for table in TABLES:
        after = ""
        while ids := archive.ids_with_vectors(table, guild_id, after, limit=BATCH):
            after = ids[-1]
            done += put(table, ids)
            progress("Copying", done, max(rebuild_plan.entries, done))
    _repeat_catch_up(catch_up)
    with staging.archive.collections.block_ingest(guild_id):
        catch_up()
        staging.switch_collection(new)


def _batches(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[start : start + BATCH] for start in range(0, len(ids), BATCH))


def _repeat_catch_up(catch_up: Callable[[], int]) -> None:
    """Call ``catch_up`` until it finds at most ``BATCH`` changes, but not more than ``_MAX_CATCH_UPS`` times.

    Few changes should remain, because ingest has to wait while they are written.
    """
    for _ in range(_MAX_CATCH_UPS):
        if catch_up() <= BATCH:
            return


@frozen(kw_only=True)
class _Reindexing:
    """A rebuild that makes passages and vectors again, in staging."""

    _knowledge: Knowledge
    _staging: Staging
    _new: GuildCollection
    _relink: bool

    def run(self, rebuild_plan: RebuildPlan, progress: Progress) -> None:
        """Build new passages and vectors in staging, then let them replace the guild's old passages and vectors."""
        guild_id = self._new.guild_id
        # The channels are read before staging copies them, so that staging has every channel that is read here.
        channels = self._knowledge.archive.channels(guild_id)
        self._staging.create_tables(self._new)
        done = 0
        for channel in channels:
            after: StoredMessage | None = None
            while messages := self._knowledge.archive.writing.channel_messages(channel.place, after, limit=BATCH):
                after = messages[-1]
                self._index_staged(messages)
                done += len(messages)
                progress("Indexing", done, max(rebuild_plan.messages, done))
            self._staging.analyze()
        _repeat_catch_up(self._catch_up)
        retriever = Retriever(self._staging.archive, self._knowledge.vectors, self._knowledge.embedding)
        calibrate(self._staging.archive, retriever, guild_id, force=True)
        with self._staging.archive.collections.block_ingest(guild_id):
            self._catch_up()
            self._staging.replace_original(self._new)

    def _catch_up(self) -> int:
        changed = self._staging.find_outdated()
        self._staging.copy_channels()
        for ids in _batches(changed):
            now = self._knowledge.archive.writing.messages(ids)
            before = self._staging.archive.writing.messages(ids)
            gone = [
                message.tombstone()
                for message_id, message in before.items()
                if message_id not in now or now[message_id].deleted
            ]
            self._index_staged([*(message for message in now.values() if not message.deleted), *gone])
        return len(changed)

    def _index_staged(self, messages: Sequence[StoredMessage]) -> None:
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
