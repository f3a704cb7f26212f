"""Import to searchable: messages a second from export files to what can be found, and what share of it is embedding.

``python -m benchmarks.import_ FILE FILE… [--json]``. Needs the local stack (`rtfm-cli local up`); works in topics,
collections and a database of its own, which it removes. The first file warms up and is not counted. Also reports the
resident memory of the processor after the import.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
from attrs import define, evolve, frozen

from benchmarks.report import figure, report
from rtfm import settings
from rtfm.contracts import catalogue
from rtfm.knowledge import Retriever, open_knowledge
from rtfm.knowledge.embedding import Embedding, Vectors
from rtfm.knowledge.imports import read_export
from rtfm.processor.ingest import Ingest
from rtfm.streams.topics import TopicAdmin

MEMORY_LIMIT_MB = 600.0
BATCH = 500


def main() -> int:
    """Run the benchmark; 1 when the memory limit is passed, 2 without files."""
    files = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    if len(files) < 2:
        print("give at least two export files: python -m benchmarks.import_ FILE FILE…", file=sys.stderr)
        return 2
    messages = sum(len(read_export(Path(file)).messages) for file in files[1:])
    with _installation() as own:
        elapsed_s, memory_mb = _through_kafka(files, own)
    with _installation() as own:
        share = _share_of_embedding(files, own)
    figures = [
        figure("import to searchable", messages / elapsed_s, None, None, unit="messages/s"),
        figure("share of ingest that is embedding", share, None, None),
        # The ratio says how many times the processor fits into the limit.
        figure("resident memory of the processor", memory_mb, MEMORY_LIMIT_MB, 1.0, higher_is_better=False, unit="MB"),
    ]
    return 0 if report(figures) else 1


@contextmanager
def _installation() -> Iterator[settings.Settings]:
    """Topics, database and collections of their own on the services that run."""
    loaded = settings.load()
    name = f"bench{secrets.token_hex(4)}"
    server = loaded.database_url.rpartition("/")[0]
    own = evolve(loaded, kafka_topic_prefix=f"{name}.", database_url=f"{server}/{name}")
    with psycopg.connect(loaded.database_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    knowledge = open_knowledge(own)
    try:
        knowledge.archive.migrate()
        yield own
    finally:
        for guild_id in knowledge.archive.guilds():
            knowledge.vectors.forget_guild(guild_id)
        knowledge.close()
        TopicAdmin(own, catalogue.load(own.schemas_dir)).delete()
        with psycopg.connect(loaded.database_url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _through_kafka(files: Sequence[str], own: settings.Settings) -> tuple[float, float]:
    """Seconds from the first record sent to the last one searchable; megabytes of the processor then."""
    environment = os.environ | {
        "KAFKA_TOPIC_PREFIX": own.kafka_topic_prefix,
        "DATABASE_URL": own.database_url,
        "LOG_LEVEL": "WARNING",
        "METRICS_PORT": "0",
    }

    def cli(*arguments: str) -> None:
        subprocess.run(["rtfm-cli", *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)

    cli("topics", "init")
    cli("schemas", "register")
    with subprocess.Popen(["rtfm-cli", "run", "processor"], env=environment) as processor:
        try:
            cli("import", files[0])
            start = time.perf_counter()
            cli("import", *files[1:])
            elapsed_s = time.perf_counter() - start
            memory_mb = psutil.Process(processor.pid).memory_info().rss / 1e6
        finally:
            processor.terminate()
    return elapsed_s, memory_mb


@define
class _TimedEmbedding:
    model: Embedding
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def dimension(self) -> int:
        return self.model.dimension

    def embed(self, texts: Sequence[str]) -> Vectors:
        start = time.perf_counter()
        vectors = self.model.embed(texts)
        self.seconds += time.perf_counter() - start
        return vectors


@frozen
class _Heard:
    event: object


def _share_of_embedding(files: Sequence[str], own: settings.Settings) -> float:
    """The ingest's own share, without Kafka."""
    knowledge = open_knowledge(own)
    if knowledge.embedding is None:
        return 0.0
    timed = _TimedEmbedding(knowledge.embedding)
    ingest = Ingest(
        knowledge=evolve(knowledge, embedding=timed, retriever=Retriever(knowledge.archive, knowledge.vectors, timed))
    )
    events = [message for file in files for message in read_export(Path(file)).messages]
    start = time.perf_counter()
    for first in range(0, len(events), BATCH):
        ingest([_Heard(event) for event in events[first : first + BATCH]])
    elapsed_s = time.perf_counter() - start
    knowledge.close()
    return timed.seconds / elapsed_s


if __name__ == "__main__":
    sys.exit(main())
