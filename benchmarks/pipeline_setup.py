"""Shared parts of the benchmarks of the pipeline: new topics, data, and running pipelines and processes."""

from __future__ import annotations

import os
import secrets
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import evolve
from confluent_kafka import Producer

from rtfm.contracts import Contracts, open_registry, registration
from rtfm.contracts import catalogue as catalogues
from rtfm.contracts.catalogue import PARTITIONER
from rtfm.events import Audience, BotQuery, BotResponse, ChannelKind, DiscordMessage, MessageChange, Outcome
from rtfm.events import TimestampMillis as At
from rtfm.settings import Settings
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.dead_letters.limits import DeadLetterPolicy
from rtfm.streams.pipeline import Handler, Pipeline
from rtfm.streams.quarantine import CrashJournal
from rtfm.streams.topics import TopicAdmin
from rtfm.telemetry import Health

MESSAGES, QUERIES, RESPONSES, DEAD_LETTERS = "discord-messages", "bot-queries", "bot-responses", "dead-letters"
KEYS = 200
SLEEP = b"sleep"
"""If the value of a record begins with this text, its handler takes 30 s."""


@contextmanager
def installation(base: Settings) -> Iterator[Settings]:
    """Yield settings with a new topic prefix, whose topics exist until the end of the block."""
    own = evolve(base, kafka_topic_prefix=f"b{secrets.token_hex(3)}.", instance_id=secrets.token_hex(3))
    catalogue = catalogues.load()
    topics = TopicAdmin(own, catalogue)
    topics.apply(topics.plan())
    registry = open_registry(own)
    registration.apply(catalogue, registry, registration.plan(catalogue, registry))
    registry.close()
    try:
        yield own
    finally:
        topics.delete()


@contextmanager
def running_pipeline(
    own: Settings, contracts: Contracts, topic: str, handler: Handler, *, concurrency: int
) -> Iterator[None]:
    """Run a pipeline in a thread until the block ends."""
    stop, journal = threading.Event(), CrashJournal.of(own, "bench")
    pipeline = Pipeline(
        KafkaConfig.of(own),
        contracts,
        group=f"bench-{secrets.token_hex(4)}",
        topic=topic,
        handler=handler,
        health=Health(),
        concurrency=concurrency,
        dead_letters=DeadLetterPolicy.of(own),
        quarantine=journal,
        stop=stop,
    )
    thread = threading.Thread(target=pipeline.run, daemon=True)
    with journal:
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(30)


@contextmanager
def worker(kind: str, own: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``python -m benchmarks.pipeline worker`` until the block ends, then kill it."""
    command = [sys.executable, "-m", "benchmarks.pipeline", "worker", kind]
    with subprocess.Popen(command, env=environment(own), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def environment(own: Settings) -> dict[str, str]:
    """Return the environment variables of a process with these settings."""
    given = {
        "RTFM_HOME": own.home,
        "RTFM_INSTANCE_ID": own.instance_id,
        "KAFKA_BOOTSTRAP_SERVERS": own.kafka_bootstrap_servers,
        "KAFKA_TOPIC_PREFIX": own.kafka_topic_prefix,
        "SCHEMA_REGISTRY_URL": own.schema_registry_url,
        "CHROMA_URL": own.chroma_url,
        "DATABASE_URL": own.database_url,
        "RTFM_EMBEDDING_MODEL_DIR": own.embedding_model_dir or "",
        "METRICS_PORT": "0",
        "LOG_LEVEL": "WARNING",
    }
    return dict(os.environ) | {name: str(value) for name, value in given.items()}


def fill(own: Settings, topic: str, value: bytes, count: int, *, keys: int = KEYS) -> None:
    """Produce ``count`` records with the same ``value`` and ``keys`` different keys."""
    producer: Any = Producer(
        {
            "bootstrap.servers": own.kafka_bootstrap_servers,
            "partitioner": PARTITIONER,
            "enable.idempotence": True,
            "linger.ms": 20,
            "queue.buffering.max.messages": 500_000,
        }
    )
    full = f"{own.kafka_topic_prefix}{topic}"
    for number in range(count):
        while True:
            try:
                producer.produce(full, value, b"k%d" % (number % keys))
                break
            except BufferError:
                producer.poll(0.1)
        if number % 1000 == 0:
            producer.poll(0)
    assert producer.flush(120) == 0


def a_message() -> DiscordMessage:
    """Return a message of 270 characters."""
    return DiscordMessage(
        message_id="1041",
        guild_id="100",
        channel_id="200",
        channel_kind=ChannelKind.TEXT,
        author_id="7",
        author_name="ada",
        content="mount the disk with `ntfs-3g /dev/sdb1 /mnt` " * 6,
        created_at=At(1_700_000_000_000),
        change=MessageChange.CREATED,
    )


def a_numbered_message(number: int) -> DiscordMessage:
    """Return a short message that differs by ``number``."""
    text = f"to mend disk number {number % 50} turn it off and run `mend-disk --port {number}`"
    return evolve(a_message(), message_id=str(5000 + number), content=text, created_at=At(1_700_000_000_000 + number))


def a_query(number: int) -> BotQuery:
    """Return a question that never expires."""
    return BotQuery(
        query_id=f"c{number}",
        channel_id="200",
        asker_id="7",
        question="how do I mount a disk?",
        asked_at=At(0),
        expires_at=At(9_999_999_999_999),
        audience=Audience.ASKER,
        visible_channel_ids=["200"],
    )


def a_response() -> BotResponse:
    """Return an extract of 270 characters."""
    return BotResponse(
        query_id="c1",
        channel_id="200",
        asker_id="7",
        audience=Audience.ASKER,
        outcome=Outcome.EXTRACTED,
        answer="mount the disk with `ntfs-3g /dev/sdb1 /mnt` " * 6,
        asked_at=At(1_700_000_000_000),
        answered_at=At(1_700_000_000_000),
        elapsed_ms=12,
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value below which ``percent`` percent of ``values`` lie, interpolated."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
