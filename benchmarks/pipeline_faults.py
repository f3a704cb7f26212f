"""The effect of a slow key on the latency of other keys, and the time from a crash until the next response."""

from __future__ import annotations

import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

from attrs import evolve
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.pipeline_setup import (
    DEAD_LETTERS,
    QUERIES,
    RESPONSES,
    SLEEP,
    a_query,
    environment,
    installation,
    percentile,
    worker,
)
from benchmarks.report import Figure, figure
from rtfm.contracts import catalogue, open_contracts
from rtfm.settings import Settings

SLEEPER_S = 36.0
PER_S = 50.0
KILLS = 7
FLOW_LIMIT_S = 3.0


def measure_sleeper(base: Settings) -> list[Figure]:
    """Measure the latency of other keys while the handler of one key sleeps for 30 s, against a run without this key.

    Both runs take place at the same time. In each run, all records are in one partition. The handler takes 20 ms for a
    record and runs for sixteen records at a time.
    """
    with installation(base) as with_it, installation(base) as without:
        with worker("slow", with_it), worker("slow", without):
            runs = {"ours": _RecordFlow(with_it), "peer": _RecordFlow(without)}
            for flow in runs.values():
                flow.send()
                flow.wait()
            rng, started_s, slept = random.Random(1), time.monotonic(), False
            while (now_s := time.monotonic() - started_s) < SLEEPER_S:
                time.sleep(rng.expovariate(PER_S))  # records arrive at random, PER_S on average
                for flow in runs.values():
                    flow.send()
                if now_s > 2 and not slept:
                    runs["ours"].send(SLEEP)
                    slept = True
            for flow in runs.values():
                flow.wait()
    samples = {name: flow.latencies_ms for name, flow in runs.items()}
    return [
        figure(
            f"while a key sleeps 30 s, p{percent}",
            percentile(samples["ours"], percent),
            percentile(samples["peer"], percent),
            1 / 1.2 if percent == 99 else None,
            samples,
            higher_is_better=False,
            unit="ms",
        )
        for percent in (50, 99)
    ]


class _RecordFlow:
    """Sends records to one partition, and measures the latency of each output except that of the sleeping key."""

    def __init__(self, own: Settings) -> None:
        self._topic = f"{own.kafka_topic_prefix}{DEAD_LETTERS}"
        self._target = f"{own.kafka_topic_prefix}{RESPONSES}"
        servers = {"bootstrap.servers": own.kafka_bootstrap_servers}
        self._producer: Any = Producer({**servers, "linger.ms": 0})
        self._consumer: Any = Consumer(
            {**servers, "group.id": "flow", "isolation.level": "read_committed", "enable.auto.commit": False}
        )
        self._consumer.assign([TopicPartition(self._target, number, 0) for number in range(3)])
        self._sent = 0
        self._seen = 0
        self.latencies_ms: list[float] = []
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, what: bytes = b"") -> None:
        """Send a record with one of forty keys, or if ``what`` is ``SLEEP``, with the key whose handler sleeps."""
        self._sent += 1
        key = b"sleeper" if what else b"k%d" % (self._sent % 40)
        self._producer.produce(self._topic, b"%s|%d" % (what, time.perf_counter_ns()), key, 0)
        self._producer.poll(0)

    def wait(self) -> None:
        """Wait for the outputs of all records."""
        deadline_s = time.monotonic() + 60
        while self._seen < self._sent:
            assert time.monotonic() < deadline_s, "records are missing"
            time.sleep(0.05)

    def _read(self) -> None:
        while True:
            message = self._consumer.poll(1.0)
            if message is None or message.error():
                continue
            what, _, at_ns = message.value().partition(b"|")
            self._seen += 1
            if not what:
                self.latencies_ms.append((time.perf_counter_ns() - int(at_ns)) / 1e6)


def measure_kill(base: Settings) -> list[Figure]:
    """Measure the seconds from ``kill -9`` of a processor in an open transaction to the next response.

    The processor is started again at once. The time from its start to its first assignment is reported separately.
    """
    from tests.chaos.fleet import Fleet
    from tests.chaos.transactions import OpenTransactions

    with installation(base) as own:
        static = evolve(own, kafka_static_membership=True)
        program = str(Path(sys.executable).with_name("rtfm-cli"))
        command = [program, "run", "processor", "--only", "answer"]
        variables = environment(static) | {"LOG_LEVEL": "INFO"}
        del variables["RTFM_INSTANCE_ID"]  # the fleet sets it
        fleet = Fleet(static, command=command, environment=variables)
        load = _QuestionLoad(static)
        transactions = OpenTransactions(static, group=catalogue.load().group(QUERIES), read=QUERIES, written=RESPONSES)
        recovery_s: list[float] = []
        start_s: list[float] = []
        try:
            fleet.start("in-place")
            load.next_response()
            for _ in range(KILLS):
                time.sleep(2)
                assert transactions.kill_one(fleet, timeout_s=60), "no open transaction was found"
                killed_s, assigned = time.monotonic(), _count_assignments(fleet.log)
                load.answered.clear()
                fleet.start("in-place")
                deadline_s = killed_s + 60
                while _count_assignments(fleet.log) == assigned:
                    assert time.monotonic() < deadline_s, "the processor got no assignment after its restart"
                    time.sleep(0.02)
                start_s.append(time.monotonic() - killed_s)
                load.next_response()
                recovery_s.append(time.monotonic() - killed_s)
        finally:
            load.stop()
            transactions.close()
            fleet.close()
    return [
        figure(
            "killed in a transaction, to the next answer",
            recovery_s,
            [FLOW_LIMIT_S],
            1.0,
            higher_is_better=False,
            unit="s",
        ),
        figure("of that, from the kill to the first assignment", start_s, None, None, unit="s"),
    ]


class _QuestionLoad:
    """Asks ten questions per second and signals when responses arrive."""

    def __init__(self, own: Settings) -> None:
        self._own = own
        self._contracts = open_contracts(own)
        self._done = threading.Event()
        self.answered = threading.Event()
        for loop in (self._ask, self._read):
            threading.Thread(target=loop, daemon=True).start()

    def next_response(self) -> None:
        """Wait for the next response."""
        self.answered.clear()
        assert self.answered.wait(60), "no response within 60 s"

    def stop(self) -> None:
        """Stop asking."""
        self._done.set()

    def _ask(self) -> None:
        producer: Any = Producer({"bootstrap.servers": self._own.kafka_bootstrap_servers, "linger.ms": 0})
        number = 0
        while not self._done.wait(0.1):
            query = a_query(number := number + 1)
            value = self._contracts.encode(QUERIES, query)
            producer.produce(f"{self._own.kafka_topic_prefix}{QUERIES}", value, query.query_id.encode())
            producer.poll(0)

    def _read(self) -> None:
        consumer: Any = Consumer(
            {
                "bootstrap.servers": self._own.kafka_bootstrap_servers,
                "group.id": "responses",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
            }
        )
        target = f"{self._own.kafka_topic_prefix}{RESPONSES}"
        consumer.assign([TopicPartition(target, number, 0) for number in range(3)])
        while not self._done.is_set():
            message = consumer.poll(0.1)
            if message is not None and message.error() is None:
                self.answered.set()
        consumer.close()


def _count_assignments(log: Path) -> int:
    return log.read_text(encoding="utf-8").count('"assigned"')
