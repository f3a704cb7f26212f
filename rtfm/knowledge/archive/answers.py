"""The stored answers: one row for each answered query, with the answer and the name of the answered record.

The first answer to a query is never replaced by another answer. If a source of an answer is a removed message, the
answer is withdrawn before it is stored or returned. If a caller stores a second answer to a query, the caller gets the
first answer back, and decides what to do with the second one.
"""

from __future__ import annotations

from collections.abc import Collection

import attrs
from attrs import frozen
from sqlalchemy import Connection, select, text
from sqlalchemy.dialects.postgresql import insert

from rtfm.events import (
    Audience,
    BotResponse,
    ChannelKind,
    Citation,
    Outcome,
    OutcomeReason,
    QueryOrigin,
    RetrievedPassage,
    SourceKind,
)
from rtfm.knowledge.archive.database import Database
from rtfm.knowledge.archive.removals import IS_READABLE, find_removed, lock_removals, source_message_ids, withdraw
from rtfm.knowledge.archive.tables import answers


@frozen(kw_only=True)
class StoredAnswer:
    """A stored answer. ``made_by`` is the name of the answered record: ``topic-partition-offset``."""

    response: BotResponse
    made_by: str


class ArchiveAnswers:
    """Reads and writes the table ``answers``. Raises what ``Database.begin`` raises."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, query_id: str) -> StoredAnswer | None:
        """Return the stored answer to a query, or None.

        If a source of the answer is a removed message, the answer is returned as a withdrawn one.
        """
        statement = select(answers.c.response, answers.c.made_by).where(answers.c.query_id == query_id)
        with self._database.begin() as connection:
            row = connection.execute(statement).one_or_none()
            if row is None:
                return None
            stored = StoredAnswer(response=_to_response(row.response), made_by=row.made_by)
            # When ingest deletes a message, it withdraws the stored answers that use the message. If a message is
            # erased but not deleted yet, the row of an answer that uses the message may still have the answer's
            # content. So the content is removed here from the value that is returned.
            return attrs.evolve(stored, response=_withdraw_if_removed(connection, stored.response))

    def store(self, response: BotResponse, *, made_by: str) -> StoredAnswer:
        """Store ``response``, unless its query has a stored answer already, and return the query's stored answer.

        If a source of the answer is a removed message, the answer is withdrawn before it is stored or returned.
        """
        with self._database.begin() as connection:
            lock_removals(connection, shared=True)
            response = _withdraw_if_removed(connection, response)
            values = {
                "query_id": response.query_id,
                "response": attrs.asdict(response),
                "answered_at": response.answered_at,
                "made_by": made_by,
            }
            # If the query has a row already, the statement makes an update that changes nothing. DO NOTHING would not
            # return the existing row.
            statement = (
                insert(answers)
                .values(values)
                .on_conflict_do_update(index_elements=["query_id"], set_={"query_id": answers.c.query_id})
                .returning(answers.c.response, answers.c.made_by)
            )
            row = connection.execute(statement).one()
            stored = _to_response(row.response)
            if stored != response:
                stored = _withdraw_if_removed(connection, stored)
        return StoredAnswer(response=stored, made_by=row.made_by)

    def find_readable(self, message_ids: Collection[str]) -> set[str]:
        """Return those of ``message_ids`` whose messages are in the archive and neither deleted nor erased."""
        statement = text(f"SELECT message_id FROM messages AS m WHERE message_id = ANY(:ids) AND {IS_READABLE}")  # noqa: S608 - a constant
        with self._database.begin() as connection:
            return set(connection.execute(statement, {"ids": list(message_ids)}).scalars())


def _withdraw_if_removed(connection: Connection, response: BotResponse) -> BotResponse:
    """Return ``response``, withdrawn if one of its sources was removed."""
    return withdraw(response) if find_removed(connection, source_message_ids(response)) else response


def _to_response(stored: dict[str, object]) -> BotResponse:
    values = dict(stored)
    values["audience"] = Audience(str(values["audience"]))
    values["outcome"] = Outcome(str(values["outcome"]))
    values["origin"] = QueryOrigin(str(values["origin"]))
    values["reason"] = None if values["reason"] is None else OutcomeReason(str(values["reason"]))
    values["citations"] = [
        Citation(**{**row, "kind": SourceKind(row["kind"]), "channel_kind": ChannelKind(row["channel_kind"])})
        for row in values["citations"]  # type: ignore[attr-defined]  # JSON holds a list here
    ]
    values["retrieved"] = [
        RetrievedPassage(**{**row, "kind": SourceKind(row["kind"])})
        for row in values["retrieved"]  # type: ignore[attr-defined]  # JSON holds a list here
    ]
    return BotResponse(**values)  # type: ignore[arg-type]  # the keys are BotResponse's own fields
