"""How far a consumer group has come: what `import` waits for and `status` shows.

Reads the group's committed offsets; joins nothing and commits nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from rtfm.settings import Settings
from rtfm.streams.connection import (
    REQUEST_TIMEOUT_S,
    client_config,
    group_name,
    topic_name,
    translated,
    unreachable,
)


class GroupProgress:
    """Committed offsets and members of one consumer group. ``group`` and topics are given without prefix."""

    def __init__(self, settings: Settings, group: str) -> None:
        """Prepare; the first use connects."""
        self._settings = settings
        self._group = group_name(settings, group)
        self._admin: Any = AdminClient(client_config(settings))

    def committed(self, topic: str, partitions: Collection[int]) -> dict[int, int]:
        """The committed offset of each partition that has one: the offset that is read next.

        Raises Unavailable when Kafka does not answer.
        """
        name = topic_name(self._settings, topic)
        asked = ConsumerGroupTopicPartitions(self._group, [TopicPartition(name, number) for number in partitions])
        futures = self._admin.list_consumer_group_offsets([asked], request_timeout=REQUEST_TIMEOUT_S)
        found = self._result(futures[self._group])
        return {part.partition: part.offset for part in found.topic_partitions if part.offset >= 0}

    def members(self) -> int:
        """How many consumers the group has; 0 for a group that never was.

        Raises Unavailable when Kafka does not answer.
        """
        futures = self._admin.describe_consumer_groups([self._group], request_timeout=REQUEST_TIMEOUT_S)
        try:
            return len(self._result(futures[self._group]).members)
        except LookupError:
            return 0

    def _result(self, future: Any) -> Any:
        what = f"asking where group {self._group} is"
        try:
            return future.result(timeout=REQUEST_TIMEOUT_S * 2)
        except KafkaException as exc:
            if exc.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                raise LookupError(self._group) from exc
            raise translated(exc, self._settings, what) from exc
        except TimeoutError as exc:
            raise unreachable(self._settings, what) from exc
