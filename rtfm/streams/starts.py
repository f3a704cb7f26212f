"""Where an assignment starts: the group's committed positions, compared with the log.

Owns what a missing position means, and what a position outside the log means; docs/delivery.md has the table. Promises
that an answer of the coordinator is never taken for "start from 0": the consumer is told an offset for every partition,
and resets none by itself. Commits nothing.
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
"""For all of it. A position is known when the transaction that holds it has ended: 10 s and the broker's interval."""

CONFIRMATIONS = 2
CONFIRM_PAUSE_S = 0.15
"""A coordinator that has just taken over the group is asked again, before "no position" is believed."""

LOG_END_PATIENCE_S = 3.0
"""A broker that has just become the leader may know less of the log's end than the group does."""

_log = get_logger(__name__)

ReadPositions = Callable[[list[int], float], list[TopicPartition]]
"""The group's committed positions of partitions, within seconds. Raises Unavailable."""


class Starts:
    """Finds where assignments of ``topic`` to ``group`` start. Used by one thread."""

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
        """The highest offset of each partition that this process knows to be committed."""

    def remember(self, partition: PartitionState) -> None:
        """Remember how far ``partition`` was committed when it was given up."""
        self._known[partition.number] = max(partition.committed, self._known.get(partition.number, 0))

    def find(self, consumer: Consumer, numbers: Sequence[int], read: ReadPositions) -> list[PartitionState]:
        """An assignment of each of the partitions ``numbers``, to be fetched from its ``start``.

        Raises Unavailable where that is not known, Fenced, and ConfigError for metadata of another program.
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
                "the group's position moved back; only its own tools should do that",
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
                    " records; starting from its beginning",
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
        """Where the log of a partition begins and ends, in offsets."""
        with self._kafka.translating(f"reading where the log of {self._full_topic} begins"):
            low, high = consumer.get_watermark_offsets(
                TopicPartition(self._full_topic, number), timeout=min(REQUEST_TIMEOUT_S, self._left_s(deadline_s))
            )
        if low < 0 or high < 0:
            raise Unavailable("kafka", f"where the log of {self._full_topic} [{number}] begins is not known")
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
