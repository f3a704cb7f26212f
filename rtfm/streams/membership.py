"""Membership: the consumer of one instance in its group, and the state of each assigned partition.

This module owns joining, leaving, rebalances, polling and pausing. During an assignment, polling returns each
unfinished record once and returns no finished record. This module does not handle records, and lets a listener commit.
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
"""Time between leaving the group and joining it again."""

WATERMARK_TIMEOUT_S = 2.0
"""Time limit for reading the beginning and the end of a partition's log, from which the lag is computed."""

TOPIC_PATIENCE_S = 10.0
"""How long brokers may report that the topic is unknown before this module checks whether it was deleted.

A broker that has just started may not know the topic yet.
"""

STATISTICS_MS = 3000
"""Interval at which the consumer checks whether any broker answers."""

_MISSING = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)
_TAKEN_OVER = (KafkaError.FENCED_INSTANCE_ID, KafkaError.UNRELEASED_INSTANCE_ID)

_log = get_logger(__name__)

_client_log = logging.getLogger("rtfm.streams.librdkafka")
# librdkafka's warnings about offsets and polling are logged, because they explain a wrong position. librdkafka's lines
# about connections are not logged, because they repeat while a broker is away. The log event ``waiting`` says once that
# no broker answers.
_client_log.addFilter(lambda line: line.getMessage().startswith(("OFFSET", "MAXPOLL", "COMMITFAIL")))


class RebalanceListener(Protocol):
    """The methods that a membership calls. It calls them on the thread that polls, and mostly during a poll.

    If a method raises an error, ``Membership.poll`` or ``Membership.leave`` raises that error.
    """

    def read_positions(self, consumer: Consumer, numbers: list[int], timeout_s: float) -> list[TopicPartition]:
        """Return the group's committed positions of the partitions ``numbers``. Raises Unavailable, Fenced."""

    def on_assign(self, partition: PartitionState) -> None:
        """Prepare for a new assignment. The call comes before the first record of the partition is polled."""

    def before_revoke(self) -> None:
        """Commit the finished records now, because partitions are about to be revoked.

        If a finished record is not committed, the new owner of its partition handles the record again.
        """

    def on_drop(self) -> None:
        """Drop the uncommitted records of each partition whose ``is_assigned`` is False."""

    def on_end_of_log(self, partition: PartitionState) -> None:
        """Note that ``partition`` was read to the end of its log, and its ``end`` moved past transaction markers."""

    def confirm_name(self) -> None:
        """Raise Fenced if another process uses this instance's name."""


