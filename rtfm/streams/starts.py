"""Starts: finds the offset at which each assignment starts, from the group's committed position and the log.

This module decides where to start if the group has no position, or if the position is outside the log. docs/delivery.md
has a table of these cases. If the coordinator responds with an error, no start is chosen. If the coordinator responds
that there is no position, it is asked again, because without a position the whole log would be handled again. Nothing
is committed here.
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
"""Time limit for finding the starts of all partitions that are assigned together.

A position in an open transaction can be read only when the transaction has ended. If the producer of the transaction
crashed, the broker ends the transaction after up to 10 s, plus the interval at which the broker checks for expired
transactions.
"""

CONFIRMATIONS = 2
"""A position is read again up to this many times if it is missing, or lower than an offset known to be committed.

A coordinator that has just taken over a group may not know the newest position yet.
"""

CONFIRM_PAUSE_S = 0.15
"""Time before a position, or the end of the log, is read again."""

LOG_END_PATIENCE_S = 3.0
"""If the log ends before the committed position, its end is read again for this many seconds.

A new leader of the partition may not know the end of the log yet.
"""

_log = get_logger(__name__)

ReadPositions = Callable[[list[int], float], list[TopicPartition]]
"""A function that returns the group's committed positions of some partitions.

Its arguments are the numbers of the partitions and a time limit in seconds. It raises Unavailable, Fenced.
"""


class Starts:
    """The search for the offsets at which assignments of ``topic`` in ``group`` start. Only one thread may use it."""

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
        """By partition number, the highest offset that this process knows to be committed."""

    def remember(self, partition: PartitionState) -> None:
        """Remember the committed offset of ``partition``, whose assignment has ended."""
        self._known[partition.number] = max(partition.committed, self._known.get(partition.number, 0))

    def find(self, consumer: Consumer, numbers: Sequence[int], read: ReadPositions) -> list[PartitionState]:
        """Return a new state for each of the partitions ``numbers``, with the ``start`` of its assignment.

        Raises Unavailable if a position or the range of a log cannot be read, Fenced if ``read`` raises it, and
        ConfigError if the metadata of a position was written by another program.
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
                "the group's position moved back, which only an operator should do with Kafka's tools",
                group=self._group,
                partition=number,
                committed=position.offset,
                known=self._known.pop(number),
            )
        patient_until_s = min(deadline_s, self._clock() + LOG_END_PATIENCE_S)
        while high < position.offset:
            if self._clock() >= patient_until_s:
                _log.error(
                    "the log ends before the committed position, because the topic was created again or its brokers"
                    " lost records; starting at the beginning of the log",
                    group=self._group,
                    partition=number,
                    committed=position.offset,
                    log_end=high,
                )
                return PartitionState.from_offset(number, low, stored=partition.stored)
            self._sleep(CONFIRM_PAUSE_S)
            low, high = self._log_range(consumer, number, deadline_s)
        self._report_lost(
            number, partition.count_unfinished_below(low), "the group's position is below the beginning of the log"
        )
        partition.start = max(partition.start, low)
        return partition

    def _log_range(self, consumer: Consumer, number: int, deadline_s: float) -> tuple[int, int]:
        """Return the first offset of a partition's log, and the offset after the last one."""
        with self._kafka.translating(f"reading the first and last offsets of {self._full_topic}"):
            low, high = consumer.get_watermark_offsets(
                TopicPartition(self._full_topic, number), timeout=min(REQUEST_TIMEOUT_S, self._left_s(deadline_s))
            )
        if low < 0 or high < 0:
            raise Unavailable(
                "kafka", f"the first and last offsets of {self._full_topic}, partition {number}, are unknown"
            )
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
