"""Erases a person, a channel or a guild: writes the row in ``erasures`` and withdraws the affected answers.

As soon as the row is committed, the erased messages are not found, shown or ingested any more. An interrupted erasure
can be resumed. This module does not remove messages: the caller produces a DELETED event for each erased message, and
ingest removes the message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from attrs import frozen
from sqlalchemy import Connection, TextClause, text

from rtfm.events import TimestampMillis
from rtfm.knowledge.archive.database import Database
from rtfm.knowledge.archive.removals import WITHDRAWN_FIELDS, lock_removals
from rtfm.knowledge.archive.rows import Scope
from rtfm.knowledge.archive.tables import SOURCE_MESSAGE_IDS

_OF_TARGET: Mapping[Scope, str] = {
    "user": "m.author_id = :id AND :guild IN ('', m.guild_id)",
    "channel": "(m.channel_id = :id"
    " OR m.channel_id IN (SELECT channel_id FROM channels WHERE parent_channel_id = :id))",
    "guild": "m.guild_id = :id",
}
"""SQL conditions, by scope: the message ``m`` belongs to the target. The time of the message does not matter."""

_ASKED_BY_TARGET: Mapping[Scope, str] = {
    "user": "response ->> 'asker_id' = :id AND :guild IN ('', coalesce(response ->> 'guild_id', ''))",
    "channel": "response ->> 'channel_id' = :id",
    "guild": "response ->> 'guild_id' = :id",
}
"""SQL conditions, by scope: the question of a stored answer was asked by the person, or in the channel or guild."""

_HAS_SOURCE_THAT_MENTIONS = f"""{SOURCE_MESSAGE_IDS} ?| ARRAY(
    SELECT message_id FROM messages AS m WHERE :guild IN ('', m.guild_id) AND (:id = ANY(mentioned_user_ids)
        OR position('<@' || :id || '>' IN content) > 0 OR position('<@!' || :id || '>' IN content) > 0))"""  # noqa: S608 - a constant
"""SQL condition: a stored answer has a source that mentions the person, so the answer may contain the person's name."""

_NOT_WITHDRAWN = "response ->> 'reason' IS DISTINCT FROM 'SOURCE_REMOVED'"


@frozen(kw_only=True)
class Target:
    """A person, channel or guild to erase. ``guild_id`` limits a person to one guild; '' means all guilds."""

    scope: Scope
    id: str
    guild_id: str = ""


@frozen(kw_only=True)
class ErasureCounts:
    """The numbers of messages, passages and vectors that an erasure removes, and of answers that it withdraws."""

    messages: int
    passages: int
    vectors: int
    answers_that_quote: int
    answers_to_own_questions: int
    answers_that_name: int


@frozen(kw_only=True)
class ErasedMessage:
    """An erased message for which a DELETED event must be produced."""

    message_id: str
    guild_id: str
    channel_id: str
    created_at: TimestampMillis


@frozen(kw_only=True)
class ErasurePass:
    """A pass over the erased messages, in the order of their ids.

    A pass covers the messages whose id is greater than ``after`` and whose time is less than ``before``. If ``since``
    is not None, the time is also at least ``since``. If ``is_resumable``, the progress of the pass is saved, so that
    the next run can continue the pass.
    """

    before: TimestampMillis
    after: str = ""
    since: TimestampMillis | None = None
    is_resumable: bool = True