class Membership:
    """The membership of one instance in ``group``, with its consumer of ``topic``. Only one thread may use it."""

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
        """By partition number, the starts of assignments that began since ``poll`` last got a first record."""
        self._failure: BaseException | None = None
        self._missing_since_s: float | None = None
        self._leaving = False
        self._consumer: Consumer | None = None

    @property
    def partitions(self) -> Sequence[PartitionState]:
        """The assigned partitions."""
        return list(self._partitions.values())

    @property
    def has_joined(self) -> bool:
        """Whether the instance is a member of the group, with or without partitions."""
        return self._consumer is not None and is_member(self._consumer.consumer_group_metadata())

    @property
    def consumer(self) -> Consumer:
        """The consumer. Raises RtfmError before ``open`` and after ``leave``."""
        if self._consumer is None:
            raise RtfmError(f"{self._group}: not connected")
        return self._consumer

    def open(self) -> None:
        """Connect and subscribe.

        Raises ConfigError if the topic does not exist, Unavailable if Kafka does not answer.
        """
        self._consumer = self._connect(self._config())
        try:
            self._require_topic()
        except RtfmError:
            self._consumer.close()
            self._consumer = None
            raise
        self._subscribe()

    def poll(self, wait_s: float, limit: int) -> list[tuple[PartitionState, RawRecord]]:
        """Return up to ``limit`` unfinished records. Waits up to ``wait_s`` for the first one.

        After a TransientError this method rejoins the group and returns no records. Raises ConfigError if the topic was
        deleted, Fenced if another process uses this instance's name, and RtfmError if records come out of order. Any
        other error of the listener is raised as it is.
        """
        try:
            return self._poll(wait_s, limit)
        except TransientError as exc:  # The error may come from the listener.
            self.rejoin(exc)
            return []

    def _poll(self, wait_s: float, limit: int) -> list[tuple[PartitionState, RawRecord]]:
        # consume(n, t) waits for the whole time t unless there are n records. So poll(t) is called first, which returns
        # as soon as there is one record.
        records: list[RawRecord] = []
        if (first := self.consumer.poll(wait_s)) is not None:
            self._just_assigned.clear()
            records = cast("list[RawRecord]", [first, *self.consumer.consume(limit - 1, 0)])
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if self._has_been_readmitted():
            _log.warning("removed from the group and readmitted, rejoining", group=self._group)
            raise Unavailable("kafka", f"the group removed {self._kafka.instance_id} and readmitted it")
        if self._just_assigned and records:
            try:
                records = self._rewind_just_assigned(records)
            except KafkaException as exc:
                raise self._kafka.unreachable_error(f"reading {self._full_topic}: {exc.args[0].str()}") from exc
        polled = self._select_unfinished(records)
        self._watch_topic(bool(polled))
        return polled

    def _select_unfinished(self, records: list[RawRecord]) -> list[tuple[PartitionState, RawRecord]]:
        """Return the unfinished ones of ``records`` with their assignments. Handle errors and ends of logs."""
        unfinished = []
        for record in records:
            partition = self._partitions.get(record.partition())
            if (error := record.error()) is None:
                if partition is not None and not self._leaving and partition.admit(record.offset()):
                    unfinished.append((partition, record))
            elif error.code() != KafkaError._PARTITION_EOF:
                self._handle_read_error(error, record.partition())
            elif partition is not None and partition.extend_to(record.offset()):
                # Transaction markers follow the last record of the log. Unless the position moves past them, they count
                # as lag.
                self._listener.on_end_of_log(partition)
        return unfinished

    def _rewind_just_assigned(self, records: list[RawRecord]) -> list[RawRecord]:
        """Seek to the start of each partition that was assigned during this poll. Return the other partitions' records.

        A partition can be assigned while the consumer collects ``records``. Then some records of this partition may
        have been fetched before the assignment, and nothing shows which ones. If such a record were admitted, wrong
        offsets would count as finished.
        """
        just_assigned = dict(self._just_assigned)
        for number, offset in just_assigned.items():
            self.consumer.seek(TopicPartition(self._full_topic, number, offset))
        return [record for record in records if record.partition() not in just_assigned]

    def pause(self, partitions: Iterable[PartitionState]) -> None:
        """Stop fetching ``partitions``. The consumer drops what it has fetched, so resuming takes up to a second."""
        running = [partition for partition in partitions if not partition.is_paused]
        if running:
            self.consumer.pause([TopicPartition(self._full_topic, partition.number) for partition in running])
            PAUSES.labels(self._group).inc(len(running))
        for partition in running:
            partition.is_paused = True

    def resume(self, partitions: Iterable[PartitionState]) -> None:
        """Fetch the paused ones of ``partitions`` again, unless the instance is leaving."""
        paused = [partition for partition in partitions if partition.is_paused]
        if paused and not self._leaving:
            self.consumer.resume([TopicPartition(self._full_topic, partition.number) for partition in paused])
            for partition in paused:
                partition.is_paused = False

    def wind_down(self) -> None:
        """Return no more records, not even those of later assignments, but stay in the group."""
        self._leaving = True
        if self._consumer is not None:
            self.pause(self.partitions)

    def leave(self) -> None:
        """Leave the group. The listener may commit first. An error of the listener is raised unless it is transient."""
        self._leaving = True
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
        self._remove_partitions(list(self._partitions))
        failure, self._failure = self._failure, None
        if failure is not None and not isinstance(failure, TransientError):
            raise failure

    def report_lag(self) -> None:
        """Set the lag metric of each partition: the end of its log minus the committed offset."""
        is_answering = True
        for partition in self._partitions.values():
            try:
                # Cached values come from fetching. A paused partition is not fetched, so a broker is asked. If brokers
                # do not answer for one partition, they are not asked for the remaining ones, so that the loop waits
                # only once.
                low, high = self.consumer.get_watermark_offsets(
                    TopicPartition(self._full_topic, partition.number),
                    timeout=WATERMARK_TIMEOUT_S,
                    cached=not (partition.is_paused and is_answering),
                )
            except KafkaException:
                is_answering = False
                continue
            if high >= 0:
                lag = LAG.labels(self._kafka.group(self._group), self._full_topic, partition.number)
                lag.set(max(0, high - max(partition.committed, low)))

    def _on_statistics(self, text: str) -> None:
        # Only the statistics tell an idle consumer that no broker answers. The statistics also list brokers to which
        # the consumer has not connected yet, so one broker that is up is enough.
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
            # The consumer must never choose a start by itself. ``Starts`` does that, from the group's positions.
            "auto.offset.reset": "error",
            "queued.max.messages.kbytes": 16_384,
            "statistics.interval.ms": STATISTICS_MS,
            "stats_cb": self._on_statistics,
            "log_level": 4,  # Warnings and worse. poll() passes them to the logger.
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
        """Return whether the group removed this member while it had partitions, and readmitted it.

        Another member may have had the partitions meanwhile. Usually librdkafka reports such partitions as lost. But if
        a static member learns of its removal from the response to a request to join, librdkafka reports nothing. The
        partitions then stay assigned in the next generation, although the member has a new member id.
        """
        member = self.consumer.consumer_group_metadata()
        return is_member(member) and any(
            partition.member_id != member_id(member) for partition in self._partitions.values()
        )

    def rejoin(self, error: TransientError) -> None:
        """Leave the group because of ``error`` and join it again with a new consumer, which reads the positions again.

        Uncommitted records are handled again. This method must not be called from a callback. Raises Fenced if leaving
        shows that another process uses this instance's name.
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

    # Callbacks

    def _wrap_callback(
        self, callback: Callable[[Consumer, Sequence[TopicPartition]], None]
    ) -> Callable[[Consumer, list[TopicPartition]], None]:
        """Return a function that calls ``callback`` and keeps its error, which ``poll`` and ``leave`` raise later.

        confluent_kafka would turn an error that leaves a callback into a SystemError.
        """

        def call(consumer: Consumer, topic_partitions: list[TopicPartition]) -> None:
            try:
                callback(consumer, topic_partitions)
            except BaseException as exc:
                self._failure = self._failure or exc

        return call

    def _on_assign(self, consumer: Consumer, topic_partitions: Sequence[TopicPartition]) -> None:
        if not topic_partitions:  # The new generation gives this member no further partition.
            self._waiting.clear(self)
            return
        numbers = [item.partition for item in topic_partitions]
        # If there is an old state of one of these partitions, it is removed, because otherwise both states would be
        # committed.
        self._remove_partitions(numbers)
        # The member id is read before the positions. If the group removes this member in between, another member may
        # commit, and the old id then shows that the positions may be out of date.
        member = member_id(consumer.consumer_group_metadata())
        partitions = self._starts.find(consumer, numbers, partial(self._listener.read_positions, consumer))
        for partition in partitions:
            partition.member_id = member
        # The states are added only now, when they are complete. If a position were committed from an incomplete state,
        # its empty finished map would replace that of the group.
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
            # librdkafka keeps a partition paused across assignments, but the new state says that it is not paused.
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
        # Another member may already have the partitions, so none of their records may be committed.
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
        """End the assignments of the partitions ``numbers``, and tell the listener."""
        for number in numbers:
            self._just_assigned.pop(number, None)
            if (partition := self._partitions.pop(number, None)) is not None:
                partition.is_assigned = False
                self._starts.remember(partition)
                LAG.remove(self._kafka.group(self._group), self._full_topic, str(number))
        self._listener.on_drop()

    # Errors of the consumer

    def _handle_read_error(self, error: KafkaError, partition: int) -> None:
        """Log ``error`` if the consumer recovers from it by itself. Otherwise raise an error of this project.

        Raises TransientError if rejoining the group helps, Fenced if another process uses this instance's name, and
        ConfigError for a fatal error.
        """
        if any(error.code() == code or KafkaError(code).str() in error.str() for code in _TAKEN_OVER):
            # One of these codes is either the code of ``error``, or named in the text of a fatal error. The coordinator
            # can be mistaken: after a stall or a move of the group to another coordinator, a static member may be
            # fenced because of its own older request (KAFKA-20985). If no other process uses the name, this instance
            # may rejoin.
            self._listener.confirm_name()
            _log.warning("fenced by the coordinator, rejoining", group=self._group)
            raise Unavailable("kafka", f"the coordinator fenced {self._kafka.instance_id}: {error.str()}")
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            # The consumer's position is outside the log. Rejoining finds a new start from the group's position.
            raise Unavailable("kafka", f"{self._full_topic}, partition {partition}: {error.str()}")
        if error.fatal() or error.code() == KafkaError._FATAL:
            raise self._kafka.translate_error(error, f"reading {self._full_topic}")
        if error.code() in _MISSING and self._missing_since_s is None:
            self._missing_since_s = time.monotonic()
        _log.warning("kafka error", group=self._group, error=error.str())

    def _watch_topic(self, has_records: bool) -> None:
        """Raise ConfigError if brokers report the topic as unknown for TOPIC_PATIENCE_S and a check confirms that."""
        if has_records:
            self._missing_since_s = None
        elif self._missing_since_s is not None and time.monotonic() - self._missing_since_s >= TOPIC_PATIENCE_S:
            self._missing_since_s = None
            try:
                self._require_topic()
            except TransientError as exc:
                _log.warning("kafka error", group=self._group, error=str(exc))
                self._missing_since_s = time.monotonic()

    def _require_topic(self) -> None:
        if not self._kafka.list_partitions(self.consumer, self._full_topic):
            raise ConfigError(f"reading {self._full_topic}: the topic has no partitions")
