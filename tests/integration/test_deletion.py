"""Effects of a deletion on stored answers, word statistics and answers in progress, on real PostgreSQL and Chroma."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import psycopg
import pytest

from rtfm.events import BotResponse, MessageChange, Outcome, OutcomeReason, TimestampMillis
from rtfm.knowledge import Knowledge
from rtfm.processor.answer import Answering
from rtfm.settings import Settings
from rtfm.streams.consumer import Record
from tests.answering import LOCK, NOW, add, answerer, asked
from tests.fakes import gemini as fake
from tests.fakes.gemini import FakeGemini
from tests.knowledge import GUILD, START, deletion, dump, knowledge_of, message

ADVICE = "printctl"
"""A word that only the deleted message contains."""


@pytest.fixture
def knowledge(bare_settings: Settings) -> Iterator[Knowledge]:
    opened = knowledge_of(bare_settings, None)
    add(opened, *LOCK)
    yield opened
    opened.close()


@pytest.fixture
def gemini() -> Iterator[FakeGemini]:
    with FakeGemini() as running:
        yield running


def record(query: object, *, offset: int = 0) -> Record:
    return Record(
        topic="bot-queries", partition=0, offset=offset, key=None, value=None, headers=[], timestamp_ms=0, event=query
    )


def answering(knowledge: Knowledge, gemini: FakeGemini | None = None) -> Answering:
    return Answering(answerer=answerer(knowledge, gemini), archive=knowledge.archive)


def handle(handler: Answering, query: object) -> BotResponse:
    (output,) = handler([record(query)])
    assert isinstance(output.event, BotResponse)
    return output.event


def is_withdrawn(response: BotResponse) -> bool:
    """Return whether ``response`` says only that its source was removed."""
    said = (response.outcome, response.reason, response.answer, response.citations, response.retrieved)
    return said == (Outcome.NOT_FOUND, OutcomeReason.SOURCE_REMOVED, "", [], [])


def stored_answers(settings: Settings) -> str:
    with psycopg.connect(settings.database_url) as connection:
        return str(connection.execute("SELECT answers::text FROM answers").fetchall())


@pytest.mark.parametrize("with_model", [True, False], ids=["model", "extract"])
def test_a_deletion_withdraws_the_stored_answers_that_rest_on_the_message(
    knowledge: Knowledge, gemini: FakeGemini, bare_settings: Settings, with_model: bool
) -> None:
    """A deletion withdraws the stored answers that rest on the message.

    A repeated record of the question gets neither the old answer nor a new one, and the model is not called again.
    """
    gemini.reply = lambda *_: fake.written(f"Run `{ADVICE} unlock --stale` [1].", [1])
    handler = answering(knowledge, gemini if with_model else None)
    first = handle(handler, asked())
    assert ADVICE in first.answer
    add(knowledge, deletion(2))
    assert ADVICE not in stored_answers(bare_settings)
    again = handle(handler, asked())
    assert is_withdrawn(again)
    assert (again.query_id, again.asker_id, again.channel_id) == (first.query_id, first.asker_id, first.channel_id)
    assert handler([record(asked(), offset=1)]) == []
    assert len(gemini.requests) == with_model


def test_a_deletion_leaves_other_stored_answers_alone(knowledge: Knowledge) -> None:
    """A deletion does not withdraw stored answers that rest on other messages."""
    add(knowledge, message(20, "the scanner wants a driver called scanfix", author_id="4", channel_id="400"))
    handler = answering(knowledge)
    scanner = asked("which driver does the scanner want?", query_id="m50", visible_channel_ids=["400"])
    first = handle(handler, scanner)
    assert "scanfix" in first.answer
    handle(handler, asked())
    add(knowledge, deletion(2))
    assert handle(handler, scanner) == first
    assert is_withdrawn(handle(handler, asked()))


def test_words_of_deleted_messages_leave_the_statistics(knowledge: Knowledge, bare_settings: Settings) -> None:
    """If no other message contains a word of a deleted message, the deletion removes the word from the statistics.

    A word that other messages use stays, with its new count.
    """
    add(knowledge, message(20, "the scanner wants a stale scanfix", author_id="4", channel_id="400"))
    add(knowledge, deletion(20, channel_id="400"))
    assert "scanfix" not in str(dump(bare_settings))
    with psycopg.connect(bare_settings.database_url) as connection:
        rows: dict[str, int] = dict(connection.execute("SELECT term, passages FROM document_frequencies").fetchall())
    assert min(rows.values()) > 0
    assert rows["stal"] == 1
    add(knowledge, message(21, "scanfix is back", author_id="4", channel_id="400"))
    assert "scanfix" in str(dump(bare_settings))


def test_passages_that_the_model_read_without_citing_are_checked(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """If a message is deleted while a model reads it, the model's text is not used, whatever the text cites."""
    other = message(30, "printer stale job: switch the printer off and on", author_id="5", channel_id="500")
    add(knowledge, other)

    def late(document: dict[str, Any], _: str) -> str:
        add(knowledge, deletion(2))
        numbers = {source["number"]: str(source) for source in document["sources"]}
        (number,) = (number for number, source in numbers.items() if "off and on" in source and ADVICE not in source)
        return fake.written(f"Run `{ADVICE} unlock --stale` [{number}].", [number])

    gemini.reply = late
    response = handle(answering(knowledge, gemini), asked(visible_channel_ids=["200", "500"]))
    assert ADVICE not in str(response)
    assert response.outcome is Outcome.EXTRACTED
    assert "1030" in str(response.retrieved)


