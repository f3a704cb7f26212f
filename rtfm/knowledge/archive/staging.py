"""Staging: temporary tables of one connection, in which a rebuild makes a second copy of a guild's rows.

This module owns the SQL with which a rebuild compares and moves rows. PostgreSQL drops the staging tables when the
connection ends, also after a crash. A single transaction replaces the guild's original rows with the staged rows. Until
this transaction commits, searches use the original rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs
from sqlalchemy import text

from rtfm.errors import ConfigError
from rtfm.knowledge.archive.rows import GuildCollection
from rtfm.knowledge.archive.sql import SqlArchive
from rtfm.knowledge.entries import PREFIX

# The staged table ``answers`` stays empty. It must exist, because writing a deletion updates ``answers``.
_TABLES = ("channels", "messages", "passages", "document_frequencies", "corpora", "floors", "collections", "answers")

# The entries that Chroma should hold. ``mark`` changes when the vector or the passage of an entry changes.
_ENTRIES = f"""
    SELECT '{PREFIX["passages"]}' || passage_id AS entry_id, md5(vector) || passage_id AS mark
    FROM {{real}}.passages WHERE guild_id = :guild AND vector IS NOT NULL
    UNION ALL
    SELECT '{PREFIX["messages"]}' || message_id, md5(vector) || passage_id
    FROM {{real}}.messages
    WHERE guild_id = :guild AND vector IS NOT NULL AND passage_id IS NOT NULL AND NOT deleted
