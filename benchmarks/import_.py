"""Speed of an import through Kafka until its messages can be found, against embedding the messages only.

``python -m benchmarks.import_ FILE FILE… [--json]`` needs the local stack (`rtfm-cli local up`) and the embedding
model. It creates topics, collections and a database of its own, and removes them. The first file is the warm-up, and
the other files are divided into rounds. Each round measures:

- the import through the pipeline, until all messages can be found,
- embedding the same passages and messages in batches in this process, with the same number of threads, and writing all
  vectors to Chroma in one call,
- embedding some of the messages with Chroma's default embedding function and the same model files.

The memory of the processor is reported, too.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
from attrs import evolve

from benchmarks.embedding import load_chroma_default
from benchmarks.report import figure, report
from rtfm import settings
from rtfm.contracts import catalogue, open_contracts
from rtfm.events import DiscordMessage
from rtfm.knowledge import Knowledge, open_knowledge
from rtfm.knowledge.conversations import spoken_text
from rtfm.knowledge.embedding import default_model_dir, model_folder
from rtfm.knowledge.imports import read_export
from rtfm.knowledge.vectors import VectorEntry
from rtfm.streams.producer import EventProducer
from rtfm.streams.topics import TopicAdmin

TOPIC = "discord-messages"
PIPELINE_TARGET = 0.85
CHROMA_TARGET = 5.0
MEMORY_LIMIT_MB = 600.0
ROUNDS = 4
BATCH = 500
CHROMA_MESSAGES = 64
"""In each round, Chroma's function embeds at most this many messages, because it takes 20 ms for each message."""
BARE_GUILD = "bare"
TIMEOUT_S = 280.0


def main() -> int:
    """Run the benchmark. Return 1 if a target is missed, and 2 if there are no files or there is no model."""
    files = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    loaded = settings.load()
    folder = model_folder(loaded.embedding_model_dir or default_model_dir(loaded.home))
    if len(files) < 2 or folder is None:
        print(
            "give at least two export files, and set RTFM_EMBEDDING_MODEL_DIR if no model was fetched", file=sys.stderr
        )
        return 2
    exports = [list(read_export(file).messages()) for file in files]
    rounds = [[message for export in exports[1 + turn :: ROUNDS] for message in export] for turn in range(ROUNDS)]
    samples: dict[str, list[float]] = {"ours": [], "bare": [], "chroma": []}
    with (
        tempfile.TemporaryDirectory() as scratch,
        _installation() as (own_settings, knowledge),
        _processor(own_settings) as processor,
        EventProducer(own_settings, open_contracts(own_settings)) as producer,
    ):
        default = load_chroma_default(folder, Path(scratch))
        for turn, messages in enumerate([exports[0], *filter(None, rounds)]):
            rates = {
                "ours": len(messages) / _import_through_kafka(messages, producer, own_settings),
                "bare": len(messages) / _embed_bare(messages, knowledge, own_settings),
                "chroma": _measure_rate(
                    default, [message.content for message in messages if message.content][:CHROMA_MESSAGES]
                ),
            }
            if turn:
                for name, rate in rates.items():
                    samples[name].append(rate)
        memory_mb = psutil.Process(processor.pid).memory_info().rss / 1e6
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors", file=sys.stderr)
    ours = samples["ours"]
    figures = [
        figure(
            "searchable messages, against bare embedding", ours, samples["bare"], PIPELINE_TARGET, unit="messages/s"
        ),
        figure("searchable messages, against Chroma alone", ours, samples["chroma"], CHROMA_TARGET, unit="messages/s"),
        # The ratio is the limit divided by the memory.
        figure("resident memory of the processor", memory_mb, MEMORY_LIMIT_MB, 1.0, higher_is_better=False, unit="MB"),
    ]
    return 0 if report(figures) else 1


