"""Starts: finds the offset at which each assignment starts, from the group's committed position and the log.

Decides what a missing position means, and a position outside the log; docs/delivery.md has the table. Promises that a
coordinator's answer is never mistaken for "start from 0": the consumer is told an offset for every partition, and
resets none by itself. Does not commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from confluent_kafka import Consumer, TopicPartition

from rtfm.errors import Unavailable
from rtfm.streams.connection import REQUEST_TIMEOUT_S, KafkaConfig
from rtfm.streams.position import PartitionState
from rtfm.telemetry import LOST_RECORDS, get_logger

ASSIGN_TIMEOUT_S = 25.0
"""Time limit for all partitions of an assignment.

A position in an open transaction is known only when the transaction has ended, which takes up to 10 s and the broker's
interval for looking after expired ones.
"""

CONFIRMATIONS = 2
"""How often a missing or older position is read again: a coordinator that has just taken over may not know it yet."""

CONFIRM_PAUSE_S = 0.15

LOG_END_PATIENCE_S = 3.0
"""How long the log may end before the committed position: a new leader may not know the log's end yet."""

_log = get_logger(__name__)

ReadPositions = Callable[[list[int], float], list[TopicPartition]]
"""Reads the group's committed positions of partitions within a number of seconds. Raises Unavailable, Fenced."""


class Starts:
    """Finds the offsets at which assignments of ``topic`` to ``group`` start. Used by one thread."""

    def __init__(
        self,
        kafka: KafkaConfig,
        *,
        topic: str,
        group: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._kafka = kafka
        self._topic = topic
        self._full_topic = self._kafka.topic(topic)
        self._group = group
        self._clock = clock
        self._sleep = sleep
        self._known: dict[int, int] = {}
        """The highest committed offset of each partition that this process knows of."""

    def remember(self, partition: PartitionState) -> None:
        """Remember the committed offset of ``partition`` at the end of its assignment."""
        self._known[partition.number] = max(partition.committed, self._known.get(partition.number, 0))

    def find(self, consumer: Consumer, numbers: Sequence[int], read: ReadPositions) -> list[PartitionState]:
        """Return a new assignment of each of the partitions ``numbers``, to be fetched from its ``start``.

        Raises Unavailable if a position cannot be read, Fenced, and ConfigError for metadata of another program.
        """
        deadline_s = self._clock() + ASSIGN_TIMEOUT_S
        positions = {position.partition: position for position in read(list(numbers), ASSIGN_TIMEOUT_S)}
        for _ in range(CONFIRMATIONS):
            doubtful = [n for n, position in positions.items() if position.offset < max(0, self._known.get(n, 0))]
            if not doubtful:
                break
            self._sleep(CONFIRM_PAUSE_S)
            positions |= {position.partition: position for position in read(doubtful, self._left_s(deadline_s))}
        return [self._find_start(consumer, position, deadline_s) for position in positions.values()]

    def _find_start(self, consumer: Consumer, position: TopicPartition, deadline_s: float) -> PartitionState:
        number = position.partition
        low, high = self._log_range(consumer, number, deadline_s)
        if position.offset < 0:
            self._report_lost(number, low, "the group has no position")
            return PartitionState.from_offset(number, low)
        partition = PartitionState.from_position(number, position.offset, position.metadata or "")
        if position.offset < self._known.get(number, 0):
            _log.error(
                "the group's position moved back; only Kafka's own tools should do that",
                group=self._group,
                partition=number,
                committed=position.offset,
                known=self._known.pop(number),
            )
        patient_until_s = min(deadline_s, self._clock() + LOG_END_PATIENCE_S)
        while high < position.offset:
            if self._clock() >= patient_until_s:
                _log.error(
                    "the log ends before the committed position: the topic was created again, or its brokers lost"
                    " records; starting at the beginning of the log",
                    group=self._group,
                    partition=number,
                    committed=position.offset,
                    log_end=high,
                )
                return PartitionState.from_offset(number, low, stored=partition.stored)
            self._sleep(CONFIRM_PAUSE_S)
            low, high = self._log_range(consumer, number, deadline_s)
        self._report_lost(number, partition.count_unfinished_below(low), "the group's position is older than the log")
        partition.start = max(partition.start, low)
        return partition

    def _log_range(self, consumer: Consumer, number: int, deadline_s: float) -> tuple[int, int]:
        """Return the first offset of a partition's log and the one after its last."""
        with self._kafka.translating(f"reading the offsets of {self._full_topic}"):
            low, high = consumer.get_watermark_offsets(
                TopicPartition(self._full_topic, number), timeout=min(REQUEST_TIMEOUT_S, self._left_s(deadline_s))
            )
        if low < 0 or high < 0:
            raise Unavailable("kafka", f"the first and last offset of {self._full_topic} [{number}] are unknown")
        return low, high

    def _report_lost(self, number: int, records: int, reason: str) -> None:
        if not records:
            return
        LOST_RECORDS.labels(self._topic, self._group).inc(records)
        _log.error(
            "retention removed records before they were read",
            group=self._group,
            partition=number,
            records=records,
            reason=reason,
        )

    def _left_s(self, deadline_s: float) -> float:
        return max(0.1, deadline_s - self._clock())
