"""Erasing a person, a channel or a guild: what is reached, the row that says so, and the answers that go at once.

Promises that from the moment of the row on nothing of the erased is found, shown or taken again, and that an erasure
which was cut off is known. Does not remove messages: a DELETED event each does, which ingest honours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from attrs import frozen
from sqlalchemy import Connection, TextClause, text

from rtfm.events import TimestampMillis
from rtfm.knowledge.archive.database import Database
from rtfm.knowledge.archive.removals import WITHDRAWN, hold_removals
from rtfm.knowledge.archive.rows import Scope
from rtfm.knowledge.archive.tables import RESTS_ON

_MESSAGES: Mapping[Scope, str] = {
    "user": "m.author_id = :id AND :guild IN ('', m.guild_id)",
    "channel": "(m.channel_id = :id"
    " OR m.channel_id IN (SELECT channel_id FROM channels WHERE parent_channel_id = :id))",
    "guild": "m.guild_id = :id",
}
"""Which messages ``m`` an erasure reaches; those said before it."""

_ASKED: Mapping[Scope, str] = {
    "user": "response ->> 'asker_id' = :id AND :guild IN ('', coalesce(response ->> 'guild_id', ''))",
    "channel": "response ->> 'channel_id' = :id",
    "guild": "response ->> 'guild_id' = :id",
}
"""Which kept answers are answers to questions of the erased."""

_NAMED = f"""{RESTS_ON} ?| ARRAY(
    SELECT message_id FROM messages AS m WHERE :guild IN ('', m.guild_id) AND (:id = ANY(mentioned_user_ids)
        OR position('<@' || :id || '>' IN content) > 0 OR position('<@!' || :id || '>' IN content) > 0))"""  # noqa: S608 - a constant
"""Which kept answers rest on messages that mention a person, whose name they may give."""

_HOLDS = "response ->> 'reason' IS DISTINCT FROM 'SOURCE_REMOVED'"


@frozen(kw_only=True)
class Target:
    """What is erased. ``guild_id`` limits a person to one guild; '' is all."""

    scope: Scope
    id: str
    guild_id: str = ""


@frozen(kw_only=True)
class Reach:
    """How much an erasure reaches: what is removed, and which kept answers lose what they say."""

    messages: int
    passages: int
    vectors: int
    answers_that_quote: int
    answers_to_own_questions: int
    answers_that_name: int


@frozen(kw_only=True)
class Told:
    """A message whose deletion has to be told."""

    message_id: str
    guild_id: str
    channel_id: str
    created_at: TimestampMillis


@frozen(kw_only=True)
class Pass:
    """One way through the messages of an erasure, by id: those after ``after``, said from ``since`` on.

    The first one of an erasure is noted while it goes on; ``is_noted`` says so.
    """

    before: TimestampMillis
    after: str = ""
    since: TimestampMillis | None = None
    is_noted: bool = True


class ArchiveErasing:
    """Reads and writes of ``erasures``, for who erases. Raises what ``Database.begin`` raises."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def reach(self, target: Target) -> Reach:
        """What erasing ``target`` would reach now."""
        of_messages = f"FROM messages AS m WHERE NOT m.deleted AND {_MESSAGES[target.scope]}"
        of_passages = f"""FROM passages AS p WHERE EXISTS (
            SELECT {of_messages} AND (m.passage_id = p.passage_id OR m.message_id = p.part_of))"""
        answers = "SELECT count(*) FROM answers WHERE"
        counts = {
            "messages": f"SELECT count(*) {of_messages}",
            "passages": f"SELECT count(*) {of_passages}",
            "vectors": f"SELECT (SELECT count(m.vector) {of_messages}) + (SELECT count(p.vector) {of_passages})",
            "answers_that_quote": f"{answers} {_HOLDS} AND {_resting(target)}",
            "answers_to_own_questions": f"{answers} {_ASKED[target.scope]}",
            "answers_that_name": f"{answers} {_HOLDS} AND {_naming(target)}",
        }
        with self._database.begin() as connection:
            return Reach(
                **{name: connection.execute(*_bound(sql, target)).scalar_one() for name, sql in counts.items()}
            )

    def begin(self, target: Target, *, before: TimestampMillis) -> list[Pass]:
        """Erase ``target`` as it was up to ``before``; which messages' deletions have to be told, in which passes.

        After an erasure that was cut off, the first pass begins where that ended.
        """
        withdrawn = json.dumps(WITHDRAWN)
        anonymous = json.dumps({**WITHDRAWN, **({"asker_id": "0"} if target.scope == "user" else {})})
        with self._database.begin() as connection:
            hold_removals(connection, shared=False)
            row = connection.execute(
                *_bound(
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
            connection.execute(*_bound(sql, target, before=before))
            answers = "UPDATE answers SET response = response || CAST(:fields AS jsonb) WHERE"
            connection.execute(*_bound(f"{answers} {_ASKED[target.scope]}", target, fields=anonymous))
            for condition in (_resting(target), _naming(target)):
                connection.execute(*_bound(f"{answers} {_HOLDS} AND {condition}", target, fields=withdrawn))
            _forget_names(connection, target)
        if row is None or row.produced_to is None:
            return [Pass(before=before)]
        since = TimestampMillis(row.before)
        return [Pass(before=before, after=row.produced_to), Pass(before=before, since=since, is_noted=False)]

    def page(self, target: Target, part: Pass, *, limit: int) -> list[Told]:
        """The next ``limit`` messages of a pass, by id."""
        sql = f"""
            SELECT message_id, guild_id, channel_id, created_at FROM messages AS m
            WHERE NOT m.deleted AND {_MESSAGES[target.scope]} AND created_at < :before
              AND created_at >= coalesce(CAST(:since AS bigint), created_at) AND message_id COLLATE "C" > :after
            ORDER BY message_id COLLATE "C" LIMIT :limit
        """  # noqa: S608 - constants
        values = {"before": part.before, "since": part.since, "after": part.after, "limit": limit}
        with self._database.begin() as connection:
            return [Told(**row._mapping) for row in connection.execute(*_bound(sql, target, **values))]

    def note(self, target: Target, produced_to: str | None) -> None:
        """Note that all up to ``produced_to`` is told; None for all."""
        sql = "UPDATE erasures SET produced_to = :to WHERE (scope, id, guild_id) = (:scope, :id, :guild)"
        with self._database.begin() as connection:
            connection.execute(*_bound(sql, target, to=produced_to))


def _resting(target: Target) -> str:
    """Which kept answers rest on messages of the erased; an answer rests on messages of its own guild only."""
    if target.scope == "guild":
        return _ASKED["guild"]
    return f"{RESTS_ON} ?| ARRAY(SELECT message_id FROM messages AS m WHERE {_MESSAGES[target.scope]})"  # noqa: S608 - constants


def _naming(target: Target) -> str:
    return _NAMED if target.scope == "user" else "false"


def _forget_names(connection: Connection, target: Target) -> None:
    """The names of erased channels, which for threads and posts are what somebody wrote."""
    if target.scope == "user":
        return
    where = "guild_id = :id" if target.scope == "guild" else ":id IN (channel_id, parent_channel_id)"
    connection.execute(*_bound(f"UPDATE channels SET name = NULL WHERE {where}", target))  # noqa: S608 - constants


def _bound(sql: str, target: Target, **values: object) -> tuple[TextClause, dict[str, object]]:
    """A statement and the values that it may name."""
    return text(sql), {"scope": target.scope, "id": target.id, "guild": target.guild_id, **values}
