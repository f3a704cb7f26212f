"""A group's positions on real Kafka: full partitions, foreign metadata, recreated topics, and what other tools see."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from attrs import evolve
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from rtfm.contracts import Contracts
from rtfm.errors import ConfigError
from rtfm.settings import Settings
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.pipeline import HIGH_WATER, POLL_RECORDS, Output, Record
from rtfm.streams.position import encode_map
from rtfm.streams.progress import GroupProgress
from rtfm.streams.topics import TopicAdmin
from rtfm.streams.transactions import ProducerRecord, Transactions
from rtfm.telemetry import CONSUMED, INFLIGHT, LAG, PAUSED_PARTITIONS, PAUSES, Health
from tests.streams import (
    GROUP,
    MESSAGES,
    QUERIES,
    RESPONSES,
    RecordingHandler,
    build_message,
    build_query,
    build_response,
    committed,
    dead_letters,
    eventually,
    produce,
    produced,
    records,
    running,
)


def commit_position(settings: Settings, topic: str, partition: int, offset: int, metadata: str) -> None:
    """Commit a position for the group while it has no members."""
    consumer: Any = Consumer(
        {"bootstrap.servers": settings.kafka_bootstrap_servers, "group.id": KafkaConfig.of(settings).group(GROUP)}
    )
    position = TopicPartition(KafkaConfig.of(settings).topic(topic), partition, offset, metadata)
    consumer.commit(offsets=[position], asynchronous=False)
    consumer.close()


def partition_of(settings: Settings, contracts: Contracts, topic: str) -> int:
    """Return the only partition of ``topic`` that has records."""
    (number,) = {record.partition for record in records(settings, contracts, topic)}
    return number


def lag_of(settings: Settings, topic: str) -> dict[int, float]:
    """Return the lag metric of each partition."""
    name = KafkaConfig.of(settings).topic(topic)
    samples = [s for metric in LAG.collect() for s in metric.samples if s.labels["topic"] == name]
    return {int(s.labels["partition"]): s.value for s in samples}


def test_a_partition_that_was_left_full_is_read_again(settings: Settings, contracts: Contracts) -> None:
    """If a partition was full when the processor stopped, the partition is read again after the restart.

    The unfinished records are in Kafka's log, not in memory. If they counted as polled, the partition would stay full,
    and nothing would ever be polled from it.
    """
    count = 2 * (HIGH_WATER + POLL_RECORDS)
    produce(settings, contracts, MESSAGES, *(build_message(n) for n in range(count + 10)))
    left = range(0, count, 2)
    commit_position(settings, MESSAGES, partition_of(settings, contracts, MESSAGES), 0, encode_map(left, count))
    recorder = RecordingHandler()
    with running(settings, contracts, recorder):
        eventually(lambda: committed(settings) == count + 10)
    assert recorder.ids == [str(n) for n in [*left, *range(count, count + 10)]]


def test_metadata_of_another_program_stops_the_processor(settings: Settings, contracts: Contracts) -> None:
    """If another program wrote the metadata of a position, the processor ends.

    If the processor ignored such metadata, it would repeat finished records or skip unfinished records.
    """
    produce(settings, contracts, MESSAGES, build_message(1))
    commit_position(settings, MESSAGES, partition_of(settings, contracts, MESSAGES), 0, "somebody else's")
    recorder = RecordingHandler()
    with (
        pytest.raises(ConfigError, match="another program or version"),
        running(settings, contracts, recorder) as thread,
    ):
        eventually(lambda: not thread.is_alive())
    assert recorder.ids == []


def test_a_recreated_topic_is_read_from_its_start(settings: Settings, contracts: Contracts) -> None:
    """A recreated topic is read from its start, although the group had positions in the old topic."""
    produce(settings, contracts, MESSAGES, *(build_message(n) for n in range(20)))
    partition = partition_of(settings, contracts, MESSAGES)
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap_servers})
    name = KafkaConfig.of(settings).topic(MESSAGES)
    admin.delete_topics([name])[name].result(20)
    topics = TopicAdmin(settings, contracts.catalogue)
    topics.apply(eventually(lambda: [step for step in topics.plan() if step.action == "create"]))
    produce(settings, contracts, MESSAGES, *(build_message(n) for n in range(100, 105)))
    commit_position(settings, MESSAGES, partition, 12, encode_map([12, 14], 18))
    recorder = RecordingHandler()
    with running(settings, contracts, recorder):
        eventually(lambda: committed(settings) == 5)
    assert recorder.ids == [str(n) for n in range(100, 105)]


def test_a_stalled_handler_takes_in_no_more_than_is_allowed(settings: Settings, contracts: Contracts) -> None:
    """R8: While a handler hangs, each partition takes at most ``HIGH_WATER + POLL_RECORDS`` records.

    The other records stay in Kafka. A benchmark measures the memory.
    """
    produce(settings, contracts, QUERIES, *(build_query(n) for n in range(5000)))
    go_on, recorder = threading.Event(), RecordingHandler()
    INFLIGHT.labels(GROUP).set(0)
    PAUSED_PARTITIONS.labels(GROUP).set(0)

    def stalled(batch: Sequence[Record]) -> list[Output]:
        assert go_on.wait(60)
        return recorder(batch)

    with running(settings, contracts, stalled, topic=QUERIES, concurrency=4):
        eventually(lambda: PAUSED_PARTITIONS.labels(GROUP)._value.get() == 3)  # no partition is fetched any more
        assert 0 < INFLIGHT.labels(GROUP)._value.get() <= 3 * (HIGH_WATER + POLL_RECORDS)
        go_on.set()
        eventually(lambda: committed(settings, QUERIES) == 5000)
    assert len(recorder.ids) == len(set(recorder.ids)) == 5000


def test_a_normal_load_pauses_nothing(settings: Settings, contracts: Contracts) -> None:
    """R9: A load that the handler keeps up with pauses no partition, because resuming takes up to a second.

    A benchmark measures the throughput.
    """
    before = PAUSES.labels(GROUP)._value.get()
    produce(settings, contracts, QUERIES, *(build_query(n) for n in range(3000)))
    with running(settings, contracts, RecordingHandler(), topic=QUERIES, concurrency=8):
        eventually(lambda: committed(settings, QUERIES) == 3000)
        assert PAUSES.labels(GROUP)._value.get() == before


def test_lag_and_counts_are_correct(settings: Settings, contracts: Contracts) -> None:
    """R30: The lag of each partition is the end of its log minus the position, and the metrics count every record."""
    go_on, recorder, health = threading.Event(), RecordingHandler(), Health(max_gap_s=5)
    consumed = CONSUMED.labels(QUERIES, GROUP)._value.get()

    def held(batch: Sequence[Record]) -> list[Output]:
        if batch[0].event.query_id != "c0":
            return recorder(batch)
        assert go_on.wait(60)
        return recorder(batch)

    def lag() -> dict[int, float]:
        return lag_of(settings, QUERIES)

    def tool_lag() -> dict[int, float]:
        """Return the lag that Kafka's own tools compute."""
        consumer: Any = Consumer(
            {"bootstrap.servers": settings.kafka_bootstrap_servers, "group.id": KafkaConfig.of(settings).group(GROUP)}
        )
        parts = [TopicPartition(KafkaConfig.of(settings).topic(QUERIES), number) for number in range(3)]
        found = {part.partition: part.offset for part in consumer.committed(parts, 10)}
        ends = {part.partition: consumer.get_watermark_offsets(part, timeout=10)[1] for part in parts}
        consumer.close()
        return {number: float(ends[number] - max(found[number], 0)) for number in ends}

    produce(settings, contracts, QUERIES, *(build_query(n) for n in range(90)))
    with running(settings, contracts, held, topic=QUERIES, concurrency=4, health=health):
        eventually(lambda: len(recorder.ids) == 89)
        eventually(lambda: sum(tool_lag().values()) > 0 and lag() == tool_lag())
        assert health.liveness() == {}
        go_on.set()
        eventually(lambda: lag() == tool_lag() == {0: 0.0, 1: 0.0, 2: 0.0})
        assert CONSUMED.labels(QUERIES, GROUP)._value.get() - consumed == 90
    assert lag() == {}


