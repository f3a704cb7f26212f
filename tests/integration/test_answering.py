"""Questions to answers over real PostgreSQL and Chroma, with a fake Gemini behind the real client."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest
from attrs import evolve

from rtfm.answering.answerer import Answerer
from rtfm.answering.gemini import GeminiModel
from rtfm.errors import InvalidEvent, Unavailable
from rtfm.events import (
    Audience,
    BotQuery,
    BotResponse,
    ChannelKind,
    ContextMessage,
    DiscordMessage,
    MessageChange,
    Outcome,
    Speaker,
    TimestampMillis,
    to_datetime,
)
from rtfm.knowledge import Knowledge
from rtfm.processor.answer import Answering
from rtfm.processor.ingest import Ingest
from rtfm.settings import Settings
from rtfm.streams.consumer import Record
from tests.fakes import gemini as fake
from tests.fakes.gemini import FakeGemini, Fault
from tests.knowledge import GUILD, Heard, knowledge_of, message

NOW = TimestampMillis(1_800_000_000_000)
LOCK = (
    message(1, "the printer is locked by a stale job after the power cut", author_id="1", author_name="ada"),
    message(
        2,
        "remove the stale job: `printctl unlock --stale`",
        author_id="2",
        author_name="bea",
        reply_to_message_id="1001",
    ),
)
SECRET = message(
    9,
    "printer unlock code for staff is `printctl unlock --master`, stale or not",
    author_id="3",
    author_name="cyd",
    channel_id="300",
)


def asked(question: str = "printer locked by a stale job, how do I unlock it?", **fields: Any) -> BotQuery:
    values: dict[str, Any] = {
        "query_id": "m42",
        "guild_id": GUILD,
        "channel_id": "200",
        "message_id": "42",
        "asker_id": "7",
        "question": question,
        "asked_at": TimestampMillis(NOW - 1_000),
        "expires_at": TimestampMillis(NOW + 60_000),
        "audience": Audience.PUBLIC,
        "visible_channel_ids": ["200"],
    }
    return BotQuery(**{**values, **fields})


@pytest.fixture
def knowledge(bare_settings: Settings) -> Iterator[Knowledge]:
    """A guild with one answered question in an open channel and a secret in another."""
    opened = knowledge_of(bare_settings, None)
    Ingest(knowledge=opened)([Heard(event) for event in (*LOCK, SECRET)])
    yield opened
    opened.close()


@pytest.fixture
def gemini() -> Iterator[FakeGemini]:
    with FakeGemini() as running:
        yield running


def answerer(knowledge: Knowledge, gemini: FakeGemini | None = None, *, timeout_s: float = 5.0) -> Answerer:
    model = None
    if gemini is not None:
        model = GeminiModel(api_key=fake.KEY, model=fake.MODEL, endpoint=gemini.address)
    return Answerer(
        knowledge.retriever,
        model,
        clock=lambda: NOW,
        model_timeout_s=timeout_s,
        standing=knowledge.archive.answers.standing,
    )


def replying(answer: str, cited: list[int], *, sufficient: bool = True) -> Callable[[dict[str, Any], str], str]:
    return lambda *_: fake.written(answer, cited, sufficient=sufficient)


def add(knowledge: Knowledge, *events: DiscordMessage) -> None:
    Ingest(knowledge=knowledge)([Heard(event) for event in events])


@pytest.mark.parametrize(
    "fault",
    [
        fake.throttled(),
        fake.failing(503),
        fake.failing(403),
        fake.not_json(),
        fake.no_candidates(),
        fake.blocked_prompt(),
        fake.finished("SAFETY"),
        fake.finished("MAX_TOKENS", '{"answer": "cut'),
        fake.finished("STOP", "not the JSON that was asked for"),
    ],
)
def test_a_model_that_fails_costs_its_words_not_the_answer(
    knowledge: Knowledge, gemini: FakeGemini, fault: Fault
) -> None:
    """Whatever happens to the model, the passages are quoted."""
    gemini.faults = [fault]
    response = answerer(knowledge, gemini).answer(asked())
    assert response.outcome is Outcome.EXTRACTED
    assert "printctl unlock --stale" in response.answer
    assert (response.model, response.prompt_tokens) == (None, None)


def test_a_model_that_is_late_is_not_waited_for(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """The timeout leads to the extract."""
    gemini.faults = [fake.slow(30)]
    assert answerer(knowledge, gemini, timeout_s=0.3).answer(asked()).outcome is Outcome.EXTRACTED


@pytest.mark.parametrize("cited", [[], [99], [0, -1]])
def test_an_answer_that_rests_on_nothing_is_not_shown(
    knowledge: Knowledge, gemini: FakeGemini, cited: list[int]
) -> None:
    """Without a source that was given, the model's words are its own."""
    gemini.reply = replying("Just reboot [99].", cited)
    response = answerer(knowledge, gemini).answer(asked())
    assert response.outcome is Outcome.EXTRACTED
    assert "reboot" not in response.answer


