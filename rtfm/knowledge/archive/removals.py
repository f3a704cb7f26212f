"""Removed messages and the stored answers that use them. A removed message is a deleted or an erased message.

This module owns the SQL condition for erased messages, and the fields of a withdrawn answer. Removing messages and
storing an answer exclude each other by a lock. Whichever comes second sees the result of the first, so no stored answer
keeps the content of a removed message. This module does not remove messages; ingest does.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import attrs
from sqlalchemy import Connection, select, text

from rtfm.events import BotResponse, Outcome, OutcomeReason, TimestampMillis
from rtfm.knowledge.archive.database import Database
from rtfm.knowledge.archive.rows import Erasures, guild_key
from rtfm.knowledge.archive.tables import SOURCE_MESSAGE_IDS, erasures

WITHDRAWN_FIELDS: dict[str, Any] = {
    "outcome": Outcome.NOT_FOUND,
    "reason": OutcomeReason.SOURCE_REMOVED,
    "answer": "",
    "citations": [],
    "retrieved": [],
}
"""The values that replace the content of an answer when it is withdrawn."""

_LOCK = "hashtextextended('rtfm removals', 0)"

_ERASURE_COVERS = """EXISTS (SELECT FROM erasures AS e WHERE {created_at} < e.before AND (
    (e.scope = 'guild' AND e.id = {guild})
    OR (e.scope = 'channel' AND (e.id = {channel}
        OR e.id IN (SELECT parent_channel_id FROM channels AS of WHERE of.channel_id = {channel})))
    OR (e.scope = 'user' AND e.id = {author} AND e.guild_id IN ('', {guild}))))"""

IS_ERASED = "(EXISTS (SELECT FROM erasures) AND {covered})".format(
    covered=_ERASURE_COVERS.format(
        created_at="m.created_at", guild="m.guild_id", channel="m.channel_id", author="m.author_id"
    )
)
"""SQL condition: the message ``m`` was erased. ``Erasures.covers`` is the same rule in Python.

PostgreSQL evaluates the first EXISTS once for each statement, so the condition costs little if nothing was erased."""

IS_READABLE = f"(NOT m.deleted AND NOT {IS_ERASED})"
"""SQL condition: the message ``m`` is neither deleted nor erased."""

_FIND_REMOVED = text(f"SELECT message_id FROM messages AS m WHERE message_id = ANY(:ids) AND NOT {IS_READABLE}")  # noqa: S608 - a constant
_IS_ASKER_ERASED = text(
    "SELECT "
    + _ERASURE_COVERS.format(
        created_at="CAST(:at AS bigint)",
        guild="CAST(:guild AS text)",
        channel="CAST(:channel AS text)",
        author="CAST(:author AS text)",
    )
)
_WITHDRAW = f"""
    UPDATE answers SET response = response || CAST(:withdrawn AS jsonb)
    WHERE {SOURCE_MESSAGE_IDS} ?| CAST(:ids AS text[])
"""  # noqa: S608 - constants


class ArchiveRemovals:
    """Reads which messages were removed, and what was erased. Raises what ``Database.begin`` raises."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def erasures(self) -> Erasures:
        """Return all erasures."""
        with self._database.begin() as connection:
            rows = connection.execute(select(erasures)).all()
        return Erasures(before={(row.scope, row.id, row.guild_id): TimestampMillis(row.before) for row in rows})

    def find_removed(self, message_ids: Collection[str]) -> set[str]:
        """Return those of ``message_ids`` whose messages are in the archive and deleted or erased."""
        with self._database.begin() as connection:
            return find_removed(connection, message_ids)

    def is_asker_erased(self, *, guild_id: str | None, channel_id: str, asker_id: str, asked_at: int) -> bool:
        """Return whether an erasure of the asker, the channel or the guild covers a question."""
        values = {"guild": guild_key(guild_id), "channel": channel_id, "author": asker_id, "at": asked_at}
        with self._database.begin() as connection:
            return bool(connection.execute(_IS_ASKER_ERASED, values).scalar_one())


def source_message_ids(response: BotResponse) -> set[str]:
    """Return the ids of an answer's sources: the messages that it cites or that the model read.

    ``SOURCE_MESSAGE_IDS`` is the same rule in SQL.
    """
    cited = {citation.message_id for citation in response.citations if citation.message_id is not None}
    return cited.union(*(passage.message_ids for passage in response.retrieved))


def lock_removals(connection: Connection, *, shared: bool) -> None:
    """Take the lock on removals until the transaction ends.

    Storing an answer takes the lock in ``shared`` mode, which excludes removals. A removal takes it exclusively, which
    excludes other removals and storing answers.
    """
    function = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
    connection.execute(text(f"SELECT {function}({_LOCK})"))


def find_removed(connection: Connection, message_ids: Collection[str]) -> set[str]:
    """Do the same as ``ArchiveRemovals.find_removed``, within the transaction of ``connection``."""
    if not message_ids:
        return set()
    return set(connection.execute(_FIND_REMOVED, {"ids": list(message_ids)}).scalars())


def withdraw(response: BotResponse) -> BotResponse:
    """Return ``response`` as a withdrawn answer: without its content, with the reason SOURCE_REMOVED."""
    return attrs.evolve(response, **WITHDRAWN_FIELDS)


def withdraw_answers(connection: Connection, message_ids: Collection[str]) -> int:
    """Withdraw the stored answers that have a source in ``message_ids``, and return their number.

    The caller must hold the lock of ``lock_removals`` exclusively.
    """
    values = {"withdrawn": json.dumps(WITHDRAWN_FIELDS), "ids": list(message_ids)}
    return connection.execute(text(_WITHDRAW), values).rowcount