def test_the_markers_of_transactions_do_not_count_as_lag(settings: Settings, contracts: Contracts) -> None:
    """R30: Transaction markers do not count as lag, because the group commits the end of the log.

    The group's positions include the offsets of the markers, so Kafka's own tools do not count the markers either.
    """
    transactions, recorder = Transactions(KafkaConfig.of(settings), "writer"), RecordingHandler()
    transactions.open()
    for number in range(3):
        event = build_query(number)
        transactions.commit(
            [ProducerRecord(QUERIES, contracts.key(QUERIES, event), contracts.encode(QUERIES, event), [])]
        )
    transactions.close()
    assert produced(settings, contracts, QUERIES) == 6
    with running(settings, contracts, recorder, topic=QUERIES):
        eventually(lambda: committed(settings, QUERIES) == 6)
        eventually(lambda: sum(lag_of(settings, QUERIES).values()) == 0 and lag_of(settings, QUERIES))
    assert len(recorder.ids) == 3
    with running(settings, contracts, recorder, topic=QUERIES):
        produce(settings, contracts, QUERIES, build_query(3))
        eventually(lambda: committed(settings, QUERIES) == 7)
    assert sorted(recorder.ids) == ["c0", "c1", "c2", "c3"]


def test_a_spare_member_is_healthy_and_one_outside_the_group_is_not(settings: Settings, contracts: Contracts) -> None:
    """R30: A spare is healthy, and a processor that cannot join the group is not."""
    dynamic = [evolve(settings, instance_id=f"w{number}", kafka_static_membership=False) for number in range(4)]
    healths = [Health(max_gap_s=30) for _ in dynamic]
    foreign: Any = Consumer(
        {
            "bootstrap.servers": settings.kafka_bootstrap_servers,
            "group.id": KafkaConfig.of(settings).group(GROUP),
            "partition.assignment.strategy": "range",
        }
    )
    foreign.subscribe([KafkaConfig.of(settings).topic(MESSAGES)])
    eventually(lambda: foreign.poll(0.1) is None and foreign.assignment())
    with ExitStack() as exits:
        for ours, health in zip(dynamic, healths, strict=True):
            exits.enter_context(running(ours, contracts, RecordingHandler(), health=health, max_outside_s=1.0))
        eventually(lambda: all("no place in the group" in str(health.liveness()) for health in healths))
        foreign.close()
        eventually(lambda: GroupProgress(settings, GROUP).count_members() == 4)
        well_s = time.monotonic() + 2  # longer than it takes to become unhealthy
        eventually(lambda: time.monotonic() > well_s and all(health.liveness() == {} for health in healths))


