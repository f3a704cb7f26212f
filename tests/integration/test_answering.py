"""From questions to answers over real PostgreSQL and Chroma, with a fake Gemini behind the real client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from attrs import evolve

from rtfm.events import (
    Audience,
    BotQuery,
    ChannelKind,
    ContextMessage,
    MessageChange,
    Outcome,
    Speaker,
    TimestampMillis,
    to_datetime,
)
from rtfm.knowledge import Knowledge
from rtfm.settings import Settings
from tests.answering import LOCK, NOW, add, answerer, asked, printer_guild
from tests.fakes import gemini as fake
from tests.fakes.gemini import FakeGemini, Fault
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


def replying(answer: str, cited: list[int], *, sufficient: bool = True) -> Callable[[dict[str, Any], str], str]:
    return lambda *_: fake.written(answer, cited, sufficient=sufficient)


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
def test_if_the_model_fails_passages_are_quoted(knowledge: Knowledge, gemini: FakeGemini, fault: Fault) -> None:
    """If the model refuses, is throttled, or returns unusable text, the answer quotes passages."""
    gemini.faults = [fault]
    response = answerer(knowledge, gemini).answer(asked())
    assert response.outcome is Outcome.EXTRACTED
    assert "printctl unlock --stale" in response.answer
    assert (response.model, response.prompt_tokens) == (None, None)


def test_a_model_that_is_late_is_not_waited_for(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """If the model exceeds its time limit, the answer quotes passages."""
    gemini.faults = [fake.slow(30)]
    assert answerer(knowledge, gemini, timeout_s=0.3).answer(asked()).outcome is Outcome.EXTRACTED


@pytest.mark.parametrize("cited", [[], [99], [0, -1]])
def test_an_answer_without_a_valid_citation_is_not_shown(
    knowledge: Knowledge, gemini: FakeGemini, cited: list[int]
) -> None:
    """If the model's text cites none of the given sources, the text is not shown."""
    gemini.reply = replying("Just reboot [99].", cited)
    response = answerer(knowledge, gemini).answer(asked())
    assert response.outcome is Outcome.EXTRACTED
    assert "reboot" not in response.answer


