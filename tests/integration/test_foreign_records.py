"""Invalid records of other programs: each is refused or becomes a dead letter, and blocks no other record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from attrs import evolve

from rtfm.contracts import Contracts, reference
from rtfm.events import Outcome, OutcomeReason, QueryOrigin, TimestampMillis
from rtfm.knowledge import Knowledge
from rtfm.processor.answer import Answering
from rtfm.processor.ingest import Ingest
from rtfm.settings import Settings
from rtfm.streams.consumer import Record
from tests.answering import NOW, answerer, asked
from tests.knowledge import GUILD, WordEmbedding, knowledge_of, message
from tests.streams import (
    MESSAGES,
    QUERIES,
    RESPONSES,
    dead_letters,
    eventually,
    produce_raw,
    produce_raws,
    records,
    running,
)


@pytest.fixture
def knowledge(settings: Settings) -> Iterator[Knowledge]:
    opened = knowledge_of(settings, WordEmbedding())
    yield opened
    opened.vectors.forget_guild(GUILD)
    opened.close()


def encode_unchecked(contracts: Contracts, topic: str, event: Any) -> bytes:
    """Encode ``event`` like a program that knows the schema but not the rules."""
    codec = contracts.codec(topic)
    schema_id = contracts.registry.id_for(topic, codec.schema)
    return reference.encoder(codec.schema)(event, b"\x00" + schema_id.to_bytes(4, "big"))


def reasons(letters: list[Record]) -> list[str]:
    """Return the reasons in the headers of dead letters."""
    return sorted((letter.header("__connect.errors.exception.message") or b"").decode() for letter in letters)


def test_400_careless_questions_are_refused_and_one_good_one_is_answered(
    settings: Settings, contracts: Contracts, knowledge: Knowledge
) -> None:
    """400 questions with invalid ids each get a refusal that names the rule, and a valid question is answered."""
    queries = [
        asked(query_id=f"helpdesk-{number}", asker_id="ann smith", origin=QueryOrigin.SERVICE) for number in range(400)
    ]
    good = asked(query_id="helpdesk-good", asker_id="ann@example.org", origin=QueryOrigin.SERVICE)
    values = [encode_unchecked(contracts, QUERIES, query) for query in (*queries, good)]
    produce_raws(settings, QUERIES, values, key=b"one")
    handler = Answering(answerer=answerer(knowledge), archive=knowledge.archive)
    with running(settings, contracts, handler, topic=QUERIES, concurrency=4):
        eventually(lambda: len(records(settings, contracts, RESPONSES)) >= 401, timeout_s=120)
    responses = {record.event.query_id: record.event for record in records(settings, contracts, RESPONSES)}
    assert responses.pop("helpdesk-good").outcome is Outcome.NOT_FOUND
    assert responses.keys() == {query.query_id for query in queries}
    assert {(one.outcome, one.reason, one.asker_id, one.answer) for one in responses.values()} == {
        (Outcome.REFUSED, OutcomeReason.INVALID_FIELD, "0", "asker_id must match [A-Za-z0-9._:@-]{1,128}")
    }
    assert dead_letters(settings, contracts) == []


def test_a_refused_question_carries_the_time_of_its_record(
    settings: Settings, contracts: Contracts, knowledge: Knowledge
) -> None:
    """If asked_at of a question is in microseconds, the refusal has the time of the question's record instead.

    If the query_id is invalid, no response could carry this id, so the question becomes a dead letter.
    """
    micros = encode_unchecked(contracts, QUERIES, asked(query_id="q1", asked_at=TimestampMillis(NOW * 1000)))
    nameless = encode_unchecked(contracts, QUERIES, asked(query_id="spaced out"))
    produce_raw(settings, QUERIES, micros)
    produce_raw(settings, QUERIES, nameless)
    handler = Answering(answerer=answerer(knowledge), archive=knowledge.archive)
    with running(settings, contracts, handler, topic=QUERIES):
        (letter,) = eventually(lambda: dead_letters(settings, contracts))
        (record,) = eventually(lambda: records(settings, contracts, RESPONSES))
    (of_query,) = (one for one in records(settings, contracts, QUERIES) if one.value == micros)
    assert (record.event.query_id, record.event.asked_at) == ("q1", of_query.timestamp_ms)
    assert record.event.answer == "asked_at must be in the years 1 to 9999"
    assert letter.value == nameless
    assert reasons([letter]) == ["BotQuery.query_id must match [A-Za-z0-9._:@-]{1,128}"]


def test_messages_that_break_a_rule_are_dead_letters_and_the_others_are_archived(
    settings: Settings, contracts: Contracts, knowledge: Knowledge
) -> None:
    """Messages that break a rule become dead letters, and valid messages of the same batch are archived.

    The pipeline does not wait, and the reason in a dead letter does not repeat the invalid value.
    """
    good = [message(number, f"tulips {number}", author_id=str(number)) for number in range(6)]
    bad = {
        "guild_id must match [A-Za-z0-9._:@-]{1,128}": message(11, "x", guild_id="a b"),
        "message_id must match [A-Za-z0-9._:@-]{1,128}": evolve(message(12, "x"), message_id="f" * 400_000),
        "created_at must be in the years 1 to 9999": message(13, "x", created_at=TimestampMillis(NOW * 1000)),
        "edited_at must be in the years 1 to 9999": message(14, "x", edited_at=TimestampMillis(-(2**63))),
        "observed_at must not be more than a minute after the present time": message(
            15, "x", observed_at=TimestampMillis(2**47)
        ),
        "channel_id differs from the known channel of the message": message(
            1, "moved", channel_id="201", edited_at=NOW
        ),
    }
    events = [event for pair in zip(good, bad.values(), strict=True) for event in pair]
    # Message 1 comes first: a later record tries to move it to another channel, which is invalid for a known message.
    produce_raws(settings, MESSAGES, [encode_unchecked(contracts, MESSAGES, event) for event in [good[1], *events]])
    ingest = Ingest(knowledge=knowledge)

    def handler(batch: Any) -> list[Any]:
        ingest(batch)
        return []

    with running(settings, contracts, handler, topic=MESSAGES, batch_size=500):
        eventually(lambda: len(dead_letters(settings, contracts)) >= len(bad), timeout_s=120)
        eventually(lambda: knowledge.archive.counts()["messages"] == len(good))
    assert reasons(dead_letters(settings, contracts)) == sorted(f"DiscordMessage.{reason}" for reason in bad)
