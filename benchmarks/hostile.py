"""Time that hostile texts take, against plain chat of the same size: `make bench-hostile`.

``python -m benchmarks.hostile [--json]`` starts PostgreSQL and Chroma, and uses no embedding model. A run measures all
kinds of text in turn, so that other load on the machine affects all of them. The limits are one second to ingest a
message of 64 KB, and two seconds to answer a question for which a hundred hostile messages of 2,000 characters are
found.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from benchmarks.quality import CHECKOUT, SAMPLE, EventRecord
from benchmarks.report import Figure, figure, interleave, report
from rtfm.answering.answerer import Answerer
from rtfm.errors import RtfmError
from rtfm.events import Audience, BotQuery, ChannelKind, DiscordMessage, MessageChange, TimestampMillis
from rtfm.knowledge import Knowledge, Retriever
from rtfm.knowledge.archive import SqlArchive
from rtfm.knowledge.imports import read_export
from rtfm.knowledge.vectors import ChromaVectors
from rtfm.local.stack import LocalStack
from rtfm.processor.ingest import Ingest

MESSAGE_CHARACTERS = 64 * 1024
INGEST_SECONDS = 1.0
ANSWER_SECONDS = 2.0
MESSAGES = 100
DISCORD_CHARACTERS = 2_000
QUESTION = "how do I reset the turbo encabulator?"
NOW = TimestampMillis(1_800_000_000_000)

KINDS: dict[str, Callable[[int], str]] = {
    "line feeds": lambda n: "##" + "\n" * n + "x",
    "dashes": lambda n: "-" * n,
    "spaces": lambda n: " " * n + "x",
    "brackets": lambda n: "[" * (n // 2) + "]" * (n // 2),
    "links": lambda n: "[a](https://" * (n // 12),
    "code": lambda n: "` ``` " * (n // 6),
    "marks": lambda n: "}" * n,
    "words of one letter": lambda n: "b c " * (n // 4),
    "different words": lambda n: " ".join(f"w{i:x}" for i in range(n // 5)),
    "paths": lambda n: "/a-b" * (n // 4),
    "tokens": lambda n: "eyJ-" * (n // 4),
    "other scripts": lambda n: "中я🙂" * (n // 3),
    "one word": lambda n: "x" * n,
}


def main() -> int:
    """Run the benchmark. Return 1 if a limit is exceeded."""
    with tempfile.TemporaryDirectory(prefix="rtfm-hostile-") as home:
        stack = LocalStack(Path(home), cache_dir=CHECKOUT / ".rtfm" / "cache")
        try:
            addresses = {service.name: service.address for service in stack.up(("chroma", "postgres"))}
            figures = measure_kinds(addresses["postgres"], addresses["chroma"])
        finally:
            stack.down()
    return 0 if report(figures) else 1


def measure_kinds(database_url: str, chroma_url: str) -> list[Figure]:
    """Measure ingesting and answering for each kind of text, against plain chat of the same size."""
    archive = SqlArchive(database_url)
    archive.migrate()
    vectors = ChromaVectors(chroma_url, "hostile.")
    retriever = Retriever(archive, vectors, None)
    knowledge = Knowledge(archive=archive, vectors=vectors, embedding=None, retriever=retriever)
    exports = [read_export(path) for path in sorted(SAMPLE.glob("*.json"))]
    chat = " ".join(message.content for export in exports for message in export.messages())
    kinds = {"plain chat": lambda n: (chat * (n // len(chat) + 1))[:n], **KINDS}
    run = _HostileMeasurements(knowledge, database_url)
    ingested = interleave({name: run.ingest_timer(text) for name, text in kinds.items()}, rounds=3)
    answered = interleave({name: run.answer_timer(text) for name, text in kinds.items()}, rounds=3)
    knowledge.close()
    figures = []
    for what, samples, limit in (("ingest", ingested, INGEST_SECONDS), ("answer", answered, ANSWER_SECONDS)):
        plain = samples.pop("plain chat")
        figures += [
            figure(f"{what}, {name}", taken, plain, None, higher_is_better=False, unit="s")
            for name, taken in samples.items()
        ]
        slowest = max(max(taken) for taken in samples.values())
        name = f"{what}, slowest kind, against the limit"
        figures.append(figure(name, slowest, limit, 1.0, higher_is_better=False, unit="s"))
    return figures


class _HostileMeasurements:
    def __init__(self, knowledge: Knowledge, database_url: str) -> None:
        self._ingest = Ingest(knowledge=knowledge)
        self._answerer = Answerer(knowledge.retriever, None, clock=lambda: NOW)
        self._database_url = database_url
        self._next = 1_000

    def ingest_timer(self, text: Callable[[int], str]) -> Callable[[], float]:
        """Return a function that measures the seconds to ingest a message of 64 KB, after two messages of its kind."""

        def measure() -> float:
            self._empty_archive()
            for _ in range(2):
                self._ingest([EventRecord(self._message(f"{QUESTION} {text(MESSAGE_CHARACTERS)}"))])
            message = self._message(f"{QUESTION} {text(MESSAGE_CHARACTERS)}")
            start = time.perf_counter()
            self._ingest([EventRecord(message)])
            return time.perf_counter() - start

        return measure

    def answer_timer(self, text: Callable[[int], str]) -> Callable[[], float]:
        """Return a function that measures the seconds to answer a question in an archive of ``MESSAGES`` such texts."""

        def measure() -> float:
            self._empty_archive()
            body = text(DISCORD_CHARACTERS)[: DISCORD_CHARACTERS - len(QUESTION) - 1]
            self._ingest([EventRecord(self._message(f"{QUESTION} {body}")) for _ in range(MESSAGES)])
            query = BotQuery(
                query_id="m1",
                guild_id="100",
                channel_id="200",
                asker_id="7",
                question=QUESTION,
                asked_at=NOW,
                expires_at=TimestampMillis(NOW + 60_000),
                audience=Audience.PUBLIC,
                visible_channel_ids=["200"],
            )
            start = time.perf_counter()
            self._answerer.answer(query)
            return time.perf_counter() - start

        return measure

    def _empty_archive(self) -> None:
        with psycopg.connect(self._database_url) as connection:
            connection.execute("TRUNCATE collections, channels, messages, passages, corpora, document_frequencies")

    def _message(self, content: str) -> DiscordMessage:
        self._next += 1
        return DiscordMessage(
            message_id=str(self._next),
            guild_id="100",
            channel_id="200",
            channel_kind=ChannelKind.TEXT,
            author_id=str(self._next % 7 + 1),
            author_name="ada",
            content=content,
            created_at=TimestampMillis(1_700_000_000_000 + self._next * 60_000),
            change=MessageChange.CREATED,
        )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RtfmError as exc:
        sys.exit(f"Error: {exc}" + (f"\nHint: {exc.hint}" if exc.hint else ""))
