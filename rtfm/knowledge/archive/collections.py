"""Which collection of Chroma each guild uses, and of which model and rules its vectors and passages are.

Owns the fence between ingest and a rebuild: ingest holds it with others for the length of its transaction, a rebuild
alone for the moment in which it switches. Promises that a transaction of ingest commits only if the collections are
still those that it wrote to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
from sqlalchemy import ARRAY, ColumnClause, Connection, TableClause, Text, bindparam, func, select, text
from sqlalchemy.dialects.postgresql import insert

from rtfm.errors import TransientError
from rtfm.knowledge.archive.database import Database
from rtfm.knowledge.archive.rows import GuildCollection, StoredVector
from rtfm.knowledge.archive.tables import collections, messages, passages, upsert
from rtfm.knowledge.entries import Table as EntryTable
from rtfm.knowledge.entries import entry_id

# Locks by name; the first number keeps them apart from other locks of this database.
_FENCE = "hashtextextended('rtfm fence ' || :guild, 0)"
_REBUILD = "hashtextextended('rtfm rebuild ' || :guild, 0)"


_WITH_VECTORS: dict[EntryTable, tuple[TableClause, ColumnClause[str]]] = {
    "passages": (passages, passages.c.passage_id),
    "messages": (messages, messages.c.message_id),
}


class CollectionChanged(TransientError):
    """A rebuild has switched a guild to another collection since the batch began: do the batch again."""


class ArchiveCollections:
    """Reads and writes of ``collections``. Raises what ``Database.begin`` raises."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, guild_ids: Collection[str]) -> dict[str, GuildCollection]:
        """The collections of those of ``guild_ids`` that have one, by guild."""
        statement = select(collections).where(collections.c.guild_id.in_(list(guild_ids)))
        with self._database.read() as connection:
            return {row.guild_id: GuildCollection(**row._mapping) for row in connection.execute(statement)}

    def put(self, collection: GuildCollection) -> None:
        """Use this collection for its guild from now on."""
        with self._database.begin() as connection:
            connection.execute(upsert(collections, "guild_id"), attrs.asdict(collection))

    def passages(self, guild_id: str) -> tuple[int, int]:
        """How many passages a guild has, and how many of them have no vector."""
        statement = select(func.count().label("all"), func.count(passages.c.vector).label("vectors")).where(
            passages.c.guild_id == guild_id
        )
        with self._database.begin() as connection:
            row = connection.execute(statement).one()
        return row.all, row.all - row.vectors

    def count_messages(self, guild_id: str) -> int:
        """Messages of a guild that are not deleted."""
        statement = select(func.count()).where(messages.c.guild_id == guild_id, ~messages.c.deleted)
        with self._database.begin() as connection:
            return int(connection.execute(statement).scalar_one())

    def entry_ids(self, guild_id: str) -> set[str]:
        """What Chroma should hold of a guild."""
        with self._database.begin() as connection:
            found: set[str] = set()
            for table, (rows, key) in _WITH_VECTORS.items():
                statement = select(key).where(rows.c.guild_id == guild_id, *_has_vector(rows))
                found.update(entry_id(table, row_id) for row_id in connection.execute(statement).scalars())
        return found

    def count_entries(self, guild_id: str) -> int:
        """How many vectors Chroma should hold of a guild."""
        with self._database.begin() as connection:
            return sum(
                connection.execute(
                    select(func.count()).where(rows.c.guild_id == guild_id, *_has_vector(rows))
                ).scalar_one()
                for rows, _ in _WITH_VECTORS.values()
            )

    def ids_with_vectors(self, table: EntryTable, guild_id: str, after: str, *, limit: int) -> list[str]:
        """The next ``limit`` ids of a guild's "passages" or "messages" with a vector, in order."""
        rows, key = _WITH_VECTORS[table]
        statement = (
            select(key).where(rows.c.guild_id == guild_id, *_has_vector(rows), key > after).order_by(key).limit(limit)
        )
        with self._database.begin() as connection:
            return list(connection.execute(statement).scalars())

    def vectors_of(self, table: EntryTable, ids: Iterable[str]) -> list[StoredVector]:
        """The vectors of those of ``ids`` that are "passages" or "messages" with one."""
        rows, key = _WITH_VECTORS[table]
        statement = select(key.label("id"), rows.c.passage_id, rows.c.vector).where(
            key.in_(list(ids)), *_has_vector(rows)
        )
        with self._database.begin() as connection:
            return [StoredVector(**row._mapping) for row in connection.execute(statement)]

    @contextmanager
    def alone(self, guild_id: str) -> Iterator[None]:
        """Nobody's batch of this guild commits inside the block; only on a connection of one's own."""
        self._call(f"SELECT pg_advisory_lock({_FENCE})", guild_id)
        try:
            yield
        finally:
            self._call(f"SELECT pg_advisory_unlock({_FENCE})", guild_id)

    def begin_rebuild(self, guild_id: str) -> bool:
        """Become the only rebuild of this guild until the connection ends; False if there is another one."""
        return bool(self._call(f"SELECT pg_try_advisory_lock({_REBUILD})", guild_id))

    def _call(self, statement: str, guild_id: str) -> object:
        with self._database.begin() as connection:
            return connection.execute(text(statement), {"guild": guild_id}).scalar_one()


def _has_vector(rows: TableClause) -> tuple[Any, ...]:
    condition = (rows.c.vector.is_not(None), rows.c.passage_id.is_not(None))
    return (*condition, ~rows.c.deleted) if rows is messages else condition


def hold_collections(connection: Connection, believed: Sequence[GuildCollection]) -> None:
    """Keep the collections of a batch as they are until its transaction ends; a guild without one gets it.

    Raises CollectionChanged when one is not as ``believed``.
    """
    if not believed:
        return
    guild_ids = sorted(collection.guild_id for collection in believed)
    # All guilds in one order, so that two batches never wait for each other.
    connection.execute(
        text(
            f"SELECT pg_advisory_xact_lock_shared({_FENCE.replace(':', '')}) FROM unnest(:guilds) AS guild"  # noqa: S608 - a constant
        ).bindparams(bindparam("guilds", type_=ARRAY(Text))),
        {"guilds": guild_ids},
    )
    # Two first batches may meet here: the second waits for the first and then finds its row.
    ordered = sorted(map(attrs.asdict, believed), key=lambda row: str(row["guild_id"]))
    connection.execute(insert(collections).on_conflict_do_nothing(), ordered)
    statement = select(collections).where(collections.c.guild_id.in_(guild_ids))
    known = {row.guild_id: GuildCollection(**row._mapping) for row in connection.execute(statement)}
    for collection in believed:
        if known[collection.guild_id] != collection:
            raise CollectionChanged(f"guild {collection.guild_id} has another collection by now")