def test_an_extract_after_a_failed_model_is_checked_too(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """If a message is deleted while the model fails, the extract that replaces the answer does not quote it."""

    def failing(*_: object) -> str:
        add(knowledge, deletion(2))
        return "not the JSON that was asked for"

    gemini.reply = failing
    response = answerer(knowledge, gemini).answer(asked())
    assert ADVICE not in str(response)
    assert all("1002" not in passage.message_ids for passage in response.retrieved)


def test_an_answer_is_checked_when_it_is_stored(knowledge: Knowledge, bare_settings: Settings) -> None:
    """If a source of an answer is deleted shortly before the answer is stored, the answer is stored as withdrawn."""
    response = answerer(knowledge).answer(asked())
    assert ADVICE in response.answer
    add(knowledge, deletion(2))
    assert is_withdrawn(knowledge.archive.answers.store(response, made_by="bot-queries-0-0").response)
    assert ADVICE not in stored_answers(bare_settings)


def test_no_answer_is_stored_during_a_deletion(knowledge: Knowledge, bare_settings: Settings) -> None:
    """If 40 answers are stored while their 40 sources are deleted, no stored answer contains deleted text."""
    numbers = range(100, 140)
    add(
        knowledge,
        *(message(n, f"the stale job {n} needs tulip{n}", author_id="8", channel_id=str(n)) for n in numbers),
    )
    ask = answerer(knowledge)
    responses = {}
    for n in numbers:
        query = asked(f"what does the stale job {n} need, tulip{n}?", query_id=f"m{n}", visible_channel_ids=[str(n)])
        responses[n] = ask.answer(query)
        assert f"tulip{n}" in responses[n].answer
    together = threading.Barrier(2, timeout=60)

    def keep(n: int) -> BotResponse:
        together.wait()
        return knowledge.archive.answers.store(responses[n], made_by=f"bot-queries-0-{n}").response

    def delete(n: int) -> None:
        together.wait()
        add(knowledge, deletion(n, channel_id=str(n)))

    with ThreadPoolExecutor(2) as pool:
        for n in numbers:
            kept, deleted = pool.submit(keep, n), pool.submit(delete, n)
            kept.result(60)
            deleted.result(60)
    assert "tulip" not in stored_answers(bare_settings)
    assert "tulip" not in str(dump(bare_settings))


def erase(settings: Settings, scope: str, known_as: str, before: int = NOW, guild_id: str = "") -> None:
    """Write a row of an erasure, as `rtfm-cli forget` does."""
    with psycopg.connect(settings.database_url) as connection:
        connection.execute(
            "INSERT INTO erasures (scope, id, before, guild_id) VALUES (%s, %s, %s, %s)",
            (scope, known_as, before, guild_id),
        )


SCOPES = [("user", "2", ""), ("user", "2", GUILD), ("channel", "200", ""), ("guild", GUILD, "")]


@pytest.mark.parametrize(("scope", "known_as", "guild_id"), SCOPES)
def test_a_deletion_is_never_skipped_whatever_was_erased(
    knowledge: Knowledge, bare_settings: Settings, scope: str, known_as: str, guild_id: str
) -> None:
    """A deletion is applied even if an erasure covers the message.

    The erasure only says that the message may not be stored, so the deletion must remove the text.
    """
    erase(bare_settings, scope, known_as, guild_id=guild_id)
    add(knowledge, deletion(2), deletion(77))
    assert ADVICE not in str(dump(bare_settings))
    assert knowledge.archive.writing.messages(["1077"])["1077"].deleted


@pytest.mark.parametrize(("scope", "known_as", "guild_id"), SCOPES)
def test_what_was_erased_is_not_found_and_withdraws_answers(
    knowledge: Knowledge, bare_settings: Settings, scope: str, known_as: str, guild_id: str
) -> None:
    """Once an erasure covers a message, search does not find it, and stored answers that rest on it are withdrawn.

    In this test the message's DELETED record has not arrived yet. The name of an erased person is not shown either.
    """
    add(knowledge, message(20, "<@2> knows printers", author_id="6", channel_id="600"))
    handler = answering(knowledge)
    assert ADVICE in handle(handler, asked()).answer
    response = answerer(knowledge).answer(asked(query_id="m43"))
    erase(bare_settings, scope, known_as, guild_id=guild_id)
    found = knowledge.retriever.search(
        "printer locked stale job unlock", guild_id=GUILD, visible_channel_ids=["200"], limit=9
    )
    assert ADVICE not in str(found.passages)
    assert knowledge.archive.answers.find_readable(["1002"]) == set()
    assert knowledge.archive.removals.find_removed(["1002", "unknown"]) == {"1002"}
    assert is_withdrawn(handle(handler, asked()))
    assert is_withdrawn(knowledge.archive.answers.store(response, made_by="").response)
    named = knowledge.retriever.search(
        "who knows printers", guild_id=GUILD, visible_channel_ids=["600"], limit=9
    ).passages
    if scope == "user":
        assert "@someone" in str(named)
    assert "@bea" not in str(named)


def test_an_erasure_in_one_guild_leaves_the_person_alone_in_others(
    knowledge: Knowledge, bare_settings: Settings
) -> None:
    """An erasure affects only its own guild, its own channel, and messages that are not newer than the erasure."""
    erase(bare_settings, "user", "2", guild_id="999")
    erase(bare_settings, "channel", "201")
    erase(bare_settings, "guild", "101")
    erase(bare_settings, "user", "1", before=START)
    assert ADVICE in answerer(knowledge).answer(asked()).answer
    assert knowledge.archive.answers.find_readable(["1001", "1002"]) == {"1001", "1002"}
    add(knowledge, message(40, "tulips grow in spring", author_id="2"))
    assert knowledge.archive.answers.find_readable(["1040"]) == {"1040"}


@pytest.mark.parametrize("created_at", [-1, 0, -62_135_596_800_000])
def test_an_odd_time_does_not_count_as_erased(knowledge: Knowledge, created_at: int) -> None:
    """If there is no erasure, a message with an impossible time does not count as erased."""
    add(knowledge, message(40, "tulips grow in spring", created_at=TimestampMillis(created_at)))
    assert not knowledge.archive.writing.messages(["1040"])["1040"].deleted


def test_an_edit_of_what_was_erased_does_not_bring_it_back(knowledge: Knowledge, bare_settings: Settings) -> None:
    """An edit of an erased message does not restore its text."""
    erase(bare_settings, "user", "2")
    edit = attrs.evolve(
        LOCK[1], content="tulip", change=MessageChange.EDITED, edited_at=TimestampMillis(START + 900_000)
    )
    add(knowledge, deletion(2), edit, LOCK[1])
    assert knowledge.archive.writing.messages(["1002"])["1002"].content == ""


@pytest.mark.parametrize(("scope", "known_as"), [("user", "7"), ("guild", GUILD), ("channel", "200")])
def test_a_question_of_an_erased_person_is_not_asked_again(
    knowledge: Knowledge, gemini: FakeGemini, bare_settings: Settings, scope: str, known_as: str
) -> None:
    """A question of an erased person, or in an erased guild or channel, gets NOT_FOUND, and no model reads it."""
    erase(bare_settings, scope, known_as)
    assert is_withdrawn(handle(answering(knowledge, gemini), asked()))
    assert gemini.requests == []
