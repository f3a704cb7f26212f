"""The pipeline: throughput, concurrency, added latency, the effect of slow keys and crashes, memory under a backlog.

``make bench-pipeline`` runs all parts: throughput, concurrency, latency, questions, sleeper, kill and memory. ``make
bench-pipeline ARGS='--json latency memory'`` runs only some of them. The benchmark starts services of its own and takes
about five minutes.

The samples of a peer and of this project are taken in turn. The peer for throughput is a serial loop that consumes up
to 500 records, produces as many and commits, all in one transaction. The peer for latency consumes and produces without
transactions.
"""

from __future__ import annotations

import secrets
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
from attrs import evolve
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.pipeline_faults import measure_kill, measure_sleeper
from benchmarks.pipeline_latency import measure_light_load, measure_questions
from benchmarks.pipeline_setup import (
    DEAD_LETTERS,
    MESSAGES,
    QUERIES,
    RESPONSES,
    SLEEP,
    a_message,
    a_query,
    a_response,
    fill,
    installation,
    running_pipeline,
    worker,
)
from benchmarks.report import Figure, figure, interleave, report
from rtfm import settings as configuration
from rtfm.contracts import Contracts, open_contracts
from rtfm.local.stack import LocalStack
from rtfm.processor.service import tune_garbage_collector
from rtfm.settings import Settings
from rtfm.streams.pipeline import Handler, Output, Record
from rtfm.streams.transactions import ProducerRecord
from rtfm.telemetry import SENT, configure_logging

RECORDS = 60_000
SLOW_RECORDS = 4_000
BACKLOG = 1_000_000
MEMORY_LIMIT_MB = 100.0


