"""The rows that say which collection in Chroma each guild uses.

A row also names the embedding model and the version of the rules with which the guild's vectors and passages were made.

This module also owns the *fence*, a lock for each guild that keeps ingest and rebuilds apart. A batch of ingest holds
the fence in shared mode during the transaction of the batch. A rebuild holds the fence exclusively while it switches
the guild to a new collection. When a batch has the fence, it checks that its guilds still use the collections that the
batch wrote to. If one of the guilds uses another collection by then, the batch does not commit.
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

# The keys of the advisory locks of a guild.
_FENCE = "hashtextextended('rtfm fence ' || :guild, 0)"
_REBUILD = "hashtextextended('rtfm rebuild ' || :guild, 0)"

_VECTOR_TABLES: dict[EntryTable, tuple[TableClause, ColumnClause[str]]] = {
    "passages": (passages, passages.c.passage_id),
    "messages": (messages, messages.c.message_id),
}


class CollectionChanged(TransientError):
    """A rebuild has switched a guild to another collection since the batch began, so the batch must be repeated."""


class ArchiveCollections:
    """Reads and writes the table ``collections``. Every method raises what ``Database.begin`` raises."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, guild_ids: Collection[str]) -> dict[str, GuildCollection]:
        """Return the collections of ``guild_ids`` by guild id; a guild without a collection is left out."""
        statement = select(collections).where(collections.c.guild_id.in_(list(guild_ids)))
        with self._database.read() as connection:
            return {row.guild_id: GuildCollection(**row._mapping) for row in connection.execute(statement)}

    def put(self, collection: GuildCollection) -> None:
        """Set the collection of a guild."""
        with self._database.begin() as connection:
            connection.execute(upsert(collections, "guild_id"), attrs.asdict(collection))

    def count_passages(self, guild_id: str) -> tuple[int, int]:
        """Return how many passages a guild has, and how many of them have no vector."""
        statement = select(func.count().label("all"), func.count(passages.c.vector).label("vectors")).where(
            passages.c.guild_id == guild_id
        )
        with self._database.begin() as connection:
            row = connection.execute(statement).one()
        return row.all, row.all - row.vectors

    def count_messages(self, guild_id: str) -> int:
        """Return how many messages of a guild are not deleted."""
        statement = select(func.count()).where(messages.c.guild_id == guild_id, ~messages.c.deleted)
        with self._database.begin() as connection:
            return int(connection.execute(statement).scalar_one())

    def entry_ids(self, guild_id: str) -> set[str]:
        """Return the ids of all entries that Chroma should hold for a guild."""
        with self._database.begin() as connection:
            found: set[str] = set()
            for table, (rows, key) in _VECTOR_TABLES.items():
                statement = select(key).where(rows.c.guild_id == guild_id, *_has_vector(rows))
                found.update(entry_id(table, row_id) for row_id in connection.execute(statement).scalars())
        return found

    def count_entries(self, guild_id: str) -> int:
        """Return how many entries Chroma should hold for a guild."""
        with self._database.begin() as connection:
            return sum(
                connection.execute(
                    select(func.count()).where(rows.c.guild_id == guild_id, *_has_vector(rows))
                ).scalar_one()
                for rows, _ in _VECTOR_TABLES.values()
            )

    def ids_with_vectors(self, table: EntryTable, guild_id: str, after: str, *, limit: int) -> list[str]:
        """Return ids of the guild's passages, or of its messages, whose vectors Chroma should have, in order.

        The result contains only ids that are greater than ``after``, and at most the ``limit`` smallest of these.
        """
        rows, key = _VECTOR_TABLES[table]
        statement = (
            select(key).where(rows.c.guild_id == guild_id, *_has_vector(rows), key > after).order_by(key).limit(limit)
        )
        with self._database.begin() as connection:
            return list(connection.execute(statement).scalars())

    def vectors_of(self, table: EntryTable, ids: Iterable[str]) -> list[StoredVector]:
        """Return the vectors of the passages or messages with these ``ids``, if Chroma should have them."""
        rows, key = _VECTOR_TABLES[table]
        statement = select(key.label("id"), rows.c.passage_id, rows.c.vector).where(
            key.in_(list(ids)), *_has_vector(rows)
        )
        with self._database.begin() as connection:
            return [StoredVector(**row._mapping) for row in connection.execute(statement)]

    @contextmanager
    def block_ingest(self, guild_id: str) -> Iterator[None]:
        """Prevent ingest from committing batches of this guild inside the block.

        If a batch is ready to commit before the block ends, the batch waits for the end of the block. The ``Database``
        must have a single connection, because only the connection that took the lock can release it.
        """
        self._call(f"SELECT pg_advisory_lock({_FENCE})", guild_id)
        try:
            yield
        finally:
            self._call(f"SELECT pg_advisory_unlock({_FENCE})", guild_id)

    def try_lock_rebuild(self, guild_id: str) -> bool:
        """Lock the guild's rebuild until the connection ends. Return False if another connection holds the lock.

        The ``Database`` must have a single connection, as for ``block_ingest``.
        """
        return bool(self._call(f"SELECT pg_try_advisory_lock({_REBUILD})", guild_id))

    def _call(self, statement: str, guild_id: str) -> object:
        with self._database.begin() as connection:
            return connection.execute(text(statement), {"guild": guild_id}).scalar_one()


def _has_vector(rows: TableClause) -> tuple[Any, ...]:
    condition = (rows.c.vector.is_not(None), rows.c.passage_id.is_not(None))
    return (*condition, ~rows.c.deleted) if rows is messages else condition


def lock_collections(connection: Connection, expected: Sequence[GuildCollection]) -> None:
    """Prevent rebuilds from switching the guilds of ``expected`` to other collections until the transaction ends.

    If a guild has no collection yet, its ``expected`` collection is stored. Raises CollectionChanged if a guild has
    another collection than the ``expected`` one.
    """
    if not expected:
        return
    guild_ids = sorted(collection.guild_id for collection in expected)
    # All batches lock the guilds in the order of their ids, so that two batches cannot deadlock.
    connection.execute(
        text(
            f"SELECT pg_advisory_xact_lock_shared({_FENCE.replace(':', '')}) FROM unnest(:guilds) AS guild"  # noqa: S608 - a constant
        ).bindparams(bindparam("guilds", type_=ARRAY(Text))),
        {"guilds": guild_ids},
    )
    # If two batches insert the first collection of a guild, the second batch waits until the first batch has committed,
    # and then reads the row that the first batch has inserted.
    ordered = sorted(map(attrs.asdict, expected), key=lambda row: str(row["guild_id"]))
    connection.execute(insert(collections).on_conflict_do_nothing(), ordered)
    statement = select(collections).where(collections.c.guild_id.in_(guild_ids))
    known = {row.guild_id: GuildCollection(**row._mapping) for row in connection.execute(statement)}
    for collection in expected:
        if known[collection.guild_id] != collection:
            raise CollectionChanged(f"guild {collection.guild_id} has been switched to another collection")