"""  # noqa: S608 - constants

_SWITCH = (
    "DELETE FROM {real}.collections WHERE guild_id = :guild",
    """
    INSERT INTO {real}.collections (guild_id, generation, model, dimension, rules)
    VALUES (:guild, :generation, :model, :dimension, :rules)
    """,
)


class Staging:
    """The staging tables of one guild. ``archive`` uses these tables instead of the original tables."""

    def __init__(self, archive: SqlArchive, schema: str, guild_id: str) -> None:
        """Use ``open_staging`` instead. ``schema`` is the PostgreSQL schema of the original tables."""
        self.archive = archive
        self._database = archive.database
        self._real = '"' + schema.replace('"', '""') + '"'
        self._guild = guild_id

    def record_copied(self, entries: Sequence[tuple[str, str, bytes]]) -> None:
        """Record that ``entries`` (entry id, passage id, vector) were copied to Chroma."""
        with self._database.begin() as connection:
            connection.execute(text("CREATE TEMP TABLE IF NOT EXISTS copied (entry_id text PRIMARY KEY, mark text)"))
            if entries:
                connection.execute(
                    text(
                        "INSERT INTO copied VALUES (:entry, md5(:vector) || :passage)"
                        " ON CONFLICT (entry_id) DO UPDATE SET mark = excluded.mark"
                    ),
                    [{"entry": entry, "passage": passage, "vector": vector} for entry, passage, vector in entries],
                )

    def find_uncopied(self) -> list[str]:
        """Return the ids of the entries that were not copied yet, or have changed since they were copied."""
        return self._ids(
            f"SELECT entry_id FROM ({_ENTRIES}) AS now LEFT JOIN copied USING (entry_id)"  # noqa: S608 - constants
            " WHERE copied.mark IS DISTINCT FROM now.mark"
        )

    def drop_obsolete(self) -> list[str]:
        """Forget the copied entries that the archive no longer has, and return their ids."""
        return self._ids(
            f"DELETE FROM copied WHERE entry_id NOT IN (SELECT entry_id FROM ({_ENTRIES}) AS now)"  # noqa: S608 - constants
            " RETURNING entry_id"
        )

    def create_tables(self, collection: GuildCollection) -> None:
        """Create the staging tables, and set the staged guild's collection to ``collection``."""
        with self._database.begin() as connection:
            for table in _TABLES:
                connection.execute(text(f"CREATE TEMP TABLE {table} (LIKE {self._real}.{table} INCLUDING ALL)"))
            view = f"CREATE TEMP VIEW erasures AS SELECT * FROM {self._real}.erasures"  # noqa: S608 - the schema is quoted
            connection.execute(text(view))
        self.archive.collections.put(collection)
        self.copy_channels()

    def copy_channels(self) -> None:
        """Replace the staged channels with copies of the guild's original channels."""
        self._run("DELETE FROM channels", "INSERT INTO channels SELECT * FROM {real}.channels WHERE guild_id = :guild")

    def analyze(self) -> None:
        """Update PostgreSQL's statistics; autovacuum does not analyze temporary tables."""
        self._run("ANALYZE messages", "ANALYZE passages", "ANALYZE document_frequencies")

    def find_outdated(self) -> list[str]:
        """Return the ids of the messages that are not staged yet, or have changed since they were staged."""
        return self._ids(
            """
            SELECT m.message_id FROM {real}.messages AS m LEFT JOIN messages AS staged USING (message_id)
            WHERE m.guild_id = :guild AND NOT m.deleted AND staged.version IS DISTINCT FROM m.version
            UNION ALL
            SELECT staged.message_id FROM messages AS staged LEFT JOIN {real}.messages AS m USING (message_id)
            WHERE NOT staged.deleted AND m.deleted IS DISTINCT FROM false
            """
        )

    def replace_original(self, collection: GuildCollection) -> None:
        """Replace the guild's original rows with the staged rows, and set the guild's collection, in one transaction.

        Call this only inside ``block_ingest``. Otherwise the changes of a concurrent batch of ingest may be lost.
        """
        self._run(
            # A channel's access channel may have changed since its passages were staged.
            """
            UPDATE passages AS staged SET acl_channel_id = c.acl_channel_id FROM {real}.channels AS c
            WHERE (c.guild_id, c.channel_id) = (staged.guild_id, staged.channel_id)
              AND c.acl_channel_id <> staged.acl_channel_id
            """,
            "DELETE FROM {real}.passages WHERE guild_id = :guild",
            "INSERT INTO {real}.passages SELECT * FROM passages",
            """
            UPDATE {real}.messages AS m
            SET conversation_id = staged.conversation_id, passage_id = staged.passage_id, vector = staged.vector
            FROM messages AS staged
            WHERE staged.message_id = m.message_id AND NOT m.deleted
              AND (m.conversation_id IS DISTINCT FROM staged.conversation_id
                   OR m.passage_id IS DISTINCT FROM staged.passage_id OR m.vector IS DISTINCT FROM staged.vector)
            """,
            # Without this statement, a reply to a deleted message could be linked to a conversation that no longer
            # exists.
            """
            UPDATE {real}.messages AS m SET conversation_id = NULL
            WHERE guild_id = :guild AND deleted AND conversation_id IS NOT NULL
              AND NOT EXISTS (SELECT FROM passages AS staged WHERE staged.conversation_id = m.conversation_id)
            """,
            "DELETE FROM {real}.document_frequencies WHERE guild_id = :guild",
            "INSERT INTO {real}.document_frequencies SELECT * FROM document_frequencies",
            "DELETE FROM {real}.corpora WHERE guild_id = :guild",
            "INSERT INTO {real}.corpora SELECT * FROM corpora",
            "DELETE FROM {real}.floors WHERE guild_id = :guild",
            "INSERT INTO {real}.floors SELECT * FROM floors",
            *_SWITCH,
            **attrs.asdict(collection),
        )

    def switch_collection(self, collection: GuildCollection) -> None:
        """Set the guild's collection. Call this only inside ``block_ingest``, so that no batch commits meanwhile."""
        self._run(*_SWITCH, **attrs.asdict(collection))

    def _run(self, *statements: str, **values: object) -> None:
        with self._database.begin() as connection:
            for statement in statements:
                connection.execute(text(statement.replace("{real}", self._real)), {"guild": self._guild, **values})

    def _ids(self, statement: str) -> list[str]:
        with self._database.begin() as connection:
            found = connection.execute(text(statement.replace("{real}", self._real)), {"guild": self._guild})
            return list(found.scalars())


@contextmanager
def open_staging(archive: SqlArchive, guild_id: str) -> Iterator[Staging]:
    """Open staging for the rebuild of one guild. The staging tables are removed at the end of the block.

    Raises ConfigError if another process is rebuilding the guild.
    """
    second = SqlArchive(archive.database.url, temporary=True)
    try:
        if not second.collections.try_lock_rebuild(guild_id):
            raise ConfigError(
                f"guild {guild_id or 'of direct messages'} is being rebuilt already",
                hint="Wait until that rebuild has finished, or stop it. If stopped, it changes nothing that is in use.",
            )
        with archive.database.begin() as connection:
            schema = str(connection.execute(text("SELECT current_schema()")).scalar_one())
        yield Staging(second, schema, guild_id)
    finally:
        second.close()
