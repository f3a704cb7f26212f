"""The latency that the pipeline adds to a single record, and the time from a question to its response."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
from typing import Any

from attrs import evolve
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks import pipeline_stages
from benchmarks.pipeline_setup import (
    DEAD_LETTERS,
    QUERIES,
    RESPONSES,
    a_numbered_message,
    a_query,
    environment,
    installation,
    percentile,
    worker,
)
from benchmarks.report import Figure, figure
from rtfm.contracts import Contracts, open_contracts
from rtfm.settings import Settings

LIGHT_S = 40.0
LIGHT_PER_S = 10.0
QUESTIONS_S = 20.0
CORPUS = 2_000


def measure_light_load(base: Settings) -> list[Figure]:
    """Measure the milliseconds that the pipeline adds to a round trip through Kafka, at about ten records per second.

    Records go through the pipeline and through a loop without transactions in turn, so that other load on the machine
    affects both. The reported ratio is the allowed latency divided by the added latency.
    """
    with installation(base) as bare, installation(base) as ours, worker("bare", bare), worker("ours", ours):
        round_trips = {"bare": _RoundTrips(bare, "read_uncommitted"), "ours": _RoundTrips(ours, "read_committed")}
        for trips in round_trips.values():
            trips.measure()
        rng, until_s = random.Random(1), time.monotonic() + LIGHT_S
        samples: dict[str, list[float]] = {name: [] for name in round_trips}
        for name in itertools.cycle(round_trips):
            if time.monotonic() > until_s:
                break
            time.sleep(rng.expovariate(2 * LIGHT_PER_S))  # each of the two gets LIGHT_PER_S at random times
            samples[name].append(round_trips[name].measure())
        for trips in round_trips.values():
            trips.close()
    figures = []
    for percent, allowed_ms in ((50, 10.0), (99, 40.0)):
        ours_ms, bare_ms = (percentile(samples[name], percent) for name in ("ours", "bare"))
        figures += [
            figure(f"round trip p{percent}", ours_ms, bare_ms, None, samples, higher_is_better=False, unit="ms"),
            figure(
                f"added by the pipeline p{percent}",
                max(ours_ms - bare_ms, 0.01),
                allowed_ms,
                1.0,
                {},
                higher_is_better=False,
                unit="ms",
            ),
        ]
    return figures


class _RoundTrips:
    """Produces records, and waits for the output of each."""

    def __init__(self, own: Settings, isolation: str) -> None:
        self._topic = f"{own.kafka_topic_prefix}{DEAD_LETTERS}"
        servers = {"bootstrap.servers": own.kafka_bootstrap_servers}
        self._producer: Any = Producer({**servers, "linger.ms": 0})
        self._consumer: Any = Consumer(
            {**servers, "group.id": "reader", "isolation.level": isolation, "enable.auto.commit": False}
        )
        target = f"{own.kafka_topic_prefix}{RESPONSES}"
        self._consumer.assign([TopicPartition(target, number, 0) for number in range(3)])
        self._number = 0

    def measure(self) -> float:
        """Return the milliseconds of one round trip."""
        self._number += 1
        value = str(self._number).encode() + b"|" + b"x" * 200
        started_s = time.perf_counter()
        self._producer.produce(self._topic, value, value[:3])
        self._producer.poll(0)
        while (message := self._consumer.poll(30)) is not None:
            if message.error() is None and message.value() == value:
                return (time.perf_counter() - started_s) * 1000
        raise AssertionError("no output within 30 s")

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()


def measure_questions(base: Settings) -> list[Figure]:
    """Measure the milliseconds from a question to its response, with a model that answers at once and warm caches.

    The time of each stage is reported, too. The figures have no targets.
    """
    from rtfm.knowledge import open_knowledge
    from rtfm.processor.ingest import Ingest
    from tests.fakes import gemini as fake

    total_ms: list[float] = []
    sent_ns: dict[str, int] = {}
    seen_ns: dict[str, int] = {}
    with installation(base) as own, fake.FakeGemini() as model:
        knowledge = open_knowledge(own)
        knowledge.archive.migrate()
        ingest = Ingest(knowledge=knowledge)
        for first in range(0, CORPUS, 500):
            ingest.apply([a_numbered_message(number) for number in range(first, first + 500)])
        knowledge.close()
        variables = environment(own) | {"GEMINI_API_KEY": fake.KEY, "GEMINI_API_ENDPOINT": model.address}
        notes = base.home.parent / "stages.jsonl"
        command = [sys.executable, "-m", "benchmarks.pipeline_stages", str(notes)]
        with subprocess.Popen(command, env=variables) as processor:
            round_trips = _QuestionRoundTrips(own, open_contracts(own))
            try:
                for number in range(-20, int(QUESTIONS_S * LIGHT_PER_S)):
                    time.sleep(random.Random(number).expovariate(2 * LIGHT_PER_S))
                    query_id, started_ns, ended_ns = round_trips.ask(number + 20)
                    if number >= 0:
                        sent_ns[query_id], seen_ns[query_id] = started_ns, ended_ns
                        total_ms.append((ended_ns - started_ns) / 1e6)
            finally:
                processor.terminate()
                round_trips.close()
    return [
        figure(f"question to response p{percent}", percentile(total_ms, percent), None, None, unit="ms")
        for percent in (50, 99)
    ] + pipeline_stages.figures(notes, sent_ns, seen_ns)


class _QuestionRoundTrips:
    """Asks questions through Kafka and waits for their responses."""

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

    def ask(self, number: int) -> tuple[str, int, int]:
        """Ask a question. Return its id, and the times (ns since 1970) when it was sent and its response was read."""
        query = evolve(a_query(number), guild_id="100", question=f"how do I mend disk number {number % 50}?")
        started_ns = time.time_ns()
        self._producer.produce(
            f"{self._own.kafka_topic_prefix}{QUERIES}", self._contracts.encode(QUERIES, query), query.query_id.encode()
        )
        self._producer.poll(0)
        while (message := self._consumer.poll(60)) is not None:
            if message.error() is None and message.key() == query.query_id.encode():
                return query.query_id, started_ns, time.time_ns()
        raise AssertionError("no response within 60 s")

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()