@contextmanager
def _installation() -> Iterator[tuple[settings.Settings, Knowledge]]:
    """Yield settings and knowledge with new topics, a new database and new collections on the running services."""
    loaded = settings.load()
    name = f"bench{secrets.token_hex(4)}"
    server = loaded.database_url.rpartition("/")[0]
    own_settings = evolve(loaded, kafka_topic_prefix=f"{name}.", database_url=f"{server}/{name}")
    with psycopg.connect(loaded.database_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    knowledge = open_knowledge(own_settings)
    try:
        knowledge.archive.migrate()
        yield own_settings, knowledge
    finally:
        for guild_id in [*knowledge.archive.guilds(), BARE_GUILD]:
            knowledge.vectors.forget_guild(guild_id)
        knowledge.close()
        TopicAdmin(own_settings, catalogue.load(own_settings.schemas_dir)).delete()
        with psycopg.connect(loaded.database_url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@contextmanager
def _processor(own_settings: settings.Settings) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {
        "KAFKA_TOPIC_PREFIX": own_settings.kafka_topic_prefix,
        "DATABASE_URL": own_settings.database_url,
        "LOG_LEVEL": "WARNING",
        "METRICS_PORT": "0",
    }
    program = str(Path(sys.executable).with_name("rtfm-cli"))
    for command in (["topics", "init"], ["schemas", "register"]):
        subprocess.run([program, *command], env=environment, check=True, stdout=subprocess.DEVNULL)
    with subprocess.Popen([program, "run", "processor"], env=environment) as processor:
        try:
            yield processor
        finally:
            processor.terminate()


def _import_through_kafka(
    messages: Sequence[DiscordMessage], producer: EventProducer, own_settings: settings.Settings
) -> float:
    """Return the seconds from sending the first record until all messages can be found."""
    ids = [message.message_id for message in messages]
    with psycopg.connect(own_settings.database_url, autocommit=True) as connection:
        start = time.perf_counter()
        for message in messages:
            producer.send(TOPIC, message)
        while True:
            # It is enough to look into the archive, because ingest writes to Chroma first.
            stored = connection.execute("SELECT count(*) FROM messages WHERE message_id = ANY(%s)", [ids]).fetchone()
            elapsed_s = time.perf_counter() - start
            if stored is not None and stored[0] == len(set(ids)):
                return elapsed_s
            if elapsed_s > TIMEOUT_S:
                raise TimeoutError(f"{stored} of {len(messages)} messages after {elapsed_s:.0f} s")
            time.sleep(0.02)  # without a pause, the queries would slow down the processor


def _embed_bare(messages: Sequence[DiscordMessage], knowledge: Knowledge, own_settings: settings.Settings) -> float:
    """Return the seconds to embed the passages and texts of these messages in batches, and to write them to Chroma."""
    ids = [message.message_id for message in messages]
    with psycopg.connect(own_settings.database_url, autocommit=True) as connection:
        passages = connection.execute(
            "SELECT passage_id, text FROM passages WHERE passage_id IN "
            "(SELECT passage_id FROM messages WHERE message_id = ANY(%s))",
            [ids],
        ).fetchall()
        embedded = connection.execute(
            "SELECT message_id, content FROM messages WHERE message_id = ANY(%s) AND vector IS NOT NULL", [ids]
        ).fetchall()
    texts = [text for _, text in passages] + [spoken_text(content) for _, content in embedded]
    names = [f"p{name}" for name, _ in passages] + [f"m{name}" for name, _ in embedded]
    assert knowledge.embedding is not None
    start = time.perf_counter()
    vectors = [
        vector
        for first in range(0, len(texts), BATCH)
        for vector in knowledge.embedding.embed(texts[first : first + BATCH])
    ]
    entries = [
        VectorEntry(entry_id=name, passage_id=name, vector=vector) for name, vector in zip(names, vectors, strict=True)
    ]
    knowledge.vectors.upsert(BARE_GUILD, entries, model=knowledge.embedding.name)
    return time.perf_counter() - start


def _measure_rate(embed: Callable[[list[str]], Any], texts: list[str]) -> float:
    start = time.perf_counter()
    embed(texts)
    return len(texts) / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
