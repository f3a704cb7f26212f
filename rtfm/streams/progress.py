"""Progress: the committed offsets and members of a consumer group, for `import`, `status` and tests.

This module does not join the group and commits nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from rtfm.errors import Unavailable
from rtfm.settings import Settings
from rtfm.streams.connection import REQUEST_TIMEOUT_S, KafkaConfig

_RETRY_PAUSE_S = 0.3
T = TypeVar("T")


class GroupProgress:
    """The committed offsets and members of one consumer group. ``group`` and topics are named without prefix."""

    def __init__(self, settings: Settings, group: str) -> None:
        """Prepare the clients. They connect when a method is called for the first time."""
        self._kafka = KafkaConfig.of(settings)
        self._group = self._kafka.group(group)
        self._admin = AdminClient(self._kafka.client_config())
        # Offsets are read with a consumer that never joins the group. The admin client's list_consumer_group_offsets
        # crashes with a segmentation fault while the cluster creates its offsets topic (confluent-kafka 2.16.0).
        self._consumer = Consumer({**self._kafka.client_config(), "group.id": self._group})

    def committed_offsets(self, topic: str, partitions: Collection[int]) -> dict[int, int]:
        """Return, by partition number, the offset from which the group continues.

        Partitions without a committed offset are left out. Raises Unavailable if Kafka does not answer.
        """
        name = self._kafka.topic(topic)
        asked = [TopicPartition(name, number) for number in partitions]
        found = self._retry(lambda: self._consumer.committed(asked, timeout=REQUEST_TIMEOUT_S))
        return {position.partition: position.offset for position in found if position.offset >= 0}

    def count_members(self) -> int:
        """Return the number of consumers in the group, which is 0 if the group does not exist.

        Raises Unavailable if Kafka does not answer.
        """
        return self._retry(self._count_members)

    def _count_members(self) -> int:
        futures = self._admin.describe_consumer_groups([self._group], request_timeout=REQUEST_TIMEOUT_S)
        try:
            return len(futures[self._group].result(timeout=REQUEST_TIMEOUT_S * 2).members)
        except KafkaException as exc:
            if exc.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return 0
            raise

    def _retry(self, ask: Callable[[], T]) -> T:
        """Return the result of ``ask``. If Kafka is unavailable, call ``ask`` again for up to REQUEST_TIMEOUT_S.

        A coordinator that has just started may need this time.
        """
        until = time.monotonic() + REQUEST_TIMEOUT_S
        while True:
            try:
                with self._kafka.translating(f"reading the state of group {self._group}"):
                    return ask()
            except Unavailable:
                if time.monotonic() >= until:
                    raise
                time.sleep(_RETRY_PAUSE_S)
