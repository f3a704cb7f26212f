"""Time of a search by corpus size and number of visible channels, against a plain query to Chroma in the same run.

``python -m benchmarks.retrieval [--messages 10000,100000,1000000] [--json]`` starts PostgreSQL and Chroma. The query to
Chroma has no filter. The figures are medians and 95th percentiles. The time to embed a question is reported separately.

Vectors and texts are synthetic, in 200 channels, with six messages in a passage. A passage has 40 words and a question
has 9. The frequency of the n-th most frequent word is proportional to 1/(n+10), as was measured on public help chat
without stop words. Loading a million messages takes half an hour.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import psycopg

from benchmarks.report import Figure, figure, report
from rtfm import settings
from rtfm.events import ChannelKind
from rtfm.knowledge.archive import SqlArchive
from rtfm.knowledge.archive.tsvectors import to_tsvector
from rtfm.knowledge.embedding import DIMENSION, find_model
from rtfm.knowledge.entries import message_entry, passage_entry
from rtfm.knowledge.float32 import Vectors, to_bytes
from rtfm.knowledge.retrieval import Retriever
from rtfm.knowledge.vectors import ChromaVectors, VectorEntry
from rtfm.knowledge.words import terms
from rtfm.local.stack import LocalStack

CHANNELS = 200
VISIBLE = (1, 50, 190)
PER_PASSAGE = 6
QUESTIONS = 60
TOPICS = 400
VOCABULARY = 50_000
PASSAGE_TERMS, QUESTION_TERMS = 40, 9
P95_TARGET_MS = 30.0
GROWTH_TARGET = 4.0
WARM_UP = 5
NEAREST = 200
CHECKOUT = Path(__file__).parent.parent


class SyntheticEmbedding:
    """Makes texts and vectors about topics. They are the same in every run."""

    name = "synthetic"
    dimension = DIMENSION

    def __init__(self) -> None:
        self._rng = np.random.default_rng(1)
        self._centres = self._rng.standard_normal((TOPICS, DIMENSION)).astype(np.float32)
        odds = 1 / np.arange(10, VOCABULARY + 10)
        self._odds = odds / odds.sum()

    def vectors(self, topics: Sequence[int]) -> Vectors:
        """Return unit vectors near their topics."""
        noise = self._rng.standard_normal((len(topics), DIMENSION)).astype(np.float32)
        found = self._centres[list(topics)] + noise
        lengths: Vectors = np.linalg.norm(found, axis=1, keepdims=True)
        return found / lengths

    def texts(self, count: int, words: int) -> list[str]:
        """Return ``count`` texts of ``words`` words, whose frequencies are like those of a natural language."""
        drawn = self._rng.choice(VOCABULARY, size=(count, words), p=self._odds)
        return [" ".join(f"wordq{word}" for word in row) for row in drawn]

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return a vector of some topic for each question. This replaces the embedding model."""
        return self.vectors([len(text) * 31 % TOPICS for text in texts])


