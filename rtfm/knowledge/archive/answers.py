"""The answers that were given: one row a question, which names the record that made it.

Promises that the first answer to a question stays, whoever else writes one, and that none is kept or given that rests
on a removed message. Does not decide what becomes of a second.
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
from rtfm.knowledge.archive.removals import STANDS, hold_removals, removed, rests_on, withdrawn
from rtfm.knowledge.archive.tables import answers


@frozen(kw_only=True)
class KeptAnswer:
    """An answer, and the record (topic-partition-offset) that asked for it."""

    response: BotResponse
    made_by: str


class ArchiveAnswers:
    """Reads and writes of ``answers``. Raises what ``Database.begin`` raises."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, query_id: str) -> KeptAnswer | None:
        """The answer that was given to a question; None if there is none yet."""
        statement = select(answers.c.response, answers.c.made_by).where(answers.c.query_id == query_id)
        with self._database.begin() as connection:
            row = connection.execute(statement).one_or_none()
            if row is None:
                return None
            kept = KeptAnswer(response=_to_response(row.response), made_by=row.made_by)
            # What was deleted is withdrawn already; what was erased waits for its deletion.
            return attrs.evolve(kept, response=_checked(connection, kept.response))

    def keep(self, response: BotResponse, *, made_by: str) -> KeptAnswer:
        """Keep an answer under its ``query_id``. The first one stays: gives the one that is kept.

        An answer that rests on a removed message is kept and given without what it says.
        """
        with self._database.begin() as connection:
            hold_removals(connection, shared=True)
            response = _checked(connection, response)
            values = {
                "query_id": response.query_id,
                "response": attrs.asdict(response),
                "answered_at": response.answered_at,
                "made_by": made_by,
            }
            # An update that changes nothing, for an insert that does nothing returns nothing.
            statement = (
                insert(answers)
                .values(values)
                .on_conflict_do_update(index_elements=["query_id"], set_={"query_id": answers.c.query_id})
                .returning(answers.c.response, answers.c.made_by)
            )
            row = connection.execute(statement).one()
            kept = _to_response(row.response)
            if kept != response:
                kept = _checked(connection, kept)
        return KeptAnswer(response=kept, made_by=row.made_by)

    def standing(self, message_ids: Collection[str]) -> set[str]:
        """Those of ``message_ids`` whose messages are known and can still be read: neither deleted nor erased."""
        statement = text(f"SELECT message_id FROM messages AS m WHERE message_id = ANY(:ids) AND {STANDS}")  # noqa: S608 - a constant
        with self._database.begin() as connection:
            return set(connection.execute(statement, {"ids": list(message_ids)}).scalars())


def _checked(connection: Connection, response: BotResponse) -> BotResponse:
    """``response``, without what it says if a message that it rests on is removed."""
    return withdrawn(response) if removed(connection, rests_on(response)) else response


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
