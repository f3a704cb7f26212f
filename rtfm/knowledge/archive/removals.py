"""What was removed: which messages are deleted or erased, and what must no longer rest on them.

Owns the rule of what is erased, in SQL, and what becomes of an answer whose source is gone. Promises that no answer is
kept that rests on a removed message: removing and keeping exclude each other by a lock, so that whichever comes second
sees the first. Does not remove messages themselves: ingest does.
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
from rtfm.knowledge.archive.tables import RESTS_ON, erasures

WITHDRAWN: dict[str, Any] = {
    "outcome": Outcome.NOT_FOUND,
    "reason": OutcomeReason.SOURCE_REMOVED,
    "answer": "",
    "citations": [],
    "retrieved": [],
}
"""The fields of an answer whose source was removed."""

_LOCK = "hashtextextended('rtfm removals', 0)"

_COVERED = """EXISTS (SELECT FROM erasures AS e WHERE {created_at} < e.before AND (
    (e.scope = 'guild' AND e.id = {guild})
    OR (e.scope = 'channel' AND (e.id = {channel}
        OR e.id = (SELECT parent_channel_id FROM channels AS of WHERE of.channel_id = {channel})))
    OR (e.scope = 'user' AND e.id = {author} AND e.guild_id IN ('', {guild}))))"""

ERASED = "(EXISTS (SELECT FROM erasures) AND {covered})".format(
    covered=_COVERED.format(created_at="m.created_at", guild="m.guild_id", channel="m.channel_id", author="m.author_id")
)
"""Whether the message ``m`` was erased: Erasures.covers in SQL. Costs nothing where nothing was ever erased."""

STANDS = f"(NOT m.deleted AND NOT {ERASED})"
"""Whether the message ``m`` can be read."""

_REMOVED = text(f"SELECT message_id FROM messages AS m WHERE message_id = ANY(:ids) AND NOT {STANDS}")  # noqa: S608 - a constant
_IS_ERASED = text(
    "SELECT "
    + _COVERED.format(
        created_at="CAST(:at AS bigint)",
        guild="CAST(:guild AS text)",
        channel="CAST(:channel AS text)",
        author="CAST(:author AS text)",
    )
)
_WITHDRAW = f"""
    UPDATE answers SET response = response || CAST(:withdrawn AS jsonb)
    WHERE {RESTS_ON} ?| CAST(:ids AS text[])
"""  # noqa: S608 - constants


class ArchiveRemovals:
    """Reads of what was removed. Raises what ``Database.begin`` raises."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def erasures(self) -> Erasures:
        """Everything that was erased."""
        with self._database.begin() as connection:
            rows = connection.execute(select(erasures)).all()
        return Erasures(before={(row.scope, row.id, row.guild_id): TimestampMillis(row.before) for row in rows})

    def removed(self, message_ids: Collection[str]) -> set[str]:
        """Those of ``message_ids`` whose messages are known to be deleted or erased."""
        with self._database.begin() as connection:
            return removed(connection, message_ids)

    def is_asker_erased(self, *, guild_id: str | None, channel_id: str, asker_id: str, asked_at: int) -> bool:
        """Whether a question is of a person, channel or guild that was erased after it was asked."""
        values = {"guild": guild_key(guild_id), "channel": channel_id, "author": asker_id, "at": asked_at}
        with self._database.begin() as connection:
            return bool(connection.execute(_IS_ERASED, values).scalar_one())


def rests_on(response: BotResponse) -> set[str]:
    """The ids of the messages that an answer quotes, cites or was written from: RESTS_ON in Python."""
    cited = {citation.message_id for citation in response.citations if citation.message_id is not None}
    return cited.union(*(passage.message_ids for passage in response.retrieved))


def hold_removals(connection: Connection, *, shared: bool) -> None:
    """Until the transaction ends, exclude those who remove (``shared``), or also those who keep answers."""
    function = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
    connection.execute(text(f"SELECT {function}({_LOCK})"))


def removed(connection: Connection, message_ids: Collection[str]) -> set[str]:
    """See ``ArchiveRemovals.removed``."""
    if not message_ids:
        return set()
    return set(connection.execute(_REMOVED, {"ids": list(message_ids)}).scalars())


def withdrawn(response: BotResponse) -> BotResponse:
    """An answer without what it says."""
    return attrs.evolve(response, **WITHDRAWN)


def withdraw_answers(connection: Connection, message_ids: Collection[str]) -> int:
    """Withdraw the kept answers that rest on ``message_ids``; how many. The caller holds removals alone."""
    values = {"withdrawn": json.dumps(WITHDRAWN), "ids": list(message_ids)}
    return connection.execute(text(_WITHDRAW), values).rowcount
