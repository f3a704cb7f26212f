"""Tests that brokers end a transaction in every partition. The tests use plain clients instead of RTFM's own.

Kafka 4.3.0 to 4.4.0 have a defect (KAFKA-20734): if a partition has no leader when a transaction ends, the coordinator
treats the partition as deleted, and no marker is written to the partition. If that transaction was aborted, the commit
of the producer's next transaction then also commits the aborted records. An answer that must never be visible is then
visible, in addition to the answer that replaces it. ``rtfm.local`` runs a release without this defect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # not in its __all__

from rtfm.settings import Settings
from tests.chaos.cluster import Cluster, three_brokers
from tests.streams import eventually

AWAY = 2
"""The number of the broker that leads the partition, and that is down when the transaction ends."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three brokers. If one of them is down, another one coordinates the transactions."""
    with three_brokers(Settings()) as (cluster, _):
        yield cluster


def config(cluster: Cluster, **more: Any) -> dict[str, Any]:
    """Return the configuration of a plain client."""
    return {"bootstrap.servers": cluster.address, "log_level": 0, **more}


def leader(cluster: Cluster, topic: str) -> int:
    """Return the broker that leads the topic's only partition, or -1 if none does."""
    found = AdminClient(config(cluster)).list_topics(timeout=10).topics[topic]
    return int(found.partitions[0].leader) if found.partitions else -1


def read_committed(cluster: Cluster, topic: str) -> list[bytes]:
    """Return the values of the records that a reader of committed records gets."""
    consumer = Consumer(
        config(
            cluster,
            **{"group.id": "reader", "isolation.level": "read_committed", "enable.partition.eof": True},
        )
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[bytes] = []
    try:
        while (message := consumer.poll(30)) is not None:
            if (error := message.error()) is None:
                found.append(message.value() or b"")
            elif error.code() == KafkaError._PARTITION_EOF:
                return found
        raise AssertionError(f"no end of {topic} in 30 s")
    finally:
        consumer.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (Producer.abort_transaction, [b"before", b"after"]),
        (Producer.commit_transaction, [b"before", b"ended", b"after"]),
    ],
    ids=["aborted", "committed"],
)
def test_a_transaction_ends_in_a_partition_whose_leader_is_down(
    cluster: Cluster, end: Callable[[Producer, float], None], expected: list[bytes], request: pytest.FixtureRequest
) -> None:
    """Aborted records never become visible. Committed records become visible without another transaction."""
    topic = request.node.callspec.id
    admin = AdminClient(config(cluster))
    admin.create_topics([NewTopic(topic, 1, replica_assignment=[[AWAY]])])[topic].result(20)
    eventually(lambda: leader(cluster, topic) == AWAY, timeout_s=60)
    producer = Producer(config(cluster, **{"transactional.id": topic, "transaction.timeout.ms": 60_000}))
    producer.init_transactions(30)
    for value in (b"before", b"ended"):
        producer.begin_transaction()
        producer.produce(topic, value)
        producer.flush(20)
        if value == b"before":
            producer.commit_transaction(30)
    cluster.kill(AWAY)
    eventually(lambda: leader(cluster, topic) == -1, timeout_s=60)
    end(producer, 30)
    cluster.start(AWAY)
    eventually(lambda: leader(cluster, topic) == AWAY, timeout_s=120)
    eventually(lambda: read_committed(cluster, topic) == expected[:-1], timeout_s=60)
    producer.begin_transaction()
    producer.produce(topic, b"after")
    producer.commit_transaction(60)
    eventually(lambda: read_committed(cluster, topic) == expected, timeout_s=60)
