"""``SqlArchive``, the archive's entry point."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert

from rtfm.events import TimestampMillis
from rtfm.knowledge.archive.answers import ArchiveAnswers
from rtfm.knowledge.archive.collections import ArchiveCollections
from rtfm.knowledge.archive.database import MIGRATION_WAIT_S, Database
from rtfm.knowledge.archive.erasing import ArchiveErasing
from rtfm.knowledge.archive.floors import ArchiveFloors
from rtfm.knowledge.archive.questions import ArchiveQuestions
from rtfm.knowledge.archive.reading import ArchiveReading
from rtfm.knowledge.archive.removals import ArchiveRemovals
from rtfm.knowledge.archive.rows import Channel
from rtfm.knowledge.archive.tables import channels, sent
from rtfm.knowledge.archive.writing import ArchiveWriting, to_channel


class SqlArchive:
    """The archive in PostgreSQL. Thread-safe.

    Every method raises Unavailable when the database does not respond, and ConfigError if the tables are missing.
    """

    def __init__(self, database_url: str, *, temporary: bool = False) -> None:
        """Prepare the connections, which are made at their first use.

        Only ``open_staging`` sets ``temporary``; see ``Database``. Raises ConfigError if ``database_url`` is not a
        PostgreSQL address.
        """
        self.database = Database(database_url, temporary=temporary)
        self.collections = ArchiveCollections(self.database)
        self.writing = ArchiveWriting(self.database)
        self.reading = ArchiveReading(self.database)
        self.answers = ArchiveAnswers(self.database)
        self.questions = ArchiveQuestions(self.database)
        self.removals = ArchiveRemovals(self.database)
        self.erasing = ArchiveErasing(self.database)
        self.floors = ArchiveFloors(self.database)

    def migrate(self, *, wait_s: float = MIGRATION_WAIT_S) -> None:
        """Migrate the tables to the newest step; see ``Database.migrate``.

        Also raises Unavailable when a table to be changed stays locked, or when another process is still migrating
        after ``wait_s`` seconds.
        """
        self.database.migrate(wait_s=wait_s)

    def check(self) -> None:
        """Raise Unavailable if the archive does not respond, and ConfigError if it has no tables."""
        self.database.check()

    def close(self) -> None:
        """Close all connections."""
        self.database.close()

    def guilds(self) -> list[str]:
        """Return the ids of the guilds that have messages. Direct messages, whose guild id is '', are left out."""
        statement = select(channels.c.guild_id).where(channels.c.guild_id != "").distinct()
        with self.database.begin() as connection:
            return sorted(connection.execute(statement).scalars())

    def channels(self, guild_id: str | None) -> list[Channel]:
        """Return the channels of a guild; None means direct messages."""
        statement = select(channels).where(channels.c.guild_id == (guild_id or "")).order_by(channels.c.channel_id)
        with self.database.begin() as connection:
            return [to_channel(row) for row in connection.execute(statement)]

    def guilds_of_channels(self, channel_ids: Sequence[str]) -> dict[str, set[str]]:
        """Return the guild ids of the channels in ``channel_ids``, by channel id; '' stands for direct messages.

        A channel that the archive does not know is left out. If the archive knows a channel only as the parent of a
        thread, the channel is included. The result may also contain threads and parents of these channels. On Discord a
        channel has one guild, but programs other than the bot may use the same channel id in several guilds.
        """
        statement = select(channels.c.channel_id, channels.c.acl_channel_id, channels.c.guild_id).where(
            channels.c.channel_id.in_(channel_ids) | channels.c.acl_channel_id.in_(channel_ids)
        )
        found: dict[str, set[str]] = {}
        with self.database.begin() as connection:
            for row in connection.execute(statement):
                for channel_id in (row.channel_id, row.acl_channel_id):
                    found.setdefault(channel_id, set()).add(row.guild_id)
        return found

    def counts(self) -> dict[str, int]:
        """Return the numbers of messages, deleted messages, passages, vectors, channels and answers.

        ``messages`` does not count deleted messages, and ``vectors`` counts only the vectors of passages.
        """
        statement = text("""
            SELECT count(*) FILTER (WHERE NOT deleted) AS messages, count(*) FILTER (WHERE deleted) AS deleted,
                   (SELECT count(*) FROM passages) AS passages, (SELECT count(vector) FROM passages) AS vectors,
                   (SELECT count(*) FROM channels) AS channels, (SELECT count(*) FROM answers) AS answers
            FROM messages
        """)
        with self.database.begin() as connection:
            return dict(connection.execute(statement).one()._mapping)

    def sent(self, query_id: str, part: int) -> str | None:
        """Return the id of the Discord message with this part of an answer; None if no such message was recorded."""
        with self.database.begin() as connection:
            return connection.execute(
                select(sent.c.message_id).where(sent.c.query_id == query_id, sent.c.part == part)
            ).scalar_one_or_none()

    def record_sent(
        self, query_id: str, part: int, *, channel_id: str, message_id: str, sent_at: TimestampMillis
    ) -> None:
        """Record that a part of an answer was sent, unless it is recorded already."""
        statement = insert(sent).values(
            query_id=query_id, part=part, channel_id=channel_id, message_id=message_id, sent_at=sent_at
        )
        with self.database.begin() as connection:
            connection.execute(statement.on_conflict_do_nothing())

    def own_messages(self, message_ids: list[str]) -> set[str]:
        """Return those of ``message_ids`` that are recorded as parts of answers."""
        statement = text("SELECT message_id FROM sent WHERE message_id = ANY(:ids)")
        with self.database.begin() as connection:
            return set(connection.execute(statement, {"ids": message_ids}).scalars())
