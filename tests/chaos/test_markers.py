"""Whether the broker that this project runs ends a transaction everywhere, shown with plain clients.

Kafka 4.3.0 to 4.4.0 take a partition without a leader for a deleted one when a transaction ends, and write no marker to
it (KAFKA-20734). The next transaction of that producer then carries what was aborted along with it: an answer that was
never to be seen is there, beside the one that was made instead. ``rtfm.local`` runs a release without that defect.
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
"""The broker that leads the partition, and is away when its transaction ends; another one coordinates."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three brokers: whichever is away, the transactions still have a coordinator."""
    with three_brokers(Settings()) as (cluster, _):
        yield cluster


def config(cluster: Cluster, **more: Any) -> dict[str, Any]:
    """Of a plain client."""
    return {"bootstrap.servers": cluster.address, "log_level": 0, **more}


def leader(cluster: Cluster, topic: str) -> int:
    """The broker that leads the topic's only partition, -1 for none."""
    found = AdminClient(config(cluster)).list_topics(timeout=10).topics[topic]
    return int(found.partitions[0].leader) if found.partitions else -1


def visible(cluster: Cluster, topic: str) -> list[bytes]:
    """What a reader of committed records is given."""
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
def test_a_transaction_that_ends_while_a_leader_is_away_ends_there_too(
    cluster: Cluster, end: Callable[[Producer, float], None], expected: list[bytes], request: pytest.FixtureRequest
) -> None:
    """What was aborted is never seen, and what was committed is seen without another transaction's help."""
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
    eventually(lambda: visible(cluster, topic) == expected[:-1], timeout_s=60)
    producer.begin_transaction()
    producer.produce(topic, b"after")
    producer.commit_transaction(60)
    eventually(lambda: visible(cluster, topic) == expected, timeout_s=60)
