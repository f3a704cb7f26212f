"""The judge's parser on files of a real Kafka: the records that consumers get, and the outcomes of transactions."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # not in its __all__

from rtfm.local.services import DEFAULT_PORTS, free_ports
from rtfm.local.stack import LocalStack
from tests.conftest import CACHE_DIR, stack_home
from tests.judge.positions import PositionCommit, read_positions
from tests.judge.segments import PartitionLog, TransactionOutcome, partitions, read_partition
from tests.streams import eventually

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


class Broker:
    """A running Kafka whose data folder is known."""

    def __init__(self, address: str, data: Path) -> None:
        self.address = address
        self.data = data

    def new_topic(self) -> str:
        """Create a topic with one partition and small segments, and return its name."""
        name = f"t{uuid.uuid4().hex[:8]}"
        topic = NewTopic(name, 1, 1, config={"segment.bytes": str(1024 * 1024)})
        admin = AdminClient({"bootstrap.servers": self.address})
        admin.create_topics([topic])[name].result(30)
        return name

    def producer(self, codec: str = "zstd", name: str | None = None) -> Any:
        """Return a producer; with a ``name``, the producer is transactional."""
        config: dict[str, Any] = {
            "bootstrap.servers": self.address,
            "log_level": 0,
            "compression.type": codec,
            "linger.ms": 5,
        }
        made: Any = Producer(config | ({"transactional.id": name, "transaction.timeout.ms": 60_000} if name else {}))
        if name:
            made.init_transactions(30)
        return made

    def log(self, topic: str) -> PartitionLog:
        """Return the parsed log of partition 0."""
        return read_partition(partitions(self.data, topic)[0])

    def log_with(self, topic: str, *, markers: int) -> PartitionLog | None:
        """Return the parsed log if it has exactly ``markers`` transaction markers, and None otherwise."""
        log = self.log(topic)
        return log if len(log.markers) == markers else None

    def positions(self, group: str, topic: str, *, ended: int) -> list[PositionCommit] | None:
        """Return the group's commits if exactly ``ended`` of them are in no open transaction, and None otherwise."""
        found = read_positions(self.data).get((group, topic, 0), [])
        return found if sum(p.written.batch.outcome is not TransactionOutcome.OPEN for p in found) == ended else None

    def given(self, topic: str, isolation: str, count: int) -> list[tuple[Any, ...]]:
        """Return (offset, time, key, value, headers) of a consumer's records; check that ``count`` records arrive."""
        consumer: Any = Consumer(
            {
                "bootstrap.servers": self.address,
                "group.id": uuid.uuid4().hex,
                "isolation.level": isolation,
                "enable.auto.commit": False,
            }
        )
        consumer.assign([TopicPartition(topic, 0, 0)])
        found: list[tuple[Any, ...]] = []
        while len(found) < count:
            (message,) = consumer.consume(1, 30)
            assert message.error() is None
            found.append(
                (
                    message.offset(),
                    message.timestamp()[1],
                    message.key(),
                    message.value(),
                    list(message.headers() or []),
                )
            )
        assert consumer.poll(0.3) is None
        consumer.close()
        return found


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    """Run a Kafka for the tests of this module."""
    with stack_home() as home:
        stack = LocalStack(home, cache_dir=CACHE_DIR)
        try:
            services = stack.up(["kafka"], ports=free_ports(DEFAULT_PORTS))
            (data,) = home.rglob("kafka/log")
            yield Broker(next(service.address for service in services if service.name == "kafka"), data)
        finally:
            stack.down()


def parsed(log: PartitionLog, *, visible: bool) -> list[tuple[Any, ...]]:
    """Return the consumer's records according to the parser; if ``visible``, only those of committed transactions."""
    return [
        (record.offset, record.timestamp_ms, record.key, record.value, record.headers)
        for record in log.records
        if not visible or (record.is_visible and record.offset < log.stable_end)
    ]


def produce(producer: Any, topic: str, what: str, count: int) -> None:
    """Produce ``count`` records that begin with ``what``; some keys, values and headers are empty or missing."""
    for number in range(count):
        producer.produce(
            topic,
            key=None if number % 5 == 0 else f"{what}-{number}",
            value=None if number % 7 == 0 else f"{what} {number} ".encode() * (number % 50),
            headers=[("a", b"1"), ("none", None), ("ümlaut", bytes(number))] if number % 3 else None,
        )
    assert producer.flush(30) == 0


