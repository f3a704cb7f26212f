"""Topics: compares the catalogue with the cluster, and creates, extends and configures topics to match.

All changes are planned before the first one is made. Partitions are added but never removed.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from contextlib import closing
from typing import Any

from attrs import frozen
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # not all of them are in its __all__
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from rtfm.contracts.catalogue import Catalogue, Topic
from rtfm.errors import ConfigError, Unavailable
from rtfm.settings import Settings
from rtfm.streams.connection import REQUEST_TIMEOUT_S, KafkaConfig
from rtfm.streams.progress import GroupProgress

MAX_COUNTED_OFFSETS = 20_000
"""The records of a topic are counted only if it has at most this many offsets. Counting then reads about 20 MB."""

COUNT_TIMEOUT_S = 5.0
"""Time limit for counting the records of a topic."""


@frozen(kw_only=True)
class Step:
    """One change to one topic. ``action`` is ``create``, ``add partitions``, ``configure``, or ``none``."""

    topic: str
    action: str
    detail: str
    partitions: int = 0
    config: dict[str, str] | None = None


@frozen(kw_only=True)
class TopicState:
    """A topic as it exists on the cluster.

    ``offsets`` is the number of offsets in the topic's logs, including those of transaction markers and aborted
    records. ``lag`` is the lag of the group that the catalogue names for the topic, by the group's name. If the
    catalogue names none, ``lag`` is empty.
    """

    topic: str
    partitions: int
    config: dict[str, str]
    offsets: int
    lag: dict[str, int]


class TopicAdmin:
    """The administration of the topics in the catalogue on one cluster."""

    def __init__(self, settings: Settings, catalogue: Catalogue) -> None:
        self._settings = settings
        self._kafka = KafkaConfig.of(settings)
        self._catalogue = catalogue
        self._client = AdminClient(self._kafka.client_config())

    def plan(self) -> list[Step]:
        """Return the steps that `topics init` would take. A topic that needs no change has one step ``none``.

        Raises Unavailable if Kafka does not answer.
        """
        partitions = self._count_partitions()
        existing = [topic for topic in self._catalogue.topics.values() if topic.name in partitions]
        configs = self._read_configs(existing)
        return [
            step
            for topic in self._catalogue.topics.values()
            for step in self._plan_topic(topic, partitions.get(topic.name), configs.get(topic.name, {}))
        ]

    def apply(self, plan: list[Step]) -> int:
        """Take the steps of ``plan`` and return the number of changes.

        Raises ConfigError if the cluster refuses a change, Unavailable if Kafka does not answer.
        """
        changes = [step for step in plan if step.action != "none"]
        for step in changes:
            name = self._kafka.topic(step.topic)
            match step.action:
                case "create":
                    replicas = self._settings.kafka_replication_factor
                    new = NewTopic(name, step.partitions, replicas, config=step.config or {})
                    self._wait_for(self._client.create_topics([new])[name], f"creating {name}", allow_existing=True)
                case "add partitions":
                    more = self._client.create_partitions([NewPartitions(name, step.partitions)])
                    self._wait_for(more[name], f"adding partitions to {name}")
                case "configure":
                    entries = [
                        ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
                        for key, value in (step.config or {}).items()
                    ]
                    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
                    (future,) = self._client.incremental_alter_configs([resource]).values()
                    self._wait_for(future, f"configuring {name}")
        return len(changes)

    def states(self) -> list[TopicState]:
        """Return the states of those topics in the catalogue that exist on the cluster."""
        partitions = self._count_partitions()
        topics = [topic for topic in self._catalogue.topics.values() if topic.name in partitions]
        configs = self._read_configs(topics)
        consumer = Consumer({**self._kafka.client_config(), "group.id": "rtfm-offsets"})
        with closing(consumer), self._kafka.translating("reading offsets"):
            return [self._read_state(consumer, topic, partitions[topic.name], configs[topic.name]) for topic in topics]

    def count_records(self, state: TopicState) -> int | None:
        """Return the number of committed records in a topic. All are read, because Kafka does not count records.

        Return None if the topic has more than MAX_COUNTED_OFFSETS offsets, or if reading takes longer than
        COUNT_TIMEOUT_S. Raises Unavailable if Kafka does not answer.
        """
        if state.offsets == 0:
            return 0
        if state.offsets > MAX_COUNTED_OFFSETS:
            return None
        name = self._kafka.topic(state.topic)
        consumer = Consumer(
            {
                **self._kafka.consumer_config("rtfm-offsets"),
                # At the end of a log, the broker waits this long for further records before it responds. The default
                # is half a second.
                "fetch.wait.max.ms": 10,
            }
        )
        with closing(consumer), self._kafka.translating(f"reading {name}"):
            positions = [TopicPartition(name, number) for number in range(state.partitions)]
            for position in positions:  # With OFFSET_BEGINNING, librdkafka would take half a second longer.
                position.offset, _ = consumer.get_watermark_offsets(position, timeout=REQUEST_TIMEOUT_S)
            consumer.assign(positions)
            return self._count_to_end(consumer, state.partitions)

    def _count_to_end(self, consumer: Consumer, partitions: int) -> int | None:
        count = 0
        ended: set[int | None] = set()
        until_s = time.monotonic() + COUNT_TIMEOUT_S
        while len(ended) < partitions:
            if time.monotonic() > until_s:
                return None
            for record in consumer.consume(1_000, timeout=0.05):
                if (error := record.error()) is None:
                    count += 1
                elif error.code() == KafkaError._PARTITION_EOF:
                    ended.add(record.partition())
                else:
                    raise KafkaException(error)
        return count

    def delete(self) -> None:
        """Delete every topic of the catalogue under the topic prefix. Raises ConfigError if no prefix is set."""
        if not self._settings.kafka_topic_prefix:
            raise ConfigError("topics are deleted only if they have a prefix", hint="set KAFKA_TOPIC_PREFIX")
        names = [self._kafka.topic(name) for name in self._count_partitions()]
        if names:
            for future in self._client.delete_topics(names).values():
                self._wait_for(future, "deleting topics")

    def _read_state(self, consumer: Consumer, topic: Topic, partitions: int, config: dict[str, str]) -> TopicState:
        name = self._kafka.topic(topic.name)
        marks = [
            consumer.get_watermark_offsets(TopicPartition(name, number), timeout=REQUEST_TIMEOUT_S)
            for number in range(partitions)
        ]
        lag = {}
        if topic.group is not None:
            committed = GroupProgress(self._settings, topic.group).committed_offsets(topic.name, range(partitions))
            lag[topic.group] = sum(
                max(0, high - max(low, committed.get(number, low))) for number, (low, high) in enumerate(marks)
            )
        return TopicState(
            topic=topic.name,
            partitions=partitions,
            config={
                key: config.get(key, "") for key in _expected_config(topic, self._settings.kafka_replication_factor)
            },
            offsets=sum(high - low for low, high in marks),
            lag=lag,
        )

    def _count_partitions(self) -> dict[str, int]:
        with self._kafka.translating("listing topics"):
            metadata = self._client.list_topics(timeout=REQUEST_TIMEOUT_S)
        found = {name: metadata.topics.get(self._kafka.topic(name)) for name in self._catalogue.topics}
        return {name: len(topic.partitions) for name, topic in found.items() if topic and topic.error is None}

    def _read_configs(self, topics: list[Topic]) -> dict[str, dict[str, str]]:
        if not topics:
            return {}
        by_resource = {
            ConfigResource(ResourceType.TOPIC, self._kafka.topic(topic.name)): topic.name for topic in topics
        }
        futures = self._client.describe_configs(list(by_resource), request_timeout=REQUEST_TIMEOUT_S)
        return {
            by_resource[resource]: {
                key: entry.value for key, entry in self._wait_for(future, "reading topic settings").items()
            }
            for resource, future in futures.items()
        }

    def _plan_topic(self, topic: Topic, partitions: int | None, config: dict[str, str]) -> list[Step]:
        expected = _expected_config(topic, self._settings.kafka_replication_factor)
        if partitions is None:
            detail = f"{topic.partitions} partitions, kept for {topic.retention_h} h"
            return [
                Step(topic=topic.name, action="create", detail=detail, partitions=topic.partitions, config=expected)
            ]
        steps = []
        if partitions < topic.partitions:
            detail = f"{partitions} to {topic.partitions} partitions"
            steps.append(Step(topic=topic.name, action="add partitions", detail=detail, partitions=topic.partitions))
        drift = {key: value for key, value in expected.items() if config.get(key) != value}
        if drift:
            detail = ", ".join(f"{key} {config.get(key)} to {value}" for key, value in drift.items())
            steps.append(Step(topic=topic.name, action="configure", detail=detail, config=drift))
        more = (
            f"{partitions} partitions, more than the {topic.partitions} of the catalogue; partitions are never removed"
        )
        return steps or [
            Step(topic=topic.name, action="none", detail=more if partitions > topic.partitions else "up to date")
        ]

    def _wait_for(self, future: Future[Any], what: str, *, allow_existing: bool = False) -> Any:
        with self._kafka.translating(what):
            try:
                return future.result(timeout=REQUEST_TIMEOUT_S * 2)
            except KafkaException as exc:
                code = exc.args[0].code()
                if allow_existing and code == KafkaError.TOPIC_ALREADY_EXISTS:
                    return None
                if code == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    # The topic existed when the plan was made, so somebody is deleting it.
                    raise Unavailable("kafka", f"{what}: a topic is being deleted", hint="try again") from exc
                raise


def _expected_config(topic: Topic, replicas: int) -> dict[str, str]:
    return {
        "retention.ms": str(topic.retention_h * 3_600_000),
        "cleanup.policy": "delete",
        # With three replicas, producers can write while one broker is down, and each acknowledged record is on at least
        # two brokers.
        "min.insync.replicas": str(max(1, replicas - 1)),
        # With this setting, retention counts from the time when a record is written to the log. Without it, retention
        # would remove a record at once if its producer gives it the time of an old message.
        "message.timestamp.type": "LogAppendTime",
        # A dead letter has more headers than its original, so it may be larger than the default limit.
        **({"max.message.bytes": "2097152"} if topic.schema is None else {}),
    }
