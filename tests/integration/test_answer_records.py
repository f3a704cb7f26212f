"""Each question has one stored answer, however many records it has; on real PostgreSQL, with a fake Gemini."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from attrs import evolve

from rtfm.answering.answerer import Answerer
from rtfm.errors import InvalidEvent, Unavailable
from rtfm.events import BotResponse, Outcome, OutcomeReason, QueryOrigin, find_broken_rule
from rtfm.knowledge import Knowledge, SearchResult
from rtfm.processor.answer import Answering
from rtfm.settings import Settings
from rtfm.streams.consumer import Record
from tests.answering import LOCK, NOW, add, answerer, asked, printer_guild
from tests.fakes import gemini as fake
from tests.fakes.gemini import FakeGemini
from tests.knowledge import GUILD, message


@pytest.fixture
def knowledge(bare_settings: Settings) -> Iterator[Knowledge]:
    """The knowledge of a guild with one answered question in an open channel and a secret in another channel."""
    opened = printer_guild(bare_settings)
    yield opened
    opened.close()


@pytest.fixture
def gemini() -> Iterator[FakeGemini]:
    with FakeGemini() as running:
        yield running


def record(query: object, *, partition: int = 0, offset: int = 0, timestamp_ms: int = 0) -> Record:
    return Record(
        topic="bot-queries",
        partition=partition,
        offset=offset,
        key=None,
        value=None,
        headers=[],
        timestamp_ms=timestamp_ms,
        event=query,
    )


def handle(handler: Answering, query: object) -> BotResponse:
    (output,) = handler([record(query)])
    assert output.topic == "bot-responses"
    assert isinstance(output.event, BotResponse)
    return output.event


def test_a_repeated_record_gets_its_stored_answer(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """R21: A record that is delivered twice gets the same answer twice, with one request to the model."""
    handler = Answering(answerer=answerer(knowledge, gemini), archive=knowledge.archive)
    first = handle(handler, asked())
    add(knowledge, message(30, "printer stale job unlock: throw it away", author_id="9"))
    assert handle(handler, asked()) == first
    assert len(gemini.requests) == 1


@pytest.mark.parametrize(("partition", "offset"), [(0, 1), (1, 0)])
def test_a_second_record_of_an_answered_question_produces_nothing(
    knowledge: Knowledge, gemini: FakeGemini, partition: int, offset: int
) -> None:
    """R21: A second record of an answered question produces no response, and the model is not called again."""
    handler = Answering(answerer=answerer(knowledge, gemini), archive=knowledge.archive)
    first = handle(handler, asked())
    kept = knowledge.archive.answers.find("m42")
    assert kept is not None
    assert (kept.made_by, kept.response) == ("bot-queries-0-0", first)
    assert handler([record(asked(), partition=partition, offset=offset)]) == []
    assert len(gemini.requests) == 1
    assert handle(handler, asked()) == first


@pytest.mark.parametrize(("other", "responses"), [(0, 2), (1, 1)], ids=["the same record", "another record"])
def test_two_processors_with_one_question_store_one_answer(
    knowledge: Knowledge, gemini: FakeGemini, other: int, responses: int
) -> None:
    """R21: If two processors answer one question at the same time, one stored answer remains.

    If both processors handle the same record, both handlers return the stored answer, and Kafka commits one of these
    two outputs. If the processors handle different records, the handler whose answer was stored returns this answer,
    and the other handler returns nothing.
    """
    together = threading.Barrier(2, timeout=30)

    def differing(document: dict[str, Any], instructions: str) -> str:
        return fake.written(f"Answer number {together.wait()} [1].", [1])

    gemini.reply = differing
    handlers = [Answering(answerer=answerer(knowledge, gemini), archive=knowledge.archive) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(handlers[i], [record(asked(), offset=offset)]) for i, offset in enumerate((0, other))]
        outputs = [output.event for run in runs for output in run.result(60)]
    kept = knowledge.archive.answers.find("m42")
    assert kept is not None
    assert outputs == [kept.response] * responses
    assert len(gemini.requests) == 2


@pytest.mark.parametrize("query", [asked(query_id=""), asked(query_id="m\x00"), asked(query_id="5" * 129), LOCK[0]])
def test_a_question_without_usable_ids_is_invalid(knowledge: Knowledge, query: object) -> None:
    """A question with an invalid query_id, and an event that is no BotQuery, raise InvalidEvent."""
    with pytest.raises(InvalidEvent, match=r"query_id must match|is not a BotQuery"):
        handle(Answering(answerer=answerer(knowledge), archive=knowledge.archive), query)


ID_RULE = "must match [A-Za-z0-9._:@-]{1,128}"
SNOWFLAKE_RULE = "must be a Discord id (an integer below 2**64), because origin is MENTION"
TIME_RULE = "must be in the years 1 to 9999"


@pytest.mark.parametrize(
    ("fields", "answer", "repaired"),
    [
        ({"channel_id": "2 00"}, f"channel_id {ID_RULE}", {"channel_id": "0"}),
        ({"asker_id": "x" * 200}, f"asker_id {ID_RULE}", {"asker_id": "0"}),
        ({"guild_id": ""}, f"guild_id {ID_RULE}", {"guild_id": "0"}),
        ({"message_id": "\x00"}, f"message_id {ID_RULE}", {"query_message_id": "0"}),
        ({"visible_channel_ids": ["200", "2\x0000"]}, f"visible_channel_ids {ID_RULE}", {}),
        ({"asker_id": "helpdesk-7", "origin": QueryOrigin.MENTION}, f"asker_id {SNOWFLAKE_RULE}", {"asker_id": "0"}),
        ({"asked_at": 1_800_000_000_000_000}, f"asked_at {TIME_RULE}", {"asked_at": NOW - 5}),
        ({"expires_at": -(2**63)}, f"expires_at {TIME_RULE}", {}),
        (
            {"asker_id": "ann smith", "asked_at": 2**62},
            f"asker_id {ID_RULE}; asked_at {TIME_RULE}",
            {"asker_id": "0", "asked_at": NOW - 5},
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_a_question_that_breaks_a_rule_is_refused_with_the_rule(
    knowledge: Knowledge, gemini: FakeGemini, fields: dict[str, Any], answer: str, repaired: dict[str, Any]
) -> None:
    """The refusal of an invalid question is valid itself, and names the field and the rule, but not the value."""
    handler = Answering(answerer=answerer(knowledge, gemini), archive=knowledge.archive)
    query = asked(**fields)
    (output,) = handler([record(query, timestamp_ms=NOW - 5)])
    response = output.event
    assert (response.outcome, response.reason) == (Outcome.REFUSED, OutcomeReason.INVALID_FIELD)
    assert response.answer == answer
    expected: dict[str, Any] = {"guild_id": GUILD, "channel_id": "200", "query_message_id": "42", "asker_id": "7"}
    expected |= {"asked_at": query.asked_at, **repaired}
    assert {name: getattr(response, name) for name in expected} == expected
    assert find_broken_rule(response, now=NOW) is None
    assert gemini.requests == []
    assert [output.event for output in handler([record(query, timestamp_ms=NOW - 5)])] == [response]
    assert handler([record(query, offset=1)]) == []


@pytest.mark.parametrize("timestamp_ms", [-1, 0, 10**17, -(10**17)])
def test_a_record_without_a_valid_time_is_refused_at_the_time_of_answering(
    knowledge: Knowledge, timestamp_ms: int
) -> None:
    """If the record of a refused question has no valid time, the refusal has the time of answering.

    Producers may write any number as the time of a record.
    """
    handler = Answering(answerer=answerer(knowledge), archive=knowledge.archive)
    (output,) = handler([record(asked(asked_at=2**62), timestamp_ms=timestamp_ms)])
    assert output.event.asked_at == NOW


def test_a_question_that_a_store_refuses_is_refused(knowledge: Knowledge) -> None:
    """If a store refuses a question, the outcome is REFUSED, and no error is raised."""

    class Refusing:
        def search(self, question: str, **_: object) -> SearchResult:
            raise InvalidEvent("Chroma cannot store a value")

    handler = Answering(answerer=Answerer(Refusing(), None, clock=lambda: NOW), archive=knowledge.archive)
    response = handle(handler, asked())
    assert (response.outcome, response.reason) == (Outcome.REFUSED, OutcomeReason.INVALID_FIELD)
    assert response.answer.startswith("question must")


def test_a_message_of_an_impossible_year_is_cited_without_its_date(
    knowledge: Knowledge, bare_settings: Settings
) -> None:
    """If a message has an impossible year, which an earlier version could store, it is cited without a date."""
    with psycopg.connect(bare_settings.database_url) as connection:
        connection.execute("UPDATE messages SET created_at = 2000000000000000 WHERE message_id = '1002'")
    response = handle(Answering(answerer=answerer(knowledge), archive=knowledge.archive), asked())
    assert response.outcome is Outcome.EXTRACTED
    assert {c.message_id: c.created_at for c in response.citations}["1002"] is None
    assert find_broken_rule(response, now=NOW) is None


@pytest.mark.parametrize("question", ["\x00\x07?", "x" * 20_000, "🙂", "ﷺ" * 100, "a", "%' OR 1=1; --", "<@1> <@2>"])
def test_any_question_gets_an_outcome(knowledge: Knowledge, question: str) -> None:
    """Questions of control characters, 20,000 characters, emoji or a single letter get an outcome."""
    response = handle(
        Answering(answerer=answerer(knowledge), archive=knowledge.archive), asked(question, query_id="m1")
    )
    assert response.outcome in (Outcome.NOT_FOUND, Outcome.EXTRACTED)


def test_a_database_that_is_gone_is_waited_for(knowledge: Knowledge, bare_settings: Settings) -> None:
    """While PostgreSQL is down, Unavailable is raised, so that no wrong answer is given."""
    away = knowledge_of_nothing(bare_settings)
    with pytest.raises(Unavailable):
        handle(Answering(answerer=answerer(away), archive=away.archive), asked())
    away.close()


def knowledge_of_nothing(settings: Settings) -> Knowledge:
    from rtfm.knowledge import open_knowledge

    return open_knowledge(evolve(settings, database_url="postgresql://nobody@127.0.0.1:9/nothing"))