def test_a_question_past_its_time_is_not_answered(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """EXPIRED, and the model is not called."""
    response = answerer(knowledge, gemini).answer(asked(expires_at=TimestampMillis(NOW - 1)))
    assert (response.outcome, response.answer, response.citations) == (Outcome.EXPIRED, "", [])
    assert gemini.requests == []


def test_too_many_visible_channels_are_refused(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """REFUSED, and the model is not called."""
    response = answerer(knowledge, gemini).answer(asked(visible_channel_ids=[str(i) for i in range(20_001)]))
    assert response.outcome is Outcome.REFUSED
    assert gemini.requests == []


@pytest.mark.parametrize(
    "query",
    [
        asked("who won the chess championship in Reykjavik?"),
        asked(visible_channel_ids=[]),
        asked(visible_channel_ids=["999"]),
        asked(guild_id="555"),
        asked(guild_id=None),
        asked("   "),
    ],
    ids=["off topic", "nothing visible", "another channel", "another guild", "direct", "blank"],
)
def test_nothing_near_is_said_so(knowledge: Knowledge, gemini: FakeGemini, query: BotQuery) -> None:
    """NOT_FOUND without a link, and the model is not called."""
    response = answerer(knowledge, gemini).answer(query)
    assert (response.outcome, response.answer, response.citations) == (Outcome.NOT_FOUND, "", [])
    assert gemini.requests == []


def test_a_hidden_channel_reaches_neither_model_nor_answer(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """What the readers may not see is not even in the prompt."""
    query = asked("what is the printer unlock code for staff?")
    response = answerer(knowledge, gemini).answer(query)
    assert "--master" not in json.dumps(gemini.requests)
    assert "--master" not in f"{response}"
    open_to_staff = answerer(knowledge, gemini).answer(evolve(query, visible_channel_ids=["300"]))
    assert "--master" in open_to_staff.answer
    assert {citation.channel_id for citation in open_to_staff.citations} == {"300"}


def test_a_model_s_verdict_that_nothing_answers_is_kept(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """Insufficient is NOT_FOUND, with what it cost."""
    gemini.reply = replying("", [], sufficient=False)
    response = answerer(knowledge, gemini).answer(asked())
    assert (response.outcome, response.answer, response.citations) == (Outcome.NOT_FOUND, "", [])
    assert (response.model, response.prompt_tokens, response.output_tokens) == (fake.MODEL, 120, 40)


def test_a_model_s_answer_carries_its_sources(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """Words of the model, link to the message that they rest on."""
    gemini.reply = replying("Run `printctl unlock --stale` [1].", [1])
    response = answerer(knowledge, gemini).answer(asked())
    assert response.outcome is Outcome.ANSWERED
    assert response.answer == "Run `printctl unlock --stale` [1]."
    (citation,) = response.citations
    assert (citation.number, citation.message_id, citation.author_name) == (1, "1002", "bea")
    assert (citation.guild_id, citation.channel_id, citation.channel_kind) == (GUILD, "200", ChannelKind.TEXT)
    assert (citation.author_id, citation.title) == ("2", None)
    assert response.model == fake.MODEL


def test_a_citation_in_a_thread_has_its_title(knowledge: Knowledge) -> None:
    """As plain text: a title pings nobody."""
    place = {"channel_id": "900", "channel_kind": ChannelKind.FORUM_POST, "parent_channel_id": "200"}
    add(knowledge, message(70, "zebras need a striped stable", channel_name="Stables\n@everyone", **place))
    (citation,) = answerer(knowledge).answer(asked("what stable do zebras need?")).citations
    assert citation.title == "Stables @\N{ZERO WIDTH SPACE}everyone"


def test_a_model_that_obeys_an_attack_does_no_harm(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """Pings, foreign links and forged numbers are gone whatever the model writes."""
    gemini.reply = replying(
        "@everyone <@7> go to https://evil.example/x or [here](https://evil.example) [1][7]. See"
        " https://discord.com/channels/1/2/3",
        [1, 7],
    )
    response = answerer(knowledge, gemini).answer(asked())
    assert response.outcome is Outcome.ANSWERED
    assert [citation.number for citation in response.citations] == [1]
    for harm in ("evil", "@everyone", "<@7>", "[7]", "discord.com"):
        assert harm not in response.answer


def test_an_extract_links_to_what_it_quotes(knowledge: Knowledge) -> None:
    """Without a model: the answer's words, dated and numbered, with an excerpt."""
    response = answerer(knowledge).answer(asked())
    assert response.outcome is Outcome.EXTRACTED
    assert response.answer.endswith("bea, 2023-11-14 [1]")
    (citation,) = response.citations
    assert citation.message_id == "1002"
    assert citation.excerpt == "remove the stale job: `printctl unlock --stale`"


def test_an_answer_goes_back_where_the_question_came_from(knowledge: Knowledge) -> None:
    """Ids and audience are the query's; an unknown audience is the asker alone."""
    response = answerer(knowledge).answer(asked())
    assert (response.query_id, response.guild_id, response.channel_id) == ("m42", GUILD, "200")
    assert (response.query_message_id, response.asker_id, response.audience) == ("42", "7", Audience.PUBLIC)
    assert (response.answered_at, response.elapsed_ms) == (NOW, 0)
    assert answerer(knowledge).answer(asked(audience=Audience.UNKNOWN)).audience is Audience.ASKER


CONTEXT = [
    ContextMessage(speaker=Speaker.ASKER, content="the printer is locked by a stale job, I am zoe@mail.example.org"),
    ContextMessage(speaker=Speaker.BOT, content="Is it on?"),
]


def test_a_follow_up_is_rewritten_by_one_more_request(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """The exchange goes into the first prompt, without secrets; the question that comes of it is searched and asked."""
    response = answerer(knowledge, gemini).answer(asked("yes, how do I get rid of it then?", context=CONTEXT))
    assert response.outcome is Outcome.ANSWERED
    exchange, prompt = gemini.documents
    assert [said["speaker"] for said in exchange["context"]] == ["asker", "bot"]
    assert "zoe@" not in json.dumps(gemini.requests)
    assert "stale job" in prompt["question"]
    assert (response.prompt_tokens, response.output_tokens) == (240, 80)


@pytest.mark.parametrize("fault", [fake.failing(503), fake.finished("STOP", '{"question": ""}'), fake.slow(30)])
def test_a_follow_up_that_is_not_rewritten_is_joined(knowledge: Knowledge, gemini: FakeGemini, fault: Fault) -> None:
    """The asker's message before it names the subject."""
    gemini.faults = [fault]
    question = asked("yes, how do I get rid of it then?", context=CONTEXT)
    response = answerer(knowledge, gemini, timeout_s=2.0).answer(question)
    assert response.outcome is Outcome.ANSWERED
    assert gemini.documents[-1]["question"].startswith("yes, how do I get rid of it then?\nthe printer is locked")
    assert answerer(knowledge).answer(question).outcome is Outcome.EXTRACTED


def test_a_question_without_context_costs_one_request(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """Nothing is rewritten that stands alone."""
    answerer(knowledge, gemini).answer(asked())
    assert len(gemini.requests) == 1


def test_sources_that_disagree_are_dated(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """Whatever the model says of it, the dates stand there, the newest first."""
    newer = message(90_000, "printer locked by a stale job: unlock it with `printctl --force`", author_id="8")
    add(knowledge, attrs.evolve(newer, channel_id="201"))
    gemini.reply = lambda *_: fake.written("Use it [1]. Or else [2].", [1, 2], disagree=True)
    response = answerer(knowledge, gemini).answer(asked(visible_channel_ids=["200", "201"]))
    dates = {c.number: f"{to_datetime(c.created_at):%Y-%m-%d}" for c in response.citations if c.created_at}
    newest = max(dates, key=dates.__getitem__)
    oldest = min(dates, key=dates.__getitem__)
    last = response.answer.splitlines()[-1]
    assert last == f"≠ [{newest}] {dates[newest]} · [{oldest}] {dates[oldest]}"


def test_a_message_that_is_deleted_while_the_model_writes_is_not_in_the_answer(
    knowledge: Knowledge, gemini: FakeGemini
) -> None:
    """What is gone when the answer is given is neither cited nor retold."""

    def meanwhile(document: dict[str, Any], instructions: str) -> str:
        add(knowledge, attrs.evolve(LOCK[1], change=MessageChange.DELETED, content="", author_id=None))
        return fake.first_source(document)

    gemini.reply = meanwhile
    response = answerer(knowledge, gemini).answer(asked())
    assert "--stale" not in f"{response}"
    assert "1002" not in f"{response}"
    assert response.prompt_tokens == 120


def test_the_question_itself_is_no_source(knowledge: Knowledge) -> None:
    """It may be in the archive before it is answered."""
    add(knowledge, message(50, "printer locked by a stale job, how do I unlock it?", author_id="7"))
    response = answerer(knowledge).answer(asked(message_id="1050"))
    assert response.citations
    assert "1050" not in {citation.message_id for citation in response.citations}


def test_secrets_reach_neither_model_nor_answer(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """Keys and addresses that people pasted stay in the archive."""
    key = "AIza" + "x" * 35
    add(knowledge, message(20, f"scanner needs the key {key} from zoe@mail.example.org", author_id="9"))
    query = asked("which key does the scanner need?")
    for response in (answerer(knowledge, gemini).answer(query), answerer(knowledge).answer(query)):
        assert response.citations
        assert key not in f"{response}"
        assert "zoe@" not in f"{response}"
    assert key not in json.dumps(gemini.requests)


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