def test_an_output_that_the_brokers_find_too_large_is_a_dead_letter_and_holds_up_no_other(
    settings: Settings, contracts: Contracts
) -> None:
    """An output that is too large for its topic makes its input a dead letter, and delays no other record.

    A retry would fail forever, and so would all other outputs in its transaction.
    """
    from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType  # type: ignore[attr-defined]  # not in its __all__

    limit = ConfigEntry("max.message.bytes", "3000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(
        ResourceType.TOPIC, KafkaConfig.of(settings).topic(RESPONSES), incremental_configs=[limit]
    )
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap_servers})
    admin.incremental_alter_configs([resource])[resource].result(20)
    # The broker confirms the limit a moment before the broker applies it.
    eventually(lambda: admin.describe_configs([resource])[resource].result(20)["max.message.bytes"].value == "3000")
    produce(settings, contracts, QUERIES, *(build_query(n) for n in range(20)))

    def handle(batch: Sequence[Record]) -> list[Output]:
        (record,) = batch
        size = 20_000 if record.event.query_id in ("c3", "c7") else 10
        return [Output(topic=RESPONSES, event=build_response(record.event, secrets.token_hex(size)))]

    with running(settings, contracts, handle, topic=QUERIES, concurrency=4):
        eventually(lambda: committed(settings, QUERIES) == 20)
    found = sorted(record.event.query_id for record in records(settings, contracts, RESPONSES))
    assert found == sorted(f"c{n}" for n in range(20) if n not in (3, 7))
    letters = dead_letters(settings, contracts)
    assert sorted(contracts.decode(QUERIES, letter.value or b"").query_id for letter in letters) == ["c3", "c7"]
    assert {letter.header("__connect.errors.stage") for letter in letters} == {b"PRODUCE"}


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_member_that_joins_takes_its_share_in_both_protocols(
    settings: Settings, contracts: Contracts, protocol: str
) -> None:
    """With both values of KAFKA_GROUP_PROTOCOL, a new member gets partitions whose records are unfinished.

    No record is repeated or left out.
    """
    ours = evolve(settings, kafka_group_protocol=protocol, kafka_static_membership=False)
    first, second = RecordingHandler(), RecordingHandler()

    def slowly(recorder: RecordingHandler) -> Any:
        def handle(batch: Sequence[Record]) -> list[Output]:
            time.sleep(0.005)
            recorder(batch)
            return [Output(topic=RESPONSES, event=build_response(batch[0].event))]

        return handle

    with running(ours, contracts, slowly(first), topic=QUERIES, concurrency=4):
        produce(settings, contracts, QUERIES, *(build_query(n) for n in range(300)))
        with running(evolve(ours, instance_id="second"), contracts, slowly(second), topic=QUERIES, concurrency=4):
            numbers = iter(range(300, 100_000))
            while not second.ids:
                produce(settings, contracts, QUERIES, *(build_query(next(numbers)) for _ in range(50)))
                time.sleep(0.2)
        total = next(numbers)
        eventually(lambda: committed(settings, QUERIES) == total)
    found = [record.event.query_id for record in records(settings, contracts, RESPONSES)]
    assert sorted(found) == sorted(f"c{n}" for n in range(total))
