"""The pipeline: throughput, concurrency, added latency, and memory under a backlog.

``make bench-pipeline [ARGS=--json]``. Starts services of its own and needs about four minutes. Peers, interleaved in
one run: a serial loop of consume 500, produce 500, commit in one transaction; a bare consume and produce without any.
"""

from __future__ import annotations

import itertools
import os
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from attrs import evolve
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.report import Figure, figure, interleaved, report
from rtfm import settings as configuration
from rtfm.contracts import Contracts, open_contracts, open_registry, registration
from rtfm.contracts import catalogue as catalogues
from rtfm.events import Audience, BotQuery, BotResponse, ChannelKind, DiscordMessage, MessageChange, Outcome
from rtfm.events import TimestampMillis as At
from rtfm.local.stack import LocalStack
from rtfm.settings import Settings
from rtfm.streams.pipeline import Handler, Output, Pipeline, Record
from rtfm.streams.topics import TopicAdmin
from rtfm.streams.transactions import Produced
from rtfm.telemetry import SENT, Health

MESSAGES, QUERIES, RESPONSES, LETTERS = "discord-messages", "bot-queries", "bot-responses", "dead-letters"
RECORDS = 60_000
SLOW_RECORDS = 4_000
BACKLOG = 1_000_000
MEMORY_LIMIT_MB = 100.0
KEYS = 200
LIGHT_S = 40.0
QUESTIONS_S = 20.0
CORPUS = 2_000
LIGHT_PER_S = 10.0