class ArchiveErasing:
    """Reads and writes the archive for `rtfm-cli forget`. Every method raises what ``Database.begin`` raises."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def count(self, target: Target) -> ErasureCounts:
        """Return what erasing ``target`` would remove and withdraw now."""
        of_messages = f"FROM messages AS m WHERE NOT m.deleted AND {_OF_TARGET[target.scope]}"
        of_passages = f"""FROM passages AS p WHERE EXISTS (
            SELECT {of_messages} AND (m.passage_id = p.passage_id OR m.message_id = p.part_of))"""
        answers = "SELECT count(*) FROM answers WHERE"
        counts = {
            "messages": f"SELECT count(*) {of_messages}",
            "passages": f"SELECT count(*) {of_passages}",
            "vectors": f"SELECT (SELECT count(m.vector) {of_messages}) + (SELECT count(p.vector) {of_passages})",
            "answers_that_quote": f"{answers} {_NOT_WITHDRAWN} AND {_has_erased_source(target)}",
            "answers_to_own_questions": f"{answers} {_ASKED_BY_TARGET[target.scope]}",
            "answers_that_name": f"{answers} {_NOT_WITHDRAWN} AND {_may_name_target(target)}",
        }
        with self._database.begin() as connection:
            return ErasureCounts(
                **{name: connection.execute(*_to_statement(sql, target)).scalar_one() for name, sql in counts.items()}
            )

    def count_left(self, target: Target, *, before: TimestampMillis) -> int:
        """Return how many messages of ``target`` from before the time ``before`` are not removed yet."""
        sql = f"SELECT count(*) FROM messages AS m WHERE NOT m.deleted AND {_OF_TARGET[target.scope]}"  # noqa: S608 - a constant of this module
        sql += " AND m.created_at < :before"
        with self._database.begin() as connection:
            return int(connection.execute(*_to_statement(sql, target, before=before)).scalar_one())

    def begin(self, target: Target, *, before: TimestampMillis) -> list[ErasurePass]:
        """Store that ``target`` is erased for all times before ``before``, and withdraw the affected answers.

        Returns passes over the messages that need DELETED events. If an earlier erasure of the target was interrupted,
        the first pass resumes the earlier erasure, and a second pass covers the messages that are too new for the
        earlier erasure.
        """
        withdrawn = json.dumps(WITHDRAWN_FIELDS)
        withdrawn_and_anonymous = json.dumps(
            {**WITHDRAWN_FIELDS, **({"asker_id": "0"} if target.scope == "user" else {})}
        )
        with self._database.begin() as connection:
            lock_removals(connection, shared=False)
            row = connection.execute(
                *_to_statement(
                    "SELECT before, produced_to FROM erasures WHERE (scope, id, guild_id) = (:scope, :id, :guild)",
                    target,
                )
            ).one_or_none()
            sql = """
                INSERT INTO erasures (scope, id, guild_id, before, produced_to)
                VALUES (:scope, :id, :guild, :before, '')
                ON CONFLICT (scope, id, guild_id) DO UPDATE SET before = greatest(erasures.before, excluded.before),
                    produced_to = coalesce(erasures.produced_to, '')
            """
            connection.execute(*_to_statement(sql, target, before=before))
            answers = "UPDATE answers SET response = response || CAST(:fields AS jsonb) WHERE"
            connection.execute(
                *_to_statement(f"{answers} {_ASKED_BY_TARGET[target.scope]}", target, fields=withdrawn_and_anonymous)
            )
            for condition in (_has_erased_source(target), _may_name_target(target)):
                connection.execute(
                    *_to_statement(f"{answers} {_NOT_WITHDRAWN} AND {condition}", target, fields=withdrawn)
                )
            _clear_channel_names(connection, target)
        if row is None or row.produced_to is None:
            return [ErasurePass(before=before)]
        since = TimestampMillis(row.before)
        return [
            ErasurePass(before=before, after=row.produced_to),
            ErasurePass(before=before, since=since, is_resumable=False),
        ]

    def read_page(self, target: Target, erasure_pass: ErasurePass, *, limit: int) -> list[ErasedMessage]:
        """Return the first messages that a pass covers, at most ``limit``, in the order of their ids."""
        sql = f"""
            SELECT message_id, guild_id, channel_id, created_at FROM messages AS m
            WHERE NOT m.deleted AND {_OF_TARGET[target.scope]} AND created_at < :before
              AND created_at >= coalesce(CAST(:since AS bigint), created_at) AND message_id COLLATE "C" > :after
            ORDER BY message_id COLLATE "C" LIMIT :limit
        """  # noqa: S608 - constants
        values = {
            "before": erasure_pass.before,
            "since": erasure_pass.since,
            "after": erasure_pass.after,
            "limit": limit,
        }
        with self._database.begin() as connection:
            return [ErasedMessage(**row._mapping) for row in connection.execute(*_to_statement(sql, target, **values))]

    def save_progress(self, target: Target, produced_to: str | None) -> None:
        """Save that the DELETED events up to the message id ``produced_to`` were produced; None means all events."""
        sql = "UPDATE erasures SET produced_to = :to WHERE (scope, id, guild_id) = (:scope, :id, :guild)"
        with self._database.begin() as connection:
            connection.execute(*_to_statement(sql, target, to=produced_to))


def _has_erased_source(target: Target) -> str:
    """Return the SQL condition that a stored answer has a source among the target's messages."""
    # All sources of an answer are in the guild of its question, so the guild of the question decides.
    if target.scope == "guild":
        return _ASKED_BY_TARGET["guild"]
    return f"{SOURCE_MESSAGE_IDS} ?| ARRAY(SELECT message_id FROM messages AS m WHERE {_OF_TARGET[target.scope]})"  # noqa: S608 - constants


def _may_name_target(target: Target) -> str:
    return _HAS_SOURCE_THAT_MENTIONS if target.scope == "user" else "false"


def _clear_channel_names(connection: Connection, target: Target) -> None:
    """Remove the names of erased channels. The name of a thread or forum post is a text that a person wrote."""
    if target.scope == "user":
        return
    where = "guild_id = :id" if target.scope == "guild" else ":id IN (channel_id, parent_channel_id)"
    connection.execute(*_to_statement(f"UPDATE channels SET name = NULL WHERE {where}", target))  # noqa: S608 - constants


def _to_statement(sql: str, target: Target, **values: object) -> tuple[TextClause, dict[str, object]]:
    """Return a statement and the values of its parameters."""
    return text(sql), {"scope": target.scope, "id": target.id, "guild": target.guild_id, **values}