@pytest.mark.parametrize("codec", CODECS)
def test_committed_aborted_and_open_transactions_are_told_apart(broker: Broker, codec: str) -> None:
    """For each compression, the parser tells committed, aborted and open transactions apart.

    While a transaction is open, the parser hides the committed records after its start, as Kafka does from consumers.
    """
    topic = broker.new_topic()
    plain = broker.producer(codec)
    produce(plain, topic, "plain", 60)
    one, two = (broker.producer(codec, f"{topic}-{name}") for name in ("one", "two"))
    for producer, ends in ((one, "commit"), (two, "abort"), (one, "abort"), (two, "commit")):
        producer.begin_transaction()
        produce(producer, topic, ends, 60)
        producer.commit_transaction(30) if ends == "commit" else producer.abort_transaction(30)
    for producer in (one, two):
        producer.begin_transaction()
    for producer, what in ((one, "first"), (two, "second"), (one, "first again"), (two, "second again")):
        produce(producer, topic, what, 30)
    two.commit_transaction(30)
    # The broker may write transaction markers after the producer has got its response.
    log = eventually(lambda: broker.log_with(topic, markers=5))
    assert {record.batch.outcome for record in log.records} == set(TransactionOutcome)
    # A producer sends a batch uncompressed if compression would enlarge it, as with a single record.
    assert {codec} <= {record.batch.compression for record in log.records} <= {codec, "none"}
    assert len(parsed(log, visible=True)) == 60 * 3
    assert parsed(log, visible=True) == broker.given(topic, "read_committed", 60 * 3)
    assert parsed(log, visible=False) == broker.given(topic, "read_uncommitted", 60 * 5 + 30 * 4)
    one.abort_transaction(30)
    log = eventually(lambda: broker.log_with(topic, markers=6))
    assert parsed(log, visible=True) == broker.given(topic, "read_committed", 60 * 3 + 30 * 2)
    assert (log.start, log.torn, log.gaps, log.stable_end) == (0, None, (), log.end)
    assert log.topic_id is not None


def test_a_log_of_several_segments_is_read_whole(broker: Broker) -> None:
    """The parser reads a log of several segments completely and in order."""
    topic = broker.new_topic()
    producer = broker.producer("none")
    for number in range(40):
        producer.produce(topic, value=bytes([number]) * 100_000)
        producer.flush(30)
    assert len(list(partitions(broker.data, topic)[0].glob("*.log"))) > 2
    assert parsed(broker.log(topic), visible=True) == broker.given(topic, "read_committed", 40)


def test_positions_take_effect_when_their_transaction_is_committed(broker: Broker) -> None:
    """A position takes effect when its transaction is committed; a member gets the position that took effect last.

    The cases are a plain commit, and committed, aborted and open transactions.
    """
    topic, group = broker.new_topic(), f"g{uuid.uuid4().hex[:8]}"
    config: Any = {"bootstrap.servers": broker.address, "log_level": 0, "group.id": group, "enable.auto.commit": False}
    consumer: Any = Consumer(config)
    producers = [broker.producer(name=f"{group}-{name}") for name in ("one", "two")]

    def send(producer: Any, offset: int, metadata: str) -> None:
        position = TopicPartition(topic, 0, offset, metadata)
        producer.send_offsets_to_transaction([position], consumer.consumer_group_metadata(), 30)

    consumer.commit(offsets=[TopicPartition(topic, 0, 3, "plain")], asynchronous=False)
    for offset, ends in ((5, "commit"), (7, "abort"), (9, "commit")):
        producers[0].begin_transaction()
        send(producers[0], offset, ends)
        producers[0].commit_transaction(30) if ends == "commit" else producers[0].abort_transaction(30)
    # Position 11 is written before position 13 and committed after it, so the coordinator ignores position 11.
    for producer, offset in zip(producers, (11, 13), strict=True):
        producer.begin_transaction()
        send(producer, offset, "crossed")
    for ended, producer in enumerate(reversed(producers), start=5):
        producer.commit_transaction(30)
        # The broker may write a marker after the producer has got its response, and the order of the markers matters.
        eventually(partial(broker.positions, group, topic, ended=ended))
    producers[0].begin_transaction()
    send(producers[0], 15, "open")
    found = eventually(lambda: broker.positions(group, topic, ended=6))
    # confluent-kafka sends the terminator of the metadata's C string, and removes the terminator when it reads.
    assert [(p.offset, p.metadata.removesuffix("\0"), p.is_applied) for p in found] == [
        (3, "plain", True),
        (5, "commit", True),
        (7, "abort", False),
        (9, "commit", True),
        (13, "crossed", True),
        (11, "crossed", False),
        (15, "open", False),
    ]
    outcomes = [
        TransactionOutcome.NONE,
        TransactionOutcome.COMMITTED,
        TransactionOutcome.ABORTED,
        *[TransactionOutcome.COMMITTED] * 3,
        TransactionOutcome.OPEN,
    ]
    assert [p.written.batch.outcome for p in found] == outcomes
    assert {p.written.batch.producer_id >= 0 for p in found[1:]} == {True}
    producers[0].abort_transaction(30)
    (told,) = consumer.committed([TopicPartition(topic, 0)], 30)
    assert (told.offset, told.metadata) == (13, "crossed")
    consumer.close()
