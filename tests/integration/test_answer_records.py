"""Records of questions, each with one answer that is kept, over real PostgreSQL and with a fake Gemini."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest
from attrs import evolve

from rtfm.errors import InvalidEvent, Unavailable
from rtfm.events import BotResponse, Outcome
from rtfm.knowledge import Knowledge
from rtfm.processor.answer import Answering
from rtfm.settings import Settings
from rtfm.streams.consumer import Record
from tests.answering import LOCK, add, answerer, asked, printer_guild
from tests.fakes import gemini as fake
from tests.fakes.gemini import FakeGemini
from tests.knowledge import message


@pytest.fixture
def knowledge(bare_settings: Settings) -> Iterator[Knowledge]:
    """A guild with one answered question in an open channel and a secret in another."""
    opened = printer_guild(bare_settings)
    yield opened
    opened.close()


@pytest.fixture
def gemini() -> Iterator[FakeGemini]:
    with FakeGemini() as running:
        yield running


def record(query: object, *, partition: int = 0, offset: int = 0) -> Record:
    return Record(
        topic="bot-queries",
        partition=partition,
        offset=offset,
        key=None,
        value=None,
        headers=[],
        timestamp_ms=0,
        event=query,
    )


def handled(handler: Answering, query: object) -> BotResponse:
    (output,) = handler([record(query)])
    assert output.topic == "bot-responses"
    assert isinstance(output.event, BotResponse)
    return output.event


def test_r21_a_record_that_comes_again_gets_the_answer_that_it_had(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """R21: the second delivery asks no model and says the same, whatever was said meanwhile."""
    handler = Answering(answerer=answerer(knowledge, gemini), archive=knowledge.archive)
    first = handled(handler, asked())
    add(knowledge, message(30, "printer stale job unlock: throw it away", author_id="9"))
    assert handled(handler, asked()) == first
    assert len(gemini.requests) == 1


@pytest.mark.parametrize(("partition", "offset"), [(0, 1), (1, 0)])
def test_r21_a_second_record_of_an_answered_question_produces_nothing(
    knowledge: Knowledge, gemini: FakeGemini, partition: int, offset: int
) -> None:
    """R21: the row names the record that made it; another one gets no answer and asks no model."""
    handler = Answering(answerer=answerer(knowledge, gemini), archive=knowledge.archive)
    first = handled(handler, asked())
    kept = knowledge.archive.answers.find("m42")
    assert kept is not None
    assert (kept.made_by, kept.response) == ("bot-queries-0-0", first)
    assert handler([record(asked(), partition=partition, offset=offset)]) == []
    assert len(gemini.requests) == 1
    assert handled(handler, asked()) == first


@pytest.mark.parametrize(("other", "responses"), [(0, 2), (1, 1)], ids=["the same record", "another record"])
def test_r21_two_workers_with_one_question_at_once_agree(
    knowledge: Knowledge, gemini: FakeGemini, other: int, responses: int
) -> None:
    """R21: one row stays. The same record on two workers gives both its answer, of which Kafka commits one; of two
    records the one that made the row answers, and the other produces nothing."""
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


def test_an_answer_of_an_older_version_is_given_again(knowledge: Knowledge) -> None:
    """Its row does not say which record made it, and no answer would be worse than a second one."""
    response = handled(Answering(answerer=answerer(knowledge), archive=knowledge.archive), asked())
    other = attrs.evolve(response, query_id="m43")
    knowledge.archive.answers.keep(other, made_by="")
    assert handled(Answering(answerer=answerer(knowledge), archive=knowledge.archive), asked(query_id="m43")) == other


@pytest.mark.parametrize(
    "query",
    [
        asked(query_id=""),
        asked(query_id="m\x00"),
        asked(channel_id="2 00"),
        asked(asker_id="x" * 200),
        asked(guild_id=""),
        asked(visible_channel_ids=["200", "2\x0000"]),
        LOCK[0],
    ],
)
def test_a_question_that_breaks_a_rule_is_invalid(knowledge: Knowledge, query: object) -> None:
    """It belongs in dead-letters, for no database takes such ids."""
    with pytest.raises(InvalidEvent):
        handled(Answering(answerer=answerer(knowledge), archive=knowledge.archive), query)


@pytest.mark.parametrize("question", ["\x00\x07?", "x" * 20_000, "🙂", "ﷺ" * 100, "a", "%' OR 1=1; --", "<@1> <@2>"])
def test_any_question_gets_an_outcome(knowledge: Knowledge, question: str) -> None:
    """Control characters, 20,000 characters, emoji, one letter."""
    response = handled(
        Answering(answerer=answerer(knowledge), archive=knowledge.archive), asked(question, query_id="m1")
    )
    assert response.outcome in (Outcome.NOT_FOUND, Outcome.EXTRACTED)


def test_a_database_that_is_gone_is_waited_for(knowledge: Knowledge, bare_settings: Settings) -> None:
    """The question is not answered wrongly for want of the archive."""
    away = knowledge_of_nothing(bare_settings)
    with pytest.raises(Unavailable):
        handled(Answering(answerer=answerer(away), archive=away.archive), asked())
    away.close()


def knowledge_of_nothing(settings: Settings) -> Knowledge:
    from rtfm.knowledge import open_knowledge

    return open_knowledge(evolve(settings, database_url="postgresql://nobody@127.0.0.1:9/nothing"))