def main() -> int:
    """Run the benchmark. Return 1 if a target is missed."""
    configure_logging("WARNING")
    tune_garbage_collector()  # like in the processor; the peers in this process are tuned, too
    with tempfile.TemporaryDirectory(prefix="rtfm-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)  # if root runs this, PostgreSQL runs as another account
        stack = LocalStack(home, cache_dir=Path(".rtfm/cache"))
        try:
            addresses = {service.name: service.address for service in stack.up()}
            base = evolve(
                Settings(),
                home=home / "own",
                kafka_bootstrap_servers=addresses["kafka"],
                schema_registry_url=addresses["schema-registry"],
                chroma_url=addresses["chroma"],
                database_url=addresses["postgres"],
                embedding_model_dir=configuration.load().embedding_model_dir,
                kafka_static_membership=False,
            )
            measured = {
                "throughput": lambda: measure_throughput(base),
                "concurrency": lambda: [measure_slow_handler(base)],
                "latency": lambda: measure_light_load(base),
                "questions": lambda: measure_questions(base),
                "sleeper": lambda: measure_sleeper(base),
                "kill": lambda: measure_kill(base),
                "memory": lambda: [measure_memory(base)],
            }
            wanted = [name for name in sys.argv[1:] if not name.startswith("-")] or list(measured)
            # A part is reported as soon as it is measured.
            met = [report(measured[name]()) for name in wanted]
        finally:
            stack.down()
    return 0 if all(met) else 1


# Throughput


def measure_throughput(base: Settings) -> list[Figure]:
    """Measure the records per second of a pipeline that passes on bytes, and of one that decodes and encodes events."""
    with installation(base) as own:
        contracts = open_contracts(own)
        value = contracts.encode(MESSAGES, a_message())
        for topic in (MESSAGES, DEAD_LETTERS):
            fill(own, topic, value, RECORDS)
        response = a_response()

        def passing(records: Sequence[Record]) -> list[ProducerRecord]:
            return [ProducerRecord(RESPONSES, record.key, record.value, record.headers) for record in records]

        def typed(records: Sequence[Record]) -> list[Output]:
            return [Output(topic=RESPONSES, event=response) for _ in records]

        samples = interleave(
            {
                "raw": lambda: _run_raw_loop(own, MESSAGES),
                "tuned": lambda: _run_raw_loop(own, MESSAGES, {"retry.backoff.ms": 10}),
                "passing": lambda: _run_pipeline(own, contracts, DEAD_LETTERS, passing, RECORDS),
                "typed": lambda: _run_pipeline(own, contracts, MESSAGES, typed, RECORDS),
            },
            rounds=5,
        )
    raw, tuned = samples["raw"], samples["tuned"]
    return [
        figure("empty handler, against a raw loop", samples["passing"], raw, 1.2, unit="records/s"),
        figure("with events decoded and encoded", samples["typed"], raw, 0.6, unit="records/s"),
        # With librdkafka's default of retry.backoff.ms, the raw loop sometimes waits 100 ms for the markers of its last
        # transaction. The tuned loop waits 10 ms.
        figure(
            "empty handler, against a raw loop with a shorter backoff",
            samples["passing"],
            tuned,
            None,
            unit="records/s",
        ),
        figure(
            "with events, against a raw loop with a shorter backoff", samples["typed"], tuned, None, unit="records/s"
        ),
    ]


def measure_slow_handler(base: Settings) -> Figure:
    """Measure a handler that takes 50 ms, on 64 records at a time, against a target of 800 records per second."""

    def slow(records: Sequence[Record]) -> list[ProducerRecord]:
        time.sleep(0.05)
        return [ProducerRecord(RESPONSES, record.key, record.value, record.headers) for record in records]

    with installation(base) as own:
        contracts = open_contracts(own)
        fill(own, QUERIES, contracts.encode(QUERIES, a_query(0)), SLOW_RECORDS, keys=SLOW_RECORDS)
        samples = [_run_pipeline(own, contracts, QUERIES, slow, SLOW_RECORDS, concurrency=64) for _ in range(3)]
    return figure("50 ms handler, 64 at a time", samples, [800.0], 1.0, unit="records/s")


def _run_raw_loop(own: Settings, topic: str, tuning: Mapping[str, Any] = MappingProxyType({})) -> float:
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
        {**servers, "transactional.id": group, "linger.ms": 5, "compression.type": "zstd", "client.id": group, **tuning}
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


def _run_pipeline(
    own: Settings, contracts: Contracts, topic: str, handler: Handler, count: int, *, concurrency: int = 16
) -> float:
    started: list[float] = []

    def timed(records: Sequence[Record]) -> Sequence[Output | ProducerRecord]:
        if not started:
            started.append(time.perf_counter())
        return handler(records)

    sent = SENT.labels(RESPONSES, "")
    before = sent._value.get()
    with running_pipeline(own, contracts, topic, timed, concurrency=concurrency):
        while sent._value.get() - before < count:
            time.sleep(0.002)
        return count / (time.perf_counter() - started[0])


# Memory


def measure_memory(base: Settings) -> Figure:
    """Measure how much the memory of a process grows while its handler blocks and a million records wait."""
    with installation(base) as own:
        fill(own, DEAD_LETTERS, b"x" * 100, BACKLOG)
        with worker("stalled", own) as process:
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


def _run_worker(kind: str) -> None:
    own = configuration.load(dotenv=None)
    if kind == "bare":
        _run_bare_loop(own)
    contracts = open_contracts(own)
    tune_garbage_collector()
    print("ready", flush=True)
    if kind == "stalled":
        sys.stdin.readline()

    def handle(records: Sequence[Record]) -> list[ProducerRecord]:
        if kind == "stalled":
            time.sleep(3600)
        if kind == "slow":
            time.sleep(30 if (records[0].value or b"").startswith(SLEEP) else 0.02)
        return [ProducerRecord(RESPONSES, record.key, record.value, []) for record in records]

    with running_pipeline(own, contracts, DEAD_LETTERS, handle, concurrency=16):
        time.sleep(3600)


def _run_bare_loop(own: Settings) -> None:
    servers = {"bootstrap.servers": own.kafka_bootstrap_servers}
    consumer: Any = Consumer({**servers, "group.id": "bare", "enable.auto.commit": False})
    consumer.assign([TopicPartition(f"{own.kafka_topic_prefix}{DEAD_LETTERS}", number, 0) for number in range(3)])
    producer: Any = Producer({**servers, "linger.ms": 0})
    while True:
        message = consumer.poll(1.0)
        if message is not None and message.error() is None:
            producer.produce(f"{own.kafka_topic_prefix}{RESPONSES}", message.value(), message.key())
            producer.poll(0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        _run_worker(sys.argv[2])
    sys.exit(main())
