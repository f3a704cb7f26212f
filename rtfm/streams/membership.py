"""Membership: the consumer of one instance in its group, and where each partition that it has stands.

Owns joining, leaving and the callbacks between them, and pausing. Promises that a record is given once per assignment,
and only if it is still to be done. Does not handle, and commits nothing itself: its listener does.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from rtfm.errors import ConfigError, RtfmError, TransientError, Unavailable
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.consumer import RawRecord
from rtfm.streams.handling import WaitingState
from rtfm.streams.position import PartitionState
from rtfm.streams.starts import Starts
from rtfm.streams.transactions import Fenced, is_member, member_id
from rtfm.telemetry import LAG, PAUSES, REBALANCES, get_logger

REJOIN_PAUSE_S = 1.0
WATERMARK_TIMEOUT_S = 2.0
TOPIC_PATIENCE_S = 10.0
"""A broker that has just started may not know a topic yet."""

STATISTICS_MS = 3000

_MISSING = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)
_TAKEN_OVER = (KafkaError.FENCED_INSTANCE_ID, KafkaError.UNRELEASED_INSTANCE_ID)

_log = get_logger(__name__)

_client_log = logging.getLogger("rtfm.streams.librdkafka")
# Its warnings about offsets and polling are what explains a wrong position. Its lines about connections repeat for as
# long as a broker is away, which ``waiting`` says once.
_client_log.addFilter(lambda line: line.getMessage().startswith(("OFFSET", "MAXPOLL", "COMMITFAIL")))


class RebalanceListener(Protocol):
    """What a member asks and tells while partitions move. Called by the thread that polls, mostly within a poll.

    An error that a method raises comes out of ``take`` or ``leave``.
    """

    def read_positions(self, consumer: Consumer, numbers: list[int], timeout_s: float) -> list[TopicPartition]:
        """The group's committed offsets and metadata of partitions ``numbers``. Raises Unavailable, Fenced."""

    def on_assign(self, partition: PartitionState) -> None:
        """``partition`` is new here; its records come after this."""

    def before_revoke(self) -> None:
        """Partitions are about to be given up: the last moment at which what is finished of them can be committed."""

    def on_drop(self) -> None:
        """Partitions are gone, by their own will or not; they are no longer ``live``."""

    def on_end_of_log(self, partition: PartitionState) -> None:
        """The log ends behind the last record that was polled of ``partition``."""

    def confirm_name(self) -> None:
        """Raises Fenced where another process has this one's name."""