def test_a_question_past_its_time_is_not_answered(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """A question that has expired gets EXPIRED, and the model is not called."""
    response = answerer(knowledge, gemini).answer(asked(expires_at=TimestampMillis(NOW - 1)))
    assert (response.outcome, response.answer, response.citations) == (Outcome.EXPIRED, "", [])
    assert gemini.requests == []


def test_too_many_visible_channels_are_refused(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """A question with too many visible channels gets REFUSED, and the model is not called."""
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
def test_a_question_without_matching_passages_is_not_found(
    knowledge: Knowledge, gemini: FakeGemini, query: BotQuery
) -> None:
    """A question without matching passages gets NOT_FOUND without a link, and the model is not called."""
    response = answerer(knowledge, gemini).answer(query)
    assert (response.outcome, response.answer, response.citations) == (Outcome.NOT_FOUND, "", [])
    assert gemini.requests == []


def test_a_hidden_channel_reaches_neither_model_nor_answer(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """Neither the prompt nor the answer contains messages of channels that the readers may not see."""
    query = asked("what is the printer unlock code for staff?")
    response = answerer(knowledge, gemini).answer(query)
    assert "--master" not in json.dumps(gemini.requests)
    assert "--master" not in f"{response}"
    open_to_staff = answerer(knowledge, gemini).answer(evolve(query, visible_channel_ids=["300"]))
    assert "--master" in open_to_staff.answer
    assert {citation.channel_id for citation in open_to_staff.citations} == {"300"}


def test_an_insufficient_verdict_becomes_not_found(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """If the model's verdict is "insufficient", the response is NOT_FOUND and reports the tokens of the request."""
    gemini.reply = replying("", [], sufficient=False)
    response = answerer(knowledge, gemini).answer(asked())
    assert (response.outcome, response.answer, response.citations) == (Outcome.NOT_FOUND, "", [])
    assert (response.model, response.prompt_tokens, response.output_tokens) == (fake.MODEL, 120, 40)


def test_a_model_s_answer_carries_its_sources(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """The answer has the model's text, and its link leads to the cited message."""
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
    """The title of a thread is shown as plain text, so that a mention in the title pings no one."""
    place = {"channel_id": "900", "channel_kind": ChannelKind.FORUM_POST, "parent_channel_id": "200"}
    add(knowledge, message(70, "zebras need a striped stable", channel_name="Stables\n@everyone", **place))
    (citation,) = answerer(knowledge).answer(asked("what stable do zebras need?")).citations
    assert citation.title == "Stables @\N{ZERO WIDTH SPACE}everyone"


def test_a_model_that_obeys_an_attack_does_no_harm(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """Pings, links, and citation numbers without a source are removed from the model's output."""
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
    """Without a model, a quote has a date, a number, a link and an excerpt."""
    response = answerer(knowledge).answer(asked())
    assert response.outcome is Outcome.EXTRACTED
    assert response.answer.endswith("bea, 2023-11-14 [1]")
    (citation,) = response.citations
    assert citation.message_id == "1002"
    assert citation.excerpt == "remove the stale job: `printctl unlock --stale`"


def test_an_answer_goes_back_where_the_question_came_from(knowledge: Knowledge) -> None:
    """The response has the ids and the audience of its query; an unknown audience becomes ASKER."""
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
    """A first request to the model rewrites a follow-up, and a second one answers the rewritten question.

    The first request contains the earlier messages of the exchange. Neither request contains an e-mail address.
    """
    response = answerer(knowledge, gemini).answer(asked("yes, how do I get rid of it then?", context=CONTEXT))
    assert response.outcome is Outcome.ANSWERED
    exchange, prompt = gemini.documents
    assert [said["speaker"] for said in exchange["context"]] == ["asker", "bot"]
    assert "zoe@" not in json.dumps(gemini.requests)
    assert "stale job" in prompt["question"]
    assert (response.prompt_tokens, response.output_tokens) == (240, 80)


@pytest.mark.parametrize("fault", [fake.failing(503), fake.finished("STOP", '{"question": ""}'), fake.slow(30)])
def test_a_follow_up_that_is_not_rewritten_is_joined_to_the_earlier_message(
    knowledge: Knowledge, gemini: FakeGemini, fault: Fault
) -> None:
    """If a follow-up cannot be rewritten, it is joined to the asker's earlier message, which names the subject."""
    gemini.faults = [fault]
    question = asked("yes, how do I get rid of it then?", context=CONTEXT)
    response = answerer(knowledge, gemini, timeout_s=5.0).answer(question)
    assert response.outcome is Outcome.ANSWERED
    assert gemini.documents[-1]["question"].startswith("yes, how do I get rid of it then?\nthe printer is locked")
    assert answerer(knowledge).answer(question).outcome is Outcome.EXTRACTED


def test_a_question_without_context_costs_one_request(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """A question without context is not rewritten."""
    answerer(knowledge, gemini).answer(asked())
    assert len(gemini.requests) == 1


def test_sources_that_disagree_are_dated(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """If sources disagree, the answer ends with their dates, the newest first, even if the model mentions no date."""
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
    """If a message is deleted while the model writes, the response neither cites nor repeats it."""

    def meanwhile(document: dict[str, Any], instructions: str) -> str:
        add(knowledge, attrs.evolve(LOCK[1], change=MessageChange.DELETED, content="", author_id=None))
        return fake.first_source(document)

    gemini.reply = meanwhile
    response = answerer(knowledge, gemini).answer(asked())
    assert "--stale" not in f"{response}"
    assert "1002" not in f"{response}"
    assert response.prompt_tokens == 120


def test_the_question_itself_is_no_source(knowledge: Knowledge) -> None:
    """A question that is already in the archive as a message is not a source of its own answer."""
    add(knowledge, message(50, "printer locked by a stale job, how do I unlock it?", author_id="7"))
    response = answerer(knowledge).answer(asked(message_id="1050"))
    assert response.citations
    assert "1050" not in {citation.message_id for citation in response.citations}


def test_secrets_reach_neither_model_nor_answer(knowledge: Knowledge, gemini: FakeGemini) -> None:
    """Keys and e-mail addresses that people pasted appear neither in the prompt nor in the answer."""
    key = "AIza" + "x" * 35
    add(knowledge, message(20, f"scanner needs the key {key} from zoe@mail.example.org", author_id="9"))
    query = asked("which key does the scanner need?")
    for response in (answerer(knowledge, gemini).answer(query), answerer(knowledge).answer(query)):
        assert response.citations
        assert key not in f"{response}"
        assert "zoe@" not in f"{response}"
    assert key not in json.dumps(gemini.requests)
