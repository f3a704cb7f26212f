"""Odd messages and questions, and failures of Chroma, with a running processor, Kafka, archive and Chroma."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve

from rtfm.contracts import Contracts
from rtfm.errors import InvalidEvent, Unavailable
from rtfm.events import Attachment, Audience, BotQuery, BotResponse, DiscordMessage, Outcome, TimestampMillis
from rtfm.knowledge import Knowledge, open_knowledge
from rtfm.knowledge.vectors import ChromaVectors, VectorEntry
from rtfm.settings import Settings
from rtfm.streams.producer import EventProducer
from tests.integration.test_processor import open_contracts_of, processor
from tests.knowledge import GUILD, message
from tests.registry_proxy import proxy
from tests.streams import MESSAGES, QUERIES, RESPONSES, dead_letters, eventually, produce, records

SECRET = "ghp_" + "y" * 36
LOG = "\n".join(
    [
        *(f"2026-01-02 03:04:{n % 60:02} unit{n} started" for n in range(150)),
        f"fatal: frobnicator ERR-7741 token {SECRET} refused for ada@example.org",
        *(f"2026-01-02 03:05:{n % 60:02} unit{n} stopped" for n in range(150)),
    ]
)
FOUND = {100: "zebrawood shelves bend", 9_800: "quokkas sleep late"}
LONG = " ".join(FOUND.get(n, ("disk", "file", "user", "net", "boot")[n * n % 5]) for n in range(9_996))
ODD = [
    message(1, ""),
    message(2, " \n\t "),
    message(3, "\x00\x01\x1b[31m red gerbils \x7f", author_id="3"),
    message(4, "\u202eالقرص الصلب لا يعمل\u202c", author_id="4"),
    message(5, "😀🔧👨\u200d👩\u200d👧", author_id="5"),
    message(6, "```py\nraise OkapiError('striped')\n```", author_id="6"),
    message(7, LONG, author_id="7", channel_id="300"),
    message(
        8,
        "",
        author_id="8",
        channel_id="400",
        attachments=[Attachment(filename="frob.log", url="https://cdn.example/1", size_bytes=len(LOG), text=LOG)],
    ),
    message(9, "x" * 400_000, author_id="9", channel_id="500"),
]


SEARCHES = [
    ("red gerbils", "1003", "red gerbils"),
    ("OkapiError striped", "1006", "OkapiError"),
    ("zebrawood shelves bend", "1007", "zebrawood shelves"),
    ("quokkas sleep late", "1007", "quokkas sleep"),
    ("fatal: frobnicator ERR-7741 refused", "1008", "frobnicator ERR-7741"),
]
"""For each search: the question, the id of the message that must be cited first, and the text that must be quoted."""

ODD_QUESTIONS = ["?", "x", "quokkas " * 2_500, "\u202e\x00😀"]

PATIENCE_S = 240.0
"""Timeout of waits for the processor, in seconds; the processor embeds slowly on a busy machine."""


@pytest.fixture
def stores(settings: Settings) -> Iterator[Knowledge]:
    """The stores of the processor, for inspection."""
    knowledge = open_knowledge(settings)
    yield knowledge
    knowledge.vectors.forget_guild(GUILD)
    knowledge.close()


def ask_all(settings: Settings, contracts: Contracts, *questions: str) -> list[BotResponse]:
    """Produce ``questions``, and return the processor's responses in the same order."""
    now = TimestampMillis(time.time_ns() // 1_000_000)
    queries = [
        BotQuery(
            query_id=f"c{number}",
            guild_id=GUILD,
            channel_id="0",
            asker_id="0",
            question=question,
            asked_at=now,
            expires_at=TimestampMillis(now + 3_600_000),
            audience=Audience.ASKER,
            visible_channel_ids=["200", "300", "400", "500"],
        )
        for number, question in enumerate(questions)
    ]
    produce(settings, contracts, QUERIES, *queries)

    def given() -> dict[str, BotResponse] | None:
        found = {record.event.query_id: record.event for record in records(settings, contracts, RESPONSES)}
        return found if len(found) == len(queries) else None

    by_id: dict[str, BotResponse] = eventually(given, timeout_s=PATIENCE_S)
    return [by_id[query.query_id] for query in queries]


def with_model(settings: Settings, model_dir: Path) -> Settings:
    return evolve(settings, embedding_model_dir=model_dir)


def test_odd_messages_and_questions_each_have_a_clear_outcome(
    settings: Settings, stores: Knowledge, model_dir: Path
) -> None:
    """Odd messages make no dead letters, search finds their text, and answers contain no secret.

    Text is found at the start and near the end of a long message, and in an attached log file. Odd questions get an
    extract or NOT_FOUND.
    """
    odd = with_model(settings, model_dir)
    with processor(odd) as running, open_contracts_of(settings) as contracts:
        produce(settings, contracts, MESSAGES, *ODD)
        eventually(lambda: stores.archive.counts()["messages"] == len(ODD), timeout_s=PATIENCE_S)
        given = ask_all(settings, contracts, *(question for question, _, _ in SEARCHES), *ODD_QUESTIONS)
        for answer, (question, message_id, said) in zip(given, SEARCHES, strict=False):
            assert answer.outcome is Outcome.EXTRACTED, question
            assert said in answer.answer
            assert answer.citations[0].message_id == message_id
            assert SECRET not in str(answer)
            assert "ada@example" not in str(answer)
        assert {answer.outcome for answer in given[len(SEARCHES) :]} <= {Outcome.EXTRACTED, Outcome.NOT_FOUND}
        assert dead_letters(settings, contracts) == []
        assert running.stop() == 0
    with stores.archive.reading.view(GUILD, ["200", "300", "400", "500"]) as view:
        texts = str(view.candidates([f"1008#{number}" for number in range(1, 200)], []))
    assert "ERR-7741" in texts
    assert SECRET not in texts
    assert "ada@example" not in texts


def test_half_of_a_surrogate_pair_is_refused_where_it_is_produced(settings: Settings) -> None:
    """If a text contains half of a surrogate pair, the producer refuses the event and names the field.

    UTF-8 cannot encode half of a surrogate pair.
    """
    with open_contracts_of(settings) as contracts, EventProducer(settings, contracts) as producer:
        with pytest.raises(InvalidEvent, match="content contains half of a surrogate pair"):
            producer.send(MESSAGES, message(1, "a \ud800 tulip"))


def test_a_chroma_that_fails_in_any_way_is_waited_for(settings: Settings, stores: Knowledge, model_dir: Path) -> None:
    """While Chroma sends errors or garbage or refuses connections, the processor waits; then it stores all messages."""
    with proxy(settings.chroma_url) as chroma, open_contracts_of(settings) as contracts:
        through = evolve(with_model(settings, model_dir), chroma_url=chroma.url)
        with processor(through) as running:
            eventually(lambda: running.get("/readyz")[0] == 200)
            sent: list[DiscordMessage] = []
            for mode in ("503", "garbage", "refused"):
                chroma.fail(mode)
                sent.append(message(len(sent), f"{mode} gerbils", author_id=str(len(sent))))
                produce(settings, contracts, MESSAGES, sent[-1])
                eventually(lambda: len(running.logged("waiting")) >= len(sent), timeout_s=PATIENCE_S)
                chroma.fail("up")
                eventually(lambda: stores.archive.counts()["messages"] == len(sent), timeout_s=PATIENCE_S)
            assert dead_letters(settings, contracts) == []
            assert running.stop() == 0
    entries = stores.archive.collections.entry_ids(GUILD)
    assert {f"m{one.message_id}" for one in sent} <= entries
    assert stores.vectors.entry_ids(GUILD) == entries


@pytest.mark.parametrize("mode", ["silent", "slow"])
def test_a_chroma_that_does_not_answer_in_time_is_unavailable_and_asked_again(settings: Settings, mode: str) -> None:
    """If Chroma is silent or very slow, a request raises Unavailable; once Chroma recovers, the request succeeds."""
    vector = np.eye(1, 384, dtype=np.float32)[0]
    with proxy(settings.chroma_url) as between:
        direct = ChromaVectors(settings.chroma_url, settings.kafka_topic_prefix)
        direct.upsert(GUILD, [VectorEntry(entry_id="m1", passage_id="1", vector=vector)])
        through = ChromaVectors(between.url, settings.kafka_topic_prefix, request_timeout_s=2)
        eventually(lambda: through.nearest(GUILD, vector, 1) == ["m1"])
        between.fail(mode)
        with pytest.raises(Unavailable, match="Chroma"):
            through.nearest(GUILD, vector, 1)
        with pytest.raises(Unavailable, match="Chroma"):
            through.check()
        between.fail("up")
        eventually(lambda: through.nearest(GUILD, vector, 1) == ["m1"])
        direct.forget_guild(GUILD)
