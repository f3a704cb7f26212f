"""Whether the broker that this project runs ends a transaction in every partition, shown with plain clients.

When a transaction ends, Kafka 4.3.0 to 4.4.0 treat a partition without a leader as deleted and write no marker to it
(KAFKA-20734). The producer's next transaction then also commits what was aborted: an answer that must never be visible
is visible next to its replacement. ``rtfm.local`` runs a release without this defect.
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
"""The broker that leads the partition and is down when its transaction ends; another one coordinates."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three brokers: transactions have a coordinator whichever one is down."""
    with three_brokers(Settings()) as (cluster, _):
        yield cluster


def config(cluster: Cluster, **more: Any) -> dict[str, Any]:
    """Return the configuration of a plain client."""
    return {"bootstrap.servers": cluster.address, "log_level": 0, **more}


def leader(cluster: Cluster, topic: str) -> int:
    """Return the broker that leads the topic's only partition, -1 for none."""
    found = AdminClient(config(cluster)).list_topics(timeout=10).topics[topic]
    return int(found.partitions[0].leader) if found.partitions else -1


def read_committed(cluster: Cluster, topic: str) -> list[bytes]:
    """Return what a reader of committed records gets."""
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
    """What was aborted never appears, and what was committed appears without another transaction."""
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
