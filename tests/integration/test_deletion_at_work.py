"""A running processor gets questions and deletions together, and no deleted text is left after its deletion."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import closing

import psycopg
from attrs import evolve

from rtfm.clock import now_ms
from rtfm.contracts import Contracts
from rtfm.events import BotQuery, BotResponse, TimestampMillis
from rtfm.settings import Settings
from tests.answering import asked
from tests.integration.test_forget import everything
from tests.integration.test_processor import processor
from tests.knowledge import GUILD, deletion, knowledge_of, message
from tests.streams import MESSAGES, QUERIES, RESPONSES, eventually, produce, records

COUNT = 40
CHANNELS = 5


def mark(number: int) -> str:
    """Return a word that only message ``number`` contains."""
    return f"zq{number:03}"


def channel(number: int) -> str:
    return str(200 + number % CHANNELS)


def question(number: int, query_id: str) -> BotQuery:
    """Return a question that would find message ``number``."""
    now = now_ms()
    return asked(
        f"which part repairs the pump {mark(number)}?",
        query_id=query_id,
        message_id=None,
        channel_id=channel(number),
        visible_channel_ids=[channel(number)],
        asked_at=now,
        expires_at=TimestampMillis(now + 600_000),
    )


def deleted_by_now(settings: Settings) -> set[int]:
    """Return the numbers of the messages whose deletion has been committed."""
    with psycopg.connect(settings.database_url) as connection:
        return {int(row[0]) - 1000 for row in connection.execute("SELECT message_id FROM messages WHERE deleted")}


def said_in(text: str, numbers: Sequence[int] | set[int]) -> list[str]:
    return [mark(number) for number in numbers if mark(number) in text]


def test_deleted_text_is_nowhere_while_the_system_runs(settings: Settings, contracts: Contracts) -> None:
    """Once a deletion is committed, the message's text is in no table and in no new response.

    Chroma has no entry of the message either. A response is new if the processor began it after the deletion was
    committed.
    """
    chance = random.Random(11)
    said = [
        message(n, f"the part that repairs the pump {mark(n)} is a seal", author_id=str(n), channel_id=channel(n))
        for n in range(COUNT)
    ]
    produce(settings, contracts, MESSAGES, *said)
    gone_at: dict[int, int] = {}
    asked_ids: list[str] = []
    with processor(settings, PROCESSOR_CONCURRENCY="4") as running, closing(knowledge_of(settings, None)) as knowledge:

        def look() -> None:
            """Check that no table has the text of a deleted message, and that Chroma has no entry of such a message."""
            deleted = deleted_by_now(settings)
            for number in deleted:
                gone_at.setdefault(number, now_ms())
            assert said_in(everything(settings), deleted) == []
            collection = knowledge.archive.collections.find([GUILD]).get(GUILD)
            if collection is not None:
                entries = knowledge.vectors.entry_ids(GUILD, generation=collection.generation)
                assert entries.isdisjoint({f"m{1000 + number}" for number in deleted})

        eventually(lambda: knowledge.archive.counts()["messages"] == COUNT, timeout_s=120)
        numbers = chance.sample(range(COUNT), COUNT // 2)
        for step, number in enumerate(numbers):
            others = [number, chance.choice(numbers), chance.randrange(COUNT)]
            queries = [question(other, f"c{step}-{place}") for place, other in enumerate(others)]
            asked_ids += [query.query_id for query in queries]
            produce(settings, contracts, QUERIES, *queries[:2])
            time.sleep(chance.random() * 0.2)
            produce(settings, contracts, MESSAGES, deletion(number, channel_id=channel(number)))
            if step % 3 == 0:  # a late copy and an edit, as from a backfill
                produce(settings, contracts, MESSAGES, said[number], evolve(said[number], edited_at=now_ms()))
            produce(settings, contracts, QUERIES, *queries[2:])
            time.sleep(chance.random() * 0.2)
            look()
        eventually(lambda: len(deleted_by_now(settings)) == len(numbers), timeout_s=120)
        look()
        late = [question(number, f"late-{number}") for number in numbers]
        asked_ids += [query.query_id for query in late]
        produce(settings, contracts, QUERIES, *late)

        def responses() -> list[BotResponse]:
            found = [record.event for record in records(settings, contracts, RESPONSES)]
            return [event for event in found if isinstance(event, BotResponse)]

        eventually(lambda: len(responses()) >= len(asked_ids), timeout_s=120)
        look()
        assert running.stop() == 0
    answered = responses()
    assert sorted(response.query_id for response in answered) == sorted(asked_ids)
    assert any("zq" in response.answer for response in answered)
    for response in answered:
        began = response.answered_at - response.elapsed_ms
        assert said_in(f"{response}", {number for number, at in gone_at.items() if at < began}) == []