class Membership:
    """One consumer of ``topic`` in ``group``. Used by one thread."""

    def __init__(
        self,
        kafka: KafkaConfig,
        *,
        topic: str,
        group: str,
        waiting: WaitingState,
        listener: RebalanceListener,
        connect: Callable[[dict[str, Any]], Consumer] = Consumer,
    ) -> None:
        self._kafka = kafka
        self._topic = topic
        self._full_topic = self._kafka.topic(topic)
        self._group = group
        self._waiting = waiting
        self._listener = listener
        self._connect = connect
        self._starts = Starts(kafka, topic=topic, group=group)
        self._partitions: dict[int, PartitionState] = {}
        self._just_assigned: dict[int, int] = {}
        """Partitions that were assigned since the last record was polled, and the offsets they are fetched from."""
        self._failure: BaseException | None = None
        self._missing_since_s: float | None = None
        self._leaving = False
        self._consumer: Consumer | None = None

    @property
    def partitions(self) -> Sequence[PartitionState]:
        """What is assigned."""
        return list(self._partitions.values())

    @property
    def has_joined(self) -> bool:
        """Whether the group has a place for this one, be it with no partition."""
        return self._consumer is not None and is_member(self._consumer.consumer_group_metadata())

    @property
    def consumer(self) -> Consumer:
        """The consumer, between ``open`` and ``leave``."""
        if self._consumer is None:
            raise RtfmError(f"{self._group}: not connected")
        return self._consumer

    def open(self) -> None:
        """Connect. Raises ConfigError where the topic does not exist, Unavailable without an answer."""
        self._consumer = self._connect(self._config())
        try:
            self._require_topic()
        except RtfmError:
            self._consumer.close()
            self._consumer = None
            raise
        self._subscribe()

    def poll(self, wait_s: float, limit: int) -> list[tuple[PartitionState, RawRecord]]:
        """Up to ``limit`` records that are to be done; waits up to ``wait_s`` for the first.

        Raises what went wrong in a callback, ConfigError where the topic is gone, Fenced where another process has
        this one's name, RtfmError for records out of order.
        """
        try:
            return self._poll(wait_s, limit)
        except TransientError as exc:  # of a callback, too
            self.rejoin(exc)
            return []

    def _poll(self, wait_s: float, limit: int) -> list[tuple[PartitionState, RawRecord]]:
        # consume(n, t) waits for all of t unless n records come; a poll for the first does not.
        records: list[RawRecord] = []
        if (first := self.consumer.poll(wait_s)) is not None:
            self._just_assigned.clear()
            records = cast("list[RawRecord]", [first, *self.consumer.consume(limit - 1, 0)])
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if self._has_been_readmitted():
            _log.warning("removed by the group and let in again, rejoining", group=self._group)
            raise Unavailable("kafka", f"the group removed {self._kafka.instance_id} and let it in again")
        if self._just_assigned and records:
            try:
                records = self._rewind_just_assigned(records)
            except KafkaException as exc:
                raise self._kafka.unreachable_error(f"reading {self._full_topic}: {exc.args[0].str()}") from exc
        polled = []
        for record in records:
            partition = self._partitions.get(record.partition())
            if (error := record.error()) is None:
                if partition is not None and not self._leaving and partition.admit(record.offset()):
                    polled.append((partition, record))
            elif error.code() != KafkaError._PARTITION_EOF:
                self._handle_read_error(error, record.partition())
            elif partition is not None and partition.extend_to(record.offset()):
                # Markers of transactions stand behind the log's last record, and would count as lag.
                self._listener.on_end_of_log(partition)
        self._watch_topic(bool(polled))
        return polled

    def _rewind_just_assigned(self, records: list[RawRecord]) -> list[RawRecord]:
        """``records`` without those of partitions that were assigned while they were polled; these are read again.

        A callback runs in the middle of a batch, and nothing tells the records before it from those behind it. One
        from before the assignment would change which records count as finished.
        """
        fresh = dict(self._just_assigned)
        for number, offset in fresh.items():
            self.consumer.seek(TopicPartition(self._full_topic, number, offset))
        return [record for record in records if record.partition() not in fresh]

    def pause(self, partitions: Iterable[PartitionState]) -> None:
        """Take nothing of ``partitions``. What was fetched of them is dropped, so it costs up to a second to resume."""
        fresh = [partition for partition in partitions if not partition.is_paused]
        if fresh:
            self.consumer.pause([TopicPartition(self._full_topic, partition.number) for partition in fresh])
            PAUSES.labels(self._group).inc(len(fresh))
        for partition in fresh:
            partition.is_paused = True

    def resume(self, partitions: Iterable[PartitionState]) -> None:
        """Take of ``partitions`` again."""
        paused = [partition for partition in partitions if partition.is_paused]
        if paused and not self._leaving:
            self.consumer.resume([TopicPartition(self._full_topic, partition.number) for partition in paused])
            for partition in paused:
                partition.is_paused = False

    def wind_down(self) -> None:
        """Take nothing more, whatever is still assigned; stay in the group."""
        self._leaving = True
        if self._consumer is not None:
            self.pause(self.partitions)

    def leave(self) -> None:
        """Leave the group; the listener may commit before that. Raises what went wrong in a callback."""
        self._leaving = True
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
        self._remove_partitions(list(self._partitions))
        failure, self._failure = self._failure, None
        if failure is not None and not isinstance(failure, TransientError):
            raise failure

    def report_lag(self) -> None:
        """Set the lag of each partition: what the log has beyond what the group has committed."""
        for partition in self._partitions.values():
            try:
                # Of a paused partition nothing is fetched, which is what the cached answer comes from.
                low, high = self.consumer.get_watermark_offsets(
                    TopicPartition(self._full_topic, partition.number),
                    timeout=WATERMARK_TIMEOUT_S,
                    cached=not partition.is_paused,
                )
            except KafkaException:
                continue
            if high >= 0:
                lag = LAG.labels(self._kafka.group(self._group), self._full_topic, partition.number)
                lag.set(max(0, high - max(partition.committed, low)))

    def _on_statistics(self, text: str) -> None:
        # The one thing that tells an idle consumer that no broker answers. A broker that has just been heard of is
        # among them as well.
        states = {broker["state"] for broker in json.loads(text)["brokers"].values()}
        if states and "UP" not in states:
            self._waiting.note("brokers", self._kafka.unreachable_error(f"reading {self._full_topic}"))
        else:
            self._waiting.clear("brokers")

    # Joining

    def _config(self) -> dict[str, Any]:
        return {
            **self._kafka.member_config(self._group),
            "enable.auto.offset.store": False,
            # The consumer must never go anywhere by itself: ``Starts`` decides, from what the group has committed.
            "auto.offset.reset": "error",
            "queued.max.messages.kbytes": 16_384,
            "statistics.interval.ms": STATISTICS_MS,
            "stats_cb": self._on_statistics,
            "log_level": 4,  # warnings; served by poll()
            "logger": _client_log,
        }

    def _subscribe(self) -> None:
        self.consumer.subscribe(
            [self._full_topic],
            on_assign=self._wrap_callback(self._on_assign),
            on_revoke=self._wrap_callback(self._on_revoke),
            on_lost=self._wrap_callback(self._on_lost),
        )

    def _has_been_readmitted(self) -> bool:
        """Whether the group removed this member and let it in again while it had partitions.

        Others may have had those meanwhile. librdkafka says that they are lost, except where the group's answer comes
        to a static member's request to join: then they stay assigned, also at the next generation.
        """
        member = self.consumer.consumer_group_metadata()
        return is_member(member) and any(
            partition.member_id != member_id(member) for partition in self._partitions.values()
        )

    def rejoin(self, error: TransientError) -> None:
        """Leave and come back: where a partition stands is not known, so it must not be worked on.

        What is finished and not committed is handled again. Not to be called from within a callback.

        Raises Fenced where another process was found to have this one's name.
        """
        self._waiting.note(self, error)
        self._remove_partitions(list(self._partitions))
        self.consumer.close()
        failure, self._failure = self._failure, None
        if isinstance(failure, Fenced):
            self._consumer = None
            raise failure
        time.sleep(REJOIN_PAUSE_S)
        self._consumer = self._connect(self._config())
        self._subscribe()

    # Callbacks run inside poll() and close(); an exception would come out of those as a SystemError.

    def _wrap_callback(
        self, callback: Callable[[Consumer, Sequence[TopicPartition]], None]
    ) -> Callable[[Consumer, list[TopicPartition]], None]:
        def call(consumer: Consumer, topic_partitions: list[TopicPartition]) -> None:
            try:
                callback(consumer, topic_partitions)
            except BaseException as exc:
                self._failure = self._failure or exc

        return call

    def _on_assign(self, consumer: Consumer, topic_partitions: Sequence[TopicPartition]) -> None:
        if not topic_partitions:  # a generation in which nothing changes for this member
            return
        numbers = [item.partition for item in topic_partitions]
        self._remove_partitions(numbers)  # two states of one partition would both be committed
        member = member_id(consumer.consumer_group_metadata())  # before the positions: another may commit from then on
        partitions = self._starts.find(consumer, numbers, partial(self._listener.read_positions, consumer))
        # All of what is unfinished must be known before the first record: the next commit would erase the map.
        for partition in partitions:
            partition.member_id = member
        self._partitions |= {partition.number: partition for partition in partitions}
        for partition in partitions:
            self._listener.on_assign(partition)
        starts = {partition.number: partition.start for partition in partitions}
        self._just_assigned |= starts
        fetched = [TopicPartition(self._full_topic, number, offset) for number, offset in starts.items()]
        consumer.incremental_assign(fetched)
        if self._leaving:
            self.pause(partitions)
        else:
            # What the last assignment paused is paused still.
            consumer.resume(fetched)
        REBALANCES.labels(self._group, "assigned").inc()
        _log.info("assigned", group=self._group, partitions=sorted(self._partitions), starts=starts)
        self._waiting.clear(self)

    def _on_revoke(self, consumer: Consumer, topic_partitions: Sequence[TopicPartition]) -> None:
        started_s = time.monotonic()
        try:
            self._listener.before_revoke()
        finally:
            self._unassign(consumer, topic_partitions, "revoked", time.monotonic() - started_s)

    def _on_lost(self, consumer: Consumer, topic_partitions: Sequence[TopicPartition]) -> None:
        # Somebody else may work on them already: nothing of them may be committed.
        self._unassign(consumer, topic_partitions, "lost", 0.0)

    def _unassign(
        self, consumer: Consumer, topic_partitions: Sequence[TopicPartition], kind: str, elapsed_s: float
    ) -> None:
        numbers = [item.partition for item in topic_partitions]
        self._remove_partitions(numbers)
        consumer.incremental_unassign(list(topic_partitions))
        REBALANCES.labels(self._group, kind).inc()
        _log.info(kind, group=self._group, partitions=sorted(numbers), elapsed_ms=round(elapsed_s * 1000))

    def _remove_partitions(self, numbers: list[int]) -> None:
        for number in numbers:
            self._just_assigned.pop(number, None)
            if (partition := self._partitions.pop(number, None)) is not None:
                partition.is_assigned = False
                self._starts.remember(partition)
                LAG.remove(self._kafka.group(self._group), self._full_topic, str(number))
        self._listener.on_drop()

    # What the consumer reports beside records

    def _handle_read_error(self, error: KafkaError, partition: int) -> None:
        """Raises TransientError where only joining again helps."""
        if any(error.code() == code or KafkaError(code).str() in error.str() for code in _TAKEN_OVER):
            # It comes as itself or within a fatal one. A broker that stalled, or takes over a group, may fence a static
            # member by its own older request (KAFKA-20985): unless another process has the name, the place is ours.
            self._listener.confirm_name()
            _log.warning("fenced by the coordinator, rejoining", group=self._group)
            raise Unavailable("kafka", f"the group took {self._kafka.instance_id} for gone: {error.str()}")
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            # The position is outside the log: where to go on is decided by what the group has committed.
            raise Unavailable("kafka", f"{self._full_topic} [{partition}]: {error.str()}")
        if error.fatal() or error.code() == KafkaError._FATAL:
            raise self._kafka.translate_error(error, f"reading {self._full_topic}")
        if error.code() in _MISSING and self._missing_since_s is None:
            self._missing_since_s = time.monotonic()
        _log.warning("kafka", group=self._group, error=error.str())

    def _watch_topic(self, found: bool) -> None:
        if found:
            self._missing_since_s = None
        elif self._missing_since_s is not None and time.monotonic() - self._missing_since_s >= TOPIC_PATIENCE_S:
            self._missing_since_s = None
            try:
                self._require_topic()
            except TransientError as exc:
                _log.warning("kafka", group=self._group, error=str(exc))
                self._missing_since_s = time.monotonic()

    def _require_topic(self) -> None:
        if not self._kafka.list_partitions(self.consumer, self._full_topic):
            raise ConfigError(f"reading {self._full_topic}: the topic has no partitions")
