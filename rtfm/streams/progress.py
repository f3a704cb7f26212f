"""How far a consumer group has come: what `import` waits for and `status` shows.

Reads the group's committed offsets; joins nothing and commits nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from types import TracebackType
from typing import Any

from rtfm.errors import Unavailable
from rtfm.settings import Settings

REQUEST_TIMEOUT_S = 5.0


class GroupProgress:
    """Committed offsets and members of one consumer group. ``group`` and topics are given without prefix."""

    def __init__(self, settings: Settings, group: str) -> None:
        """Prepare; the first use connects."""
        from confluent_kafka.admin import AdminClient

        self._prefix = settings.kafka_topic_prefix
        self._group = f"{self._prefix}{group}"
        self._brokers = settings.kafka_bootstrap_servers
        self._admin: Any = AdminClient(
            {
                "bootstrap.servers": settings.kafka_bootstrap_servers,
                "socket.timeout.ms": int(REQUEST_TIMEOUT_S * 1000),
                "log_level": 0,
            }
        )

    def committed(self, topic: str, partitions: Collection[int]) -> dict[int, int]:
        """The committed offset of each partition that has one: the offset that is read next.

        Raises Unavailable when Kafka does not answer.
        """
        from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition

        name = f"{self._prefix}{topic}"
        asked = ConsumerGroupTopicPartitions(self._group, [TopicPartition(name, number) for number in partitions])
        try:
            futures = self._admin.list_consumer_group_offsets([asked], request_timeout=REQUEST_TIMEOUT_S)
            found = futures[self._group].result(timeout=REQUEST_TIMEOUT_S * 2)
        except (KafkaException, TimeoutError) as exc:
            raise self._unavailable(exc) from exc
        return {part.partition: part.offset for part in found.topic_partitions if part.offset >= 0}

    def members(self) -> int:
        """How many consumers the group has; 0 for a group that never was.

        Raises Unavailable when Kafka does not answer.
        """
        from confluent_kafka import KafkaError, KafkaException

        try:
            futures = self._admin.describe_consumer_groups([self._group], request_timeout=REQUEST_TIMEOUT_S)
            return len(futures[self._group].result(timeout=REQUEST_TIMEOUT_S * 2).members)
        except KafkaException as exc:
            if exc.args and exc.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return 0
            raise self._unavailable(exc) from exc
        except TimeoutError as exc:
            raise self._unavailable(exc) from exc

    def close(self) -> None:
        """Let go of the connection."""
        self._admin = None

    def __enter__(self) -> GroupProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _unavailable(self, exc: Exception) -> Unavailable:
        return Unavailable(
            "Kafka",
            f"Kafka at {self._brokers} does not tell where group {self._group} is: {exc}",
            hint="Start it with `rtfm-cli local up`, or set KAFKA_BOOTSTRAP_SERVERS.",
        )
