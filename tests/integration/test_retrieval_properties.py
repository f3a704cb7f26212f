"""Properties of search: it agrees with a full scan, leaks nothing, and finds exact words."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import attrs
import psycopg
import pytest

from rtfm.answering.answerer import Answerer
from rtfm.events import Audience, BotQuery, ChannelKind, DiscordMessage, TimestampMillis
from rtfm.knowledge import Knowledge, Retriever
from rtfm.knowledge.archive.search_rows import Candidate, Corpus, PassageVectors
from rtfm.knowledge.float32 import Vectors
from rtfm.knowledge.retrieval import FRESH_WEIGHT, TAIL_SHARE
from rtfm.knowledge.scoring import LexicalScorer, nearness
from rtfm.knowledge.words import terms
from rtfm.processor.ingest import Ingest
from rtfm.settings import Settings
from tests.knowledge import GUILD, RecordOfEvent, WordEmbedding, knowledge_of, message

PUBLIC = (ChannelKind.PUBLIC_THREAD, ChannelKind.FORUM_POST)
THREADS = 1_000
VOCABULARY = [f"word{number}" for number in range(400)]
ODDS = [1 / (number + 5) for number in range(400)]
"""Weights of the words, as uneven as in a language: some words occur in a third of all passages."""


@pytest.fixture(params=["hybrid", "lexical"])
def knowledge(bare_settings: Settings, request: pytest.FixtureRequest) -> Iterator[Knowledge]:
    """The knowledge with and without an embedding model, with floors so low that every passage is found."""
    opened = knowledge_of(bare_settings, WordEmbedding() if request.param == "hybrid" else None)
    # The floors are stored as if calibrated with 10**9 passages, so that the guild is not calibrated again.
    opened.archive.floors.put(GUILD, request.param, -1.0, 10**9)
    yield opened
    opened.vectors.forget_guild(GUILD)
    opened.close()


def ingest(knowledge: Knowledge, events: Sequence[DiscordMessage]) -> None:
    for start in range(0, len(events), 500):
        Ingest(knowledge=knowledge)([RecordOfEvent(event) for event in events[start : start + 500]])


def thread(number: int, rng: random.Random) -> list[DiscordMessage]:
    """Return a conversation of two or three messages, alone in a channel or, from ``number`` 20 on, in a thread."""
    kind = ChannelKind.PUBLIC_THREAD if number >= 20 else ChannelKind.TEXT
    return [
        message(
            3 * number + place,
            " ".join(rng.choices(VOCABULARY, ODDS, k=4)),
            channel_id=str(100_000 + number),
            channel_kind=kind,
            author_id=str(place),
        )
        for place in range(rng.choice([2, 3]))
    ]


@attrs.frozen
class ScannedPassage:
    """A passage as the full scan reads it."""

    channel_id: str
    candidate: Candidate
    vectors: PassageVectors


def everything(settings: Settings) -> list[ScannedPassage]:
    """Return all passages of the archive, read from PostgreSQL without the retriever."""
    with psycopg.connect(settings.database_url) as connection, connection.cursor(binary=True) as cursor:
        passages = cursor.execute(
            "SELECT passage_id, channel_id, text, length, last_at, vector FROM passages"
        ).fetchall()
        messages: dict[str, list[tuple[str, bytes | None]]] = {}
        for passage_id, author_id, vector in cursor.execute(
            "SELECT passage_id, author_id, vector FROM messages WHERE NOT deleted"
        ):
            messages.setdefault(passage_id, []).append((author_id, vector))
    return [
        ScannedPassage(
            channel_id,
            Candidate(
                passage_id=passage_id,
                text=text,
                length=length,
                counts={word: terms(text).count(word) for word in set(terms(text))},
                last_at=TimestampMillis(last_at),
            ),
            PassageVectors(
                own=vector,
                messages=[found for _, found in messages[passage_id] if found is not None],
                speakers=len({author for author, _ in messages[passage_id]}),
            ),
        )
        for passage_id, channel_id, text, length, last_at, vector in passages
    ]


def scan(kept: Sequence[ScannedPassage], question: str, vector: Vectors | None, visible: set[str]) -> list[float]:
    """Return the scores of the best passages, at most five."""
    words = list(dict.fromkeys(terms(question)))
    frequencies = {word: sum(word in one.candidate.counts for one in kept) for word in words}
    corpus = Corpus(passages=len(kept), terms=sum(one.candidate.length for one in kept))
    lexical = LexicalScorer.of(words, {word: count for word, count in frequencies.items() if count}, corpus)
    scores = []
    for one in kept:
        counts = {word: one.candidate.counts[word] for word in words if word in one.candidate.counts}
        if one.channel_id in visible and (vector is not None or counts):
            candidate = attrs.evolve(one.candidate, counts=counts)
            near = nearness(candidate, one.vectors, vector, lexical)
            # All messages are a few days old, so every passage gets the weight of a fresh passage.
            scores.append(near.score + FRESH_WEIGHT)
    best = sorted(scores, reverse=True)[:5]
    return best[:1] + [score for score in best[1:] if score >= best[0] * TAIL_SHARE]


def test_search_finds_what_a_full_scan_finds(knowledge: Knowledge, bare_settings: Settings) -> None:
    """In at least 99 of 100 cases, search gives the scores of a full scan.

    The cases have between one and a thousand visible channels. Each case is searched with the default limit of the
    exact comparison and with the limit 0.
    """
    rng = random.Random(3)
    ingest(knowledge, [event for number in range(THREADS) for event in thread(number, rng)])
    kept = everything(bare_settings)
    channels = sorted({one.channel_id for one in kept})
    assert len(kept) >= THREADS
    ways = [
        Retriever(knowledge.archive, knowledge.vectors, knowledge.embedding, exact_limit=limit) for limit in (None, 0)
    ]
    asked = 0
    differing = []
    for _ in range(60):
        question = " ".join(rng.choices(VOCABULARY, ODDS, k=rng.choice([2, 6])))
        vector = None if knowledge.embedding is None else knowledge.embedding.embed([question])[0]
        for count in (1, 40, len(channels)):
            visible = set(rng.sample(channels, count))
            expected = scan(kept, question, vector, visible)
            for retriever in ways:
                found = retriever.search(question, guild_id=GUILD, visible_channel_ids=visible, limit=20)
                scores = [passage.score for passage in found.passages[:5]]
                asked += 1
                if scores != pytest.approx(expected, abs=0.0005):
                    differing.append((question, count, scores, expected))
    assert len(differing) <= asked / 100, differing


def places(rng: random.Random) -> list[tuple[str, ChannelKind, str | None]]:
    """Return (id, kind, parent) of channels, threads and posts of all kinds."""
    rooms: list[tuple[str, ChannelKind, str | None]] = [
        (str(200 + number), ChannelKind.TEXT, None) for number in range(6)
    ]
    for number in range(24):
        kind = rng.choice([*ChannelKind])
        rooms.append((str(300 + number), kind, rng.choice([*rooms[:6], (None,)])[0]))
    return rooms


def test_nothing_that_may_not_be_seen_shows_anywhere(knowledge: Knowledge) -> None:
    """Passages, explanations, answers, citations and excerpts contain nothing that the reader may not see.

    This holds even after a search of a reader who sees everything.
    """
    rng = random.Random(5)
    rooms = places(rng)
    said = []
    for number in range(400):
        channel, kind, parent = rng.choice(rooms)
        said.append(
            message(
                number,
                f"{' '.join(rng.choices(VOCABULARY[:40], k=5))} secret{number:04}",
                channel_id=channel,
                channel_kind=kind,
                parent_channel_id=parent,
                author_id=str(rng.randrange(5)),
                author_name=f"author{channel}",
            )
        )
    ingest(knowledge, said)
    answerer = Answerer(knowledge.retriever, None, clock=lambda: TimestampMillis(1_800_000_000_000))
    everywhere = sorted({channel for channel, _, _ in rooms})
    shown = 0
    for turn in range(80):
        roles = [rng.sample(everywhere, rng.randrange(4)) for _ in range(rng.randrange(3))]
        visible = {channel for role in roles for channel in role} if turn % 4 else set(everywhere)
        question = " ".join(rng.choices(VOCABULARY[:40], k=3)) + rng.choice(["", f" secret{rng.randrange(400):04}"])
        hidden = [
            event
            for event in said
            if event.channel_id not in visible
            and not (event.channel_kind in PUBLIC and event.parent_channel_id in visible)
        ]
        result = knowledge.retriever.search(question, guild_id=GUILD, visible_channel_ids=visible, limit=5)
        response = answerer.answer(
            BotQuery(
                query_id=f"m{turn}",
                guild_id=GUILD,
                channel_id="200",
                asker_id="7",
                question=question,
                asked_at=TimestampMillis(1_800_000_000_000),
                expires_at=TimestampMillis(1_800_000_060_000),
                audience=Audience.PUBLIC,
                visible_channel_ids=sorted(visible),
            )
        )
        told = f"{result} {result.pack(100)} {response}".replace(question, "")
        shown += len(result.passages) + len(response.citations)
        for event in hidden:
            marks = (f"secret{event.content[-4:]}", f"'{event.message_id}'", f"author{event.channel_id}")
            assert not [mark for mark in marks if mark in told], (visible, event)
    assert shown > 100


CODES = (
    "0x80070057",
    "0x80070058",
    "E1042",
    "E1043",
    "5.10.3",
    "5.10.4",
    "libssl1.1",
    "libssl3",
    "/etc/fstab",
    "/etc/mtab",
    "--no-recommends",
    "--no-install",
    "ERR_CONN_RESET",
    "ERR_CONN_CLOSED",
    "c++",
    "node_modules",
    "2.6.32-21",
    "v1.2.3-rc1",
    "~/.bashrc",
    "libavcodec.so.58",
)


def test_codes_versions_and_symbols_are_found_by_the_letter(knowledge: Knowledge) -> None:
    """If a question contains a code, version or symbol, the message with exactly this text is found first."""
    said = [
        message(number, f"the update stops and prints {code} every time", channel_id=str(200 + number))
        for number, code in enumerate(CODES)
    ]
    ingest(
        knowledge, [attrs.evolve(one, channel_id=str(200 + n), parent_channel_id=None) for n, one in enumerate(said)]
    )
    visible = [str(200 + number) for number in range(len(CODES))]
    for number, code in enumerate(CODES):
        for question in (f"update stops with {code}", f"what does `{code}` mean?", f"({code.upper()})"):
            found = knowledge.retriever.search(question, guild_id=GUILD, visible_channel_ids=visible, limit=5)
            assert found.passages[0].messages[0].message_id == said[number].message_id, (question, found.passages)