def main() -> int:
    """Run the benchmark; 1 when a target is missed."""
    with tempfile.TemporaryDirectory(prefix="rtfm-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)  # PostgreSQL is another account where root runs this
        stack = LocalStack(home, cache_dir=Path(".rtfm/cache"))
        try:
            found = {service.name: service.address for service in stack.up()}
            base = evolve(
                Settings(),
                home=home / "own",
                kafka_bootstrap_servers=found["kafka"],
                schema_registry_url=found["schema-registry"],
                chroma_url=found["chroma"],
                database_url=found["postgres"],
                embedding_model_dir=configuration.load().embedding_model_dir or _model_beside_the_checkout(),
                kafka_static_membership=False,
            )
            figures = [*throughput(base), slow_handler(base), *light_load(base), *questions(base), memory(base)]
        finally:
            stack.down()
    return 0 if report(figures) else 1


@contextmanager
def installation(base: Settings) -> Iterator[Settings]:
    """Topics of its own."""
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


# Throughput


def throughput(base: Settings) -> list[Figure]:
    """Records a second of one process: as bytes, and with events decoded and encoded."""
    with installation(base) as own:
        contracts = open_contracts(own)
        value = contracts.encode(MESSAGES, _message())
        for topic in (MESSAGES, LETTERS):
            _fill(own, topic, value, RECORDS)
        response = _response()

        def passing(records: Sequence[Record]) -> list[Produced]:
            return [Produced(RESPONSES, record.key, record.value, record.headers) for record in records]

        def typed(records: Sequence[Record]) -> list[Output]:
            return [Output(topic=RESPONSES, event=response) for _ in records]

        samples = interleaved(
            {
                "raw": lambda: _raw(own, MESSAGES),
                "passing": lambda: _ours(own, contracts, LETTERS, passing, RECORDS),
                "typed": lambda: _ours(own, contracts, MESSAGES, typed, RECORDS),
            },
            rounds=5,
        )
    raw = samples["raw"]
    return [
        figure("empty handler, against a raw loop", samples["passing"], raw, 1.2, unit="records/s"),
        figure("with events decoded and encoded", samples["typed"], raw, 0.6, unit="records/s"),
    ]


def slow_handler(base: Settings) -> Figure:
    """A handler of 50 ms, 64 at a time; the ratio is against the 800 a second that are wanted."""

    def slow(records: Sequence[Record]) -> list[Produced]:
        time.sleep(0.05)
        return [Produced(RESPONSES, record.key, record.value, record.headers) for record in records]

    with installation(base) as own:
        contracts = open_contracts(own)
        _fill(own, QUERIES, contracts.encode(QUERIES, _query(0)), SLOW_RECORDS, keys=SLOW_RECORDS)
        samples = [_ours(own, contracts, QUERIES, slow, SLOW_RECORDS, concurrency=64) for _ in range(3)]
    return figure("50 ms handler, 64 at a time", samples, [800.0], 1.0, unit="records/s")


def _raw(own: Settings, topic: str) -> float:
    group = f"raw-{secrets.token_hex(4)}"
    servers = {"bootstrap.servers": own.kafka_bootstrap_servers}
    consumer: Any = Consumer(
        {
            **servers,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    producer: Any = Producer(
        {**servers, "transactional.id": group, "linger.ms": 5, "compression.type": "zstd", "client.id": group}
    )
    producer.init_transactions(30)
    consumer.subscribe([f"{own.kafka_topic_prefix}{topic}"])
    target = f"{own.kafka_topic_prefix}{RESPONSES}"
    done, started_s = 0, 0.0
    while done < RECORDS:
        messages = consumer.consume(500, 0.05)
        if not messages:
            continue
        started_s = started_s or time.perf_counter()
        producer.begin_transaction()
        ends: dict[int, int] = {}
        for message in messages:
            producer.produce(target, message.value(), message.key())
            ends[message.partition()] = message.offset() + 1
        positions = [TopicPartition(f"{own.kafka_topic_prefix}{topic}", number, end) for number, end in ends.items()]
        producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata(), 10)
        producer.commit_transaction(10)
        done += len(messages)
    elapsed_s = time.perf_counter() - started_s
    consumer.close()
    return RECORDS / elapsed_s


def _ours(
    own: Settings, contracts: Contracts, topic: str, handler: Handler, count: int, *, concurrency: int = 16
) -> float:
    started: list[float] = []

    def timed(records: Sequence[Record]) -> Sequence[Output | Produced]:
        if not started:
            started.append(time.perf_counter())
        return handler(records)

    sent = SENT.labels(RESPONSES, "")
    before = sent._value.get()
    with _pipeline(own, contracts, topic, timed, concurrency=concurrency):
        while sent._value.get() - before < count:
            time.sleep(0.002)
        return count / (time.perf_counter() - started[0])


@contextmanager
def _pipeline(own: Settings, contracts: Contracts, topic: str, handler: Handler, *, concurrency: int) -> Iterator[None]:
    stop = threading.Event()
    pipeline = Pipeline(
        own,
        contracts,
        group=f"bench-{secrets.token_hex(4)}",
        topic=topic,
        handler=handler,
        health=Health(),
        concurrency=concurrency,
        stop=stop,
    )
    thread = threading.Thread(target=pipeline.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


# Light load


def light_load(base: Settings) -> list[Figure]:
    """Milliseconds that the pipeline adds to a bare round trip, at ten records a second.

    Each question goes through one of the two, in turn, so both meet the same moments. The ratio is of what is allowed
    to what is added.
    """
    with installation(base) as bare, installation(base) as ours, _worker("bare", bare), _worker("ours", ours):
        times = {"bare": _RoundTrips(bare, "read_uncommitted"), "ours": _RoundTrips(ours, "read_committed")}
        for trips in times.values():
            trips.one()
        chance, until_s = random.Random(1), time.monotonic() + LIGHT_S
        samples: dict[str, list[float]] = {name: [] for name in times}
        for name in itertools.cycle(times):
            if time.monotonic() > until_s:
                break
            time.sleep(chance.expovariate(2 * LIGHT_PER_S))
            samples[name].append(times[name].one())
        for trips in times.values():
            trips.close()
    figures = []
    for percentile, allowed_ms in ((50, 10.0), (99, 40.0)):
        mine, other = (_percentile(samples[name], percentile) for name in ("ours", "bare"))
        figures += [
            figure(f"round trip p{percentile}", mine, other, None, samples, higher_is_better=False, unit="ms"),
            figure(
                f"added by the pipeline p{percentile}",
                max(mine - other, 0.01),
                allowed_ms,
                1.0,
                {},
                higher_is_better=False,
                unit="ms",
            ),
        ]
    return figures


class _RoundTrips:
    """Produces a record and waits for it at the other end."""

    def __init__(self, own: Settings, isolation: str) -> None:
        self._topic = f"{own.kafka_topic_prefix}{LETTERS}"
        servers = {"bootstrap.servers": own.kafka_bootstrap_servers}
        self._producer: Any = Producer({**servers, "linger.ms": 0})
        self._consumer: Any = Consumer(
            {**servers, "group.id": "reader", "isolation.level": isolation, "enable.auto.commit": False}
        )
        target = f"{own.kafka_topic_prefix}{RESPONSES}"
        self._consumer.assign([TopicPartition(target, number, 0) for number in range(3)])
        self._number = 0

    def one(self) -> float:
        """Milliseconds of one round trip."""
        self._number += 1
        value = str(self._number).encode() + b"|" + b"x" * 200
        started_s = time.perf_counter()
        self._producer.produce(self._topic, value, value[:3])
        self._producer.poll(0)
        while (message := self._consumer.poll(30)) is not None:
            if message.error() is None and message.value() == value:
                return (time.perf_counter() - started_s) * 1000
        raise AssertionError("no answer within 30 s")

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()


# The whole way of a question


def questions(base: Settings) -> list[Figure]:
    """Milliseconds from a question to its response, with a model that answers at once and an index that is warm.

    Answering is what the response itself says: retrieval, the model's call, the archive. The rest is Kafka, the
    pipeline, and keeping the answer. Reported; nothing is promised.
    """
    from rtfm.knowledge import open_knowledge
    from rtfm.processor.ingest import Ingest
    from tests.fakes import gemini as fake

    samples: dict[str, list[float]] = {"question to response": [], "of that answering": [], "of that the rest": []}
    with installation(base) as own, fake.FakeGemini() as model:
        knowledge = open_knowledge(own)
        knowledge.archive.migrate()
        ingest = Ingest(knowledge=knowledge)
        for first in range(0, CORPUS, 500):
            ingest.take([_said(number) for number in range(first, first + 500)])
        knowledge.close()
        environment = _environment(own) | {"GEMINI_API_KEY": fake.KEY, "GEMINI_API_ENDPOINT": model.address}
        program = Path(sys.executable).with_name("rtfm-cli")
        with subprocess.Popen([program, "run", "processor", "--only", "answer"], env=environment) as processor:
            asking = _Asking(own, open_contracts(own))
            try:
                for number in range(-20, int(QUESTIONS_S * LIGHT_PER_S)):
                    time.sleep(random.Random(number).expovariate(2 * LIGHT_PER_S))
                    total_ms, answering_ms = asking.one(number + 20)
                    if number >= 0:
                        for name, value in zip(samples, (total_ms, answering_ms, total_ms - answering_ms), strict=True):
                            samples[name].append(value)
            finally:
                processor.terminate()
                asking.close()
    return [
        figure(f"{name} p{percentile}", _percentile(values, percentile), None, None, unit="ms")
        for percentile in (50, 99)
        for name, values in samples.items()
    ]


class _Asking:
    """Asks a question through Kafka and waits for its response."""

    def __init__(self, own: Settings, contracts: Contracts) -> None:
        self._own = own
        self._contracts = contracts
        servers = {"bootstrap.servers": own.kafka_bootstrap_servers}
        self._producer: Any = Producer({**servers, "linger.ms": 0})
        self._consumer: Any = Consumer(
            {**servers, "group.id": "asking", "isolation.level": "read_committed", "enable.auto.commit": False}
        )
        target = f"{own.kafka_topic_prefix}{RESPONSES}"
        self._consumer.assign([TopicPartition(target, number, 0) for number in range(3)])

    def one(self, number: int) -> tuple[float, float]:
        """Milliseconds of the whole way and of answering."""
        query = evolve(_query(number), guild_id="100", question=f"how do I mend disk number {number % 50}?")
        started_s = time.perf_counter()
        self._producer.produce(
            f"{self._own.kafka_topic_prefix}{QUERIES}", self._contracts.encode(QUERIES, query), query.query_id.encode()
        )
        self._producer.poll(0)
        while (message := self._consumer.poll(60)) is not None:
            if message.error() is None and message.key() == query.query_id.encode():
                elapsed_ms = (time.perf_counter() - started_s) * 1000
                return elapsed_ms, float(self._contracts.decode(RESPONSES, message.value()).elapsed_ms)
        raise AssertionError("no response within 60 s")

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()


def _model_beside_the_checkout() -> Path | None:
    folder = Path.cwd().parent / "shared" / "models" / "all-MiniLM-L6-v2"
    return folder if folder.is_dir() else None


# Memory


def memory(base: Settings) -> Figure:
    """Growth of a process whose handler stands still while a million records wait."""
    with installation(base) as own:
        _fill(own, LETTERS, b"x" * 100, BACKLOG)
        with _worker("stalled", own) as process:
            resident = psutil.Process(process.pid)
            line = process.stdout.readline() if process.stdout else b""
            assert line.strip() == b"ready"
            before_mb = resident.memory_info().rss / 1e6
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
            most_mb = 0.0
            for _ in range(60):
                time.sleep(0.5)
                most_mb = max(most_mb, resident.memory_info().rss / 1e6 - before_mb)
    return figure(
        "memory growth with a backlog of a million", most_mb, MEMORY_LIMIT_MB, 1.0, higher_is_better=False, unit="MB"
    )


# Processes of their own


@contextmanager
def _worker(kind: str, own: Settings) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "benchmarks.pipeline", "worker", kind]
    with subprocess.Popen(command, env=_environment(own), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def _environment(own: Settings) -> dict[str, str]:
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
    return os.environ | {name: str(value) for name, value in given.items()}


def _work(kind: str) -> None:
    own = configuration.load(dotenv=None)
    if kind == "bare":
        _bare(own)
    contracts = open_contracts(own)
    print("ready", flush=True)
    if kind == "stalled":
        sys.stdin.readline()

    def handle(records: Sequence[Record]) -> list[Produced]:
        if kind == "stalled":
            time.sleep(3600)
        return [Produced(RESPONSES, record.key, record.value, []) for record in records]

    with _pipeline(own, contracts, LETTERS, handle, concurrency=16):
        time.sleep(3600)


def _bare(own: Settings) -> None:
    servers = {"bootstrap.servers": own.kafka_bootstrap_servers}
    consumer: Any = Consumer({**servers, "group.id": "bare", "enable.auto.commit": False})
    consumer.assign([TopicPartition(f"{own.kafka_topic_prefix}{LETTERS}", number, 0) for number in range(3)])
    producer: Any = Producer({**servers, "linger.ms": 0})
    while True:
        message = consumer.poll(1.0)
        if message is not None and message.error() is None:
            producer.produce(f"{own.kafka_topic_prefix}{RESPONSES}", message.value(), message.key())
            producer.poll(0)


# Data


def _fill(own: Settings, topic: str, value: bytes, count: int, *, keys: int = KEYS) -> None:
    producer: Any = Producer(
        {
            "bootstrap.servers": own.kafka_bootstrap_servers,
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


def _message() -> DiscordMessage:
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


def _said(number: int) -> DiscordMessage:
    text = f"to mend disk number {number % 50} turn it off and run `mend-disk --port {number}`"
    return evolve(_message(), message_id=str(5000 + number), content=text, created_at=At(1_700_000_000_000 + number))


def _query(number: int) -> BotQuery:
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


def _response() -> BotResponse:
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


def _percentile(values: Sequence[float], percentile: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percentile - 1]


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        _work(sys.argv[2])
    sys.exit(main())
