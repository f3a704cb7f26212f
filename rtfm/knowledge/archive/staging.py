"""A second archive beside the real one, for a rebuild: the same tables, as temporary ones of one connection.

Owns what a rebuild compares and moves in SQL. Promises that nothing of it is left when the connection ends, however it
ends, and that what it has made takes the place of what was there in one transaction. While that runs, searches find
what was there before.
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

# Answers stay where they are; the empty table is for what a deletion does to them.
_TABLES = ("channels", "messages", "passages", "document_frequencies", "corpora", "floors", "collections", "answers")

# What Chroma should hold, with a mark that changes with it.
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
    """What a rebuild of one guild works with. ``archive`` sees the temporary tables under their usual names."""

    def __init__(self, archive: SqlArchive, schema: str, guild_id: str) -> None:
        """Use ``open_staging``. ``schema`` holds the real tables."""
        self.archive = archive
        self._database = archive.database
        self._real = '"' + schema.replace('"', '""') + '"'
        self._guild = guild_id

    def copied(self, entries: Sequence[tuple[str, str, bytes]]) -> None:
        """Remember entries as they were copied: (entry id, passage id, vector)."""
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

    def to_copy(self) -> list[str]:
        """Entries that were not copied as they are now."""
        return self._ids(
            f"SELECT entry_id FROM ({_ENTRIES}) AS now LEFT JOIN copied USING (entry_id)"  # noqa: S608 - constants
            " WHERE copied.mark IS DISTINCT FROM now.mark"
        )

    def forget_copied(self) -> list[str]:
        """Entries that were copied and are no more; they count as not copied afterwards."""
        return self._ids(
            f"DELETE FROM copied WHERE entry_id NOT IN (SELECT entry_id FROM ({_ENTRIES}) AS now)"  # noqa: S608 - constants
            " RETURNING entry_id"
        )

    def begin(self, collection: GuildCollection) -> None:
        """Make the tables; what is made in them goes to ``collection``."""
        with self._database.begin() as connection:
            for table in _TABLES:
                connection.execute(text(f"CREATE TEMP TABLE {table} (LIKE {self._real}.{table} INCLUDING ALL)"))
            view = f"CREATE TEMP VIEW erasures AS SELECT * FROM {self._real}.erasures"  # noqa: S608 - the schema is quoted
            connection.execute(text(view))
        self.archive.collections.put(collection)
        self.take_channels()

    def take_channels(self) -> None:
        """Know the guild's channels as they are now."""
        self._run("DELETE FROM channels", "INSERT INTO channels SELECT * FROM {real}.channels WHERE guild_id = :guild")

    def analyse(self) -> None:
        """Tell PostgreSQL how much there is; of temporary tables it takes no note itself."""
        self._run("ANALYZE messages", "ANALYZE passages", "ANALYZE document_frequencies")

    def to_make(self) -> list[str]:
        """Messages that are other than when they were taken, or not taken yet."""
        return self._ids(
            """
            SELECT m.message_id FROM {real}.messages AS m LEFT JOIN messages AS taken USING (message_id)
            WHERE m.guild_id = :guild AND NOT m.deleted AND taken.version IS DISTINCT FROM m.version
            UNION ALL
            SELECT taken.message_id FROM messages AS taken LEFT JOIN {real}.messages AS m USING (message_id)
            WHERE NOT taken.deleted AND m.deleted IS DISTINCT FROM false
            """
        )

    def put_in_place(self, collection: GuildCollection) -> None:
        """Let what was made take the place of what was there, and ``collection`` that of the guild's. One transaction.

        Inside ``alone`` only, or a batch of ingest may be lost.
        """
        self._run(
            # Who may read a channel may have changed.
            """
            UPDATE passages AS made SET acl_channel_id = c.acl_channel_id FROM {real}.channels AS c
            WHERE (c.guild_id, c.channel_id) = (made.guild_id, made.channel_id)
              AND c.acl_channel_id <> made.acl_channel_id
            """,
            "DELETE FROM {real}.passages WHERE guild_id = :guild",
            "INSERT INTO {real}.passages SELECT * FROM passages",
            """
            UPDATE {real}.messages AS m
            SET conversation_id = made.conversation_id, passage_id = made.passage_id, vector = made.vector
            FROM messages AS made
            WHERE made.message_id = m.message_id AND NOT m.deleted
              AND (m.conversation_id IS DISTINCT FROM made.conversation_id
                   OR m.passage_id IS DISTINCT FROM made.passage_id OR m.vector IS DISTINCT FROM made.vector)
            """,
            # What replies to a deleted message would begin a conversation that is no more.
            """
            UPDATE {real}.messages AS m SET conversation_id = NULL
            WHERE guild_id = :guild AND deleted AND conversation_id IS NOT NULL
              AND NOT EXISTS (SELECT FROM passages AS made WHERE made.conversation_id = m.conversation_id)
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

    def switch(self, collection: GuildCollection) -> None:
        """Let the guild use ``collection`` from now on. Inside ``alone`` only: whoever holds that writes, or nobody."""
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
    """A second archive, of one guild, to make its passages and vectors anew in; it ends with the block.

    Raises ConfigError when the guild is being rebuilt already.
    """
    second = SqlArchive(archive.database.url, temporary=True)
    try:
        if not second.collections.begin_rebuild(guild_id):
            raise ConfigError(
                f"guild {guild_id or 'of direct messages'} is being rebuilt already",
                hint="Wait until that is done, or end it: what it has made so far is then removed.",
            )
        with archive.database.begin() as connection:
            schema = str(connection.execute(text("SELECT current_schema()")).scalar_one())
        yield Staging(second, schema, guild_id)
    finally:
        second.close()
