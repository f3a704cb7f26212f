"""The open questions: one row for each question that the bot has asked and not answered.

A row does not contain the text of its question, and does not change while the question is open. Opening a question also
removes the rows of questions that expired more than ``KEPT_AFTER_EXPIRY_MS`` ago. This module does not decide who may
read an answer; the bot does.
"""

from __future__ import annotations

from attrs import frozen
from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert

from rtfm.errors import InvalidEvent
from rtfm.events import Audience, BotQuery, TimestampMillis
from rtfm.knowledge.archive.database import Database
from rtfm.knowledge.archive.rows import guild_key
from rtfm.knowledge.archive.tables import open_questions

KEPT_AFTER_EXPIRY_MS = 24 * 3600 * 1000
"""A row is kept for this many milliseconds after its question has expired.

This time is the retention of ``bot-responses``, because the bot may read a response until retention removes it."""


@frozen(kw_only=True)
class OpenQuestion:
    """The stored fields of a question. The bot compares a response with them."""

    query_id: str
    guild_id: str | None
    channel_id: str
    message_id: str | None
    asker_id: str
    audience: Audience
    expires_at: TimestampMillis


class ArchiveQuestions:
    """Reads and writes the table ``open_questions``. Raises what ``Database.begin`` raises."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self, query: BotQuery, *, now: TimestampMillis) -> None:
        """Store ``query`` as an open question, unless it is open already.

        Also removes the rows of questions that expired more than ``KEPT_AFTER_EXPIRY_MS`` before ``now``.
        """
        values = {
            "query_id": query.query_id,
            "guild_id": guild_key(query.guild_id),
            "channel_id": query.channel_id,
            "message_id": query.message_id,
            "asker_id": query.asker_id,
            "audience": query.audience.value,
            "expires_at": query.expires_at,
        }
        with self._database.begin() as connection:
            connection.execute(delete(open_questions).where(open_questions.c.expires_at < now - KEPT_AFTER_EXPIRY_MS))
            connection.execute(insert(open_questions).values(values).on_conflict_do_nothing())

    def find(self, query_id: str) -> OpenQuestion | None:
        """Return the open question with this id, or None. The id may be any text."""
        statement = select(open_questions).where(open_questions.c.query_id == query_id)
        try:
            with self._database.begin() as connection:
                row = connection.execute(statement).one_or_none()
        except InvalidEvent:
            return None  # PostgreSQL cannot store this id, so no row has it
        if row is None:
            return None
        values = {**row._mapping, "guild_id": row.guild_id or None, "audience": Audience(row.audience)}
        return OpenQuestion(**values)

    def close(self, query_id: str) -> None:
        """Remove the row of a question, so that later responses to it are ignored."""
        with self._database.begin() as connection:
            connection.execute(delete(open_questions).where(open_questions.c.query_id == query_id))