def load(guild: str, messages: int, archive: str, vectors: ChromaVectors, synthetic: SyntheticEmbedding) -> None:
    """Write a guild of ``messages`` synthetic messages to the archive and Chroma."""
    rng = random.Random(2)
    passages = messages // PER_PASSAGE
    frequencies: dict[str, int] = {}
    with psycopg.connect(archive, autocommit=True) as connection:
        for number in range(CHANNELS):
            row = (f"{guild}{number:03}", guild, None, ChannelKind.TEXT.value, f"{guild}{number:03}", None)
            connection.execute("INSERT INTO channels VALUES (%s, %s, %s, %s, %s, %s, 0, true)", row)
        for start in range(0, passages, 1000):
            count = min(1000, passages - start)
            topics = [rng.randrange(TOPICS) for _ in range(count)]
            texts, whole = synthetic.texts(count, PASSAGE_TERMS), synthetic.vectors(topics)
            single = synthetic.vectors([topic for topic in topics for _ in range(PER_PASSAGE)])
            rows = list(_rows(guild, start, texts, rng))
            for text in texts:
                for word in set(terms(text)):
                    frequencies[word] = frequencies.get(word, 0) + 1
            with connection.cursor() as cursor:
                with cursor.copy(
                    "COPY passages (passage_id, conversation_id, guild_id, channel_id, acl_channel_id, text, terms, "
                    "length, vector, first_at, last_at) FROM STDIN"
                ) as copy:
                    for (passage, channel, text), vector in zip(rows, whole, strict=True):
                        words = terms(text)
                        values = (passage, passage, guild, channel, channel, text, to_tsvector(words), len(words))
                        at = int(passage[1:])
                        copy.write_row((*values, to_bytes(vector), at, at))
                with cursor.copy(
                    "COPY messages (message_id, guild_id, channel_id, author_id, author_name, author_is_bot, content, "
                    "created_at, version, deleted, mentioned_user_ids, attachments, conversation_id, passage_id, vector"
                    ") FROM STDIN"
                ) as copy:
                    for place, vector in enumerate(single):
                        passage, channel, text = rows[place // PER_PASSAGE]
                        part = " ".join(text.split()[place % PER_PASSAGE :: PER_PASSAGE])
                        ids = (f"{passage}{place % PER_PASSAGE}", guild, channel, str(rng.randrange(500)), "ada")
                        content = (False, part, int(passage[1:]) * 10 + place, 0, False)
                        none: list[str] = []
                        copy.write_row((*ids, *content, none, "[]", passage, passage, to_bytes(vector)))
            entries = [
                VectorEntry(entry_id=passage_entry(passage), passage_id=passage, vector=vector)
                for (passage, _, _), vector in zip(rows, whole, strict=True)
            ]
            entries += [
                VectorEntry(
                    entry_id=message_entry(f"{rows[place // PER_PASSAGE][0]}{place % PER_PASSAGE}"),
                    passage_id=rows[place // PER_PASSAGE][0],
                    vector=vector,
                )
                for place, vector in enumerate(single)
            ]
            vectors.upsert(guild, entries)
        with connection.cursor() as cursor, cursor.copy("COPY document_frequencies FROM STDIN") as copy:
            for word, count in frequencies.items():
                copy.write_row((guild, word, count))
        connection.execute("INSERT INTO corpora VALUES (%s, %s, %s)", (guild, passages, passages * PASSAGE_TERMS))
        connection.execute("INSERT INTO floors VALUES (%s, 'hybrid', 0, %s)", (guild, passages))
        # Otherwise autovacuum would do this within a minute, possibly during the searches.
        connection.execute("VACUUM ANALYZE")


def _rows(guild: str, start: int, texts: Sequence[str], rng: random.Random) -> Iterator[tuple[str, str, str]]:
    for number, text in enumerate(texts, start=start):
        yield f"{guild}{number:07}", f"{guild}{rng.randrange(CHANNELS):03}", text


def main() -> int:
    """Run the benchmark. Return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description="Retrieval by corpus size and visible channels.")
    parser.add_argument("--messages", default="10000,100000", help="corpus sizes, rising")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.messages.split(",")]
    figures: list[Figure] = []
    smallest_p95: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="rtfm-bench-") as home:
        stack = LocalStack(Path(home), cache_dir=CHECKOUT / ".rtfm" / "cache")
        try:
            services = {service.name: service for service in stack.up(("chroma", "postgres"))}
            archive = SqlArchive(services["postgres"].address)
            archive.migrate()
            vectors = ChromaVectors(services["chroma"].address)
            synthetic = {str(number): SyntheticEmbedding() for number, _ in enumerate(sizes, start=1)}
            for (guild, model), size in zip(synthetic.items(), sizes, strict=True):
                started = time.monotonic()
                load(guild, size, services["postgres"].address, vectors, model)
                print(f"{size:,} messages loaded in {time.monotonic() - started:.0f} s", file=sys.stderr)
            # The searches begin after all sizes are loaded, so that other load on the machine affects all sizes alike.
            for (guild, model), size in zip(synthetic.items(), sizes, strict=True):
                figures += measure_searches(guild, size, archive, vectors, model, smallest_p95)
            for name in ("chroma", "postgres"):
                memory = _resident_mb(services[name].pid)
                figures.append(figure(f"memory of {name} after loading all sizes", memory, None, None, unit="MB"))
            own = _resident_mb(None)
            figures.append(figure("memory of the process that searches, without the model", own, None, None, unit="MB"))
        finally:
            stack.down()
    figures += _measure_question_embedding()
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors", file=sys.stderr)
    return 0 if report(figures, arguments.json) else 1


def measure_searches(
    guild: str,
    size: int,
    archive: SqlArchive,
    vectors: ChromaVectors,
    synthetic: SyntheticEmbedding,
    smallest_p95: dict[str, float],
) -> list[Figure]:
    """Measure hybrid and keyword searches with some of the channels visible, in turn with a plain query to Chroma."""
    searches = {f"{count} of {CHANNELS} channels": (Retriever(archive, vectors, synthetic), count) for count in VISIBLE}
    searches[f"{VISIBLE[-1]} of {CHANNELS} channels, lexical"] = (Retriever(archive, vectors, None), VISIBLE[-1])
    rng = random.Random(3)
    questions = synthetic.texts(QUESTIONS, QUESTION_TERMS)
    vector_of = synthetic.embed(questions)
    times: dict[str, list[float]] = {name: [] for name in searches}
    bare: list[float] = []
    for turn, question in enumerate([*questions[:WARM_UP], *questions]):
        for name, (retriever, count) in searches.items():
            visible = [f"{guild}{channel:03}" for channel in rng.sample(range(CHANNELS), count)]
            start = time.perf_counter()
            retriever.search(question, guild_id=guild, visible_channel_ids=visible, limit=20)
            times[name].append((time.perf_counter() - start) * 1000)
        start = time.perf_counter()
        vectors.nearest(guild, vector_of[turn % QUESTIONS], NEAREST)
        bare.append((time.perf_counter() - start) * 1000)
    bare = bare[WARM_UP:]
    figures = [
        figure(f"{size:,} messages: a plain query to Chroma for {NEAREST}, p95", _p95(bare), None, None, {}, unit="ms")
    ]
    for name, taken in times.items():
        samples = taken[WARM_UP:]
        ours = _p95(samples)
        raw = {"ours": samples, "peer": bare}
        build_figure = partial(figure, higher_is_better=False, unit="ms")
        figures.append(build_figure(f"{size:,} messages, {name}: p95 against Chroma's", ours, _p95(bare), None, raw))
        if size == 100_000 and "lexical" not in name:
            figure_name = f"{size:,} messages, {name}: p95 within {P95_TARGET_MS:.0f} ms"
            figures.append(build_figure(figure_name, ours, P95_TARGET_MS, 1.0, {}))
        middle, other = statistics.median(samples), statistics.median(bare)
        figures.append(build_figure(f"{size:,} messages, {name}: p50 against Chroma's", middle, other, None, {}))
        if name in smallest_p95:
            figure_name = f"{name}: p95 at {size:,} within {GROWTH_TARGET:.0f} times the smallest corpus's"
            figures.append(build_figure(figure_name, ours, smallest_p95[name], 1 / GROWTH_TARGET, {}))
        smallest_p95.setdefault(name, ours)
    return figures


def _resident_mb(pid: int | None) -> float:
    """Return the resident memory of a process and its children in MB. None means this process, without children.

    A page that processes share counts once.
    """
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)] if pid else [process]
    return sum(getattr(member.memory_full_info(), "pss", 0) for member in family) / 1e6


def _measure_question_embedding() -> list[Figure]:
    model = find_model(settings.load())
    if model is None:
        return []
    taken = []
    for number in range(QUESTIONS + WARM_UP):
        start = time.perf_counter()
        model.embed([f"how do I mount an NTFS disk so that everybody may write to it, number {number}"])
        taken.append((time.perf_counter() - start) * 1000)
    return [figure("embedding a question, p95", _p95(taken[WARM_UP:]), None, None, {}, unit="ms")]


def _p95(samples: Sequence[float]) -> float:
    return sorted(samples)[int(len(samples) * 0.95)]


if __name__ == "__main__":
    sys.exit(main())
