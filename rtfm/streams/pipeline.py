"""The pipeline of a service: poll, handle, and commit outputs with offsets in one transaction.

Promises that in Kafka every record has its outputs, or its dead letter, exactly once; a handler may run again after a
crash. One thread owns the consumer, the transactions and all state; handlers run in a pool (``lanes``), records of one
key one after another, and what finishes early is committed early (``commits``): the offset's metadata holds the map of
what is finished above it (``position``). What is down pauses the pipeline, which keeps its place in the group.
docs/delivery.md has the promises, and what they do not cover.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, TopicPartition

from rtfm.contracts import Contracts
from rtfm.errors import ConfigError, TransientError, Unavailable
from rtfm.settings import Settings
from rtfm.streams.commits import Commits
from rtfm.streams.connection import client_config, group_name, topic_name, translated
from rtfm.streams.consumer import Record
from rtfm.streams.crashes import InHand
from rtfm.streams.dead_letters import DeadLetterWriter
from rtfm.streams.handling import FIRST_BACKOFF_S, MAX_BACKOFF_S, Handler, Handling, Output, WaitingState
from rtfm.streams.lanes import Lanes
from rtfm.streams.position import PartitionState
from rtfm.telemetry import CONSUMED, LOST_RECORDS, Health, get_logger

POLL_S = 0.1
IDLE_S = 0.01
REJOIN_AFTER_S = 1.0
TAKE = 200
HIGH_WATER = 500
"""Unfinished records of a partition; with those of one intake they bound the map in the offset's metadata."""

PATIENCE_S = 1.0
"""Crowded that long, partitions are paused; a resume costs up to a second, not polling costs nothing."""

ASSIGN_TIMEOUT_S = 25.0
"""A committed offset is known when the transaction that holds it has ended: 10 s and the broker's own interval."""

_log = get_logger(__name__)

__all__ = ["Handler", "Output", "Pipeline", "Record"]


class Pipeline:
    """Reads one topic as one consumer group and hands its records to ``handler``.

    With ``concurrency`` 1 the handler gets batches of up to ``batch_size`` records of one partition, in order; with
    more it gets one record a call, records of one key one after another.
    """

    def __init__(
        self,
        settings: Settings,
        contracts: Contracts,
        *,
        group: str,
        topic: str,
        handler: Handler,
        health: Health,
        batch_size: int = 500,
        concurrency: int = 1,
        stop: threading.Event,
    ) -> None:
        if topic not in contracts.catalogue.topics:
            raise ConfigError(f"there is no topic {topic} in contracts.toml")
        self._settings = settings
        self._topic = topic
        self._full_topic = topic_name(settings, topic)
        self._group = group
        self._health = health
        self._high_water = max(HIGH_WATER, 2 * batch_size) if concurrency == 1 else HIGH_WATER
        self._stop = stop
        self._waiting = WaitingState(group)
        self._in_hand = InHand(settings, group=group, threads=concurrency, stop=stop)
        handling = Handling(
            contracts,
            topic=topic,
            handler=handler,
            waiting=self._waiting,
            writer=DeadLetterWriter(group=group, secrets=settings.secrets()),
            in_hand=self._in_hand,
            stop=stop,
        )
        self._lanes = Lanes(
            handling, name=group, concurrency=concurrency, batch_size=batch_size, in_hand=self._in_hand, stop=stop
        )
        self._commits = Commits(settings, topic=topic, group=group, waiting=self._waiting)
        self._parts: dict[int, PartitionState] = {}
        self._consumer: Any = None
        self._crowded_since_s: float | None = None
        self._callback_error: BaseException | None = None
        self._broken = False

    def run(self) -> None:
        """Work until ``stop`` is set, then finish what is in hand, commit and leave the group.

        Raises ConfigError for a topic that does not exist, Fenced when another process has this one's name,
        TooManyDeadLetters, and whatever defect the handler has.
        """
        self._health.ready_when(self._group, self._not_ready)
        if not self._opened():
            return
        self._in_hand.open()
        self._lanes.open()
        try:
            self._join()
            while not self._stop.is_set():
                self._step()
            self._drain()
            if self._commits.over is not None:
                raise self._commits.over
        except BaseException:
            self._broken = True
            raise
        finally:
            self._leave()

    # The loop

    def _opened(self) -> bool:
        """Start transactions, waiting for Kafka; False when stopped meanwhile."""
        backoff_s = FIRST_BACKOFF_S
        while not self._stop.is_set():
            self._health.beat(self._group)
            try:
                self._commits.open()
            except Unavailable as exc:
                self._waiting.note(self, exc)
                self._stop.wait(backoff_s)
                backoff_s = min(MAX_BACKOFF_S, 2 * backoff_s)
                continue
            self._waiting.clear(self)
            return True
        return False

    def _step(self) -> None:
        self._health.beat(self._group)
        if self._lanes:
            self._settle(wait_s=0.005)  # poll() cannot be woken from another thread
        if self._has_room():
            due_s = self._commits.due_in_s()
            self._take(0 if self._lanes else POLL_S if due_s is None else min(POLL_S, due_s))
        elif not self._lanes:
            self._stop.wait(IDLE_S)
        if self._commits.due_in_s() == 0:
            self._commits.commit(self._consumer)

    def _settle(self, wait_s: float = 0.0) -> None:
        for finished in self._lanes.settle(wait_s):
            self._commits.add(finished)
        if self._commits.over is not None:
            self._stop.set()

    def _drain(self) -> None:
        """Let what runs finish; the pool skips what it has not begun."""
        deadline_s = time.monotonic() + self._settings.shutdown_grace_s * 0.8
        self._in_hand.ending()
        self._pause(list(self._parts.values()))
        while self._lanes and time.monotonic() < deadline_s:
            self._step()
        self._settle()
        while self._commits and time.monotonic() < deadline_s:
            self._commits.commit(self._consumer)
            time.sleep(IDLE_S)

    def _take(self, wait_s: float) -> None:
        # consume(n, t) waits for all of t unless n records come; a poll for the first does not.
        first = self._consumer.poll(wait_s)
        messages = [] if first is None else [first, *self._consumer.consume(TAKE - 1, 0)]
        if self._callback_error is not None:
            error, self._callback_error = self._callback_error, None
            if not isinstance(error, TransientError):
                raise error
            self._rejoin(error)
            return
        for message in messages:
            if (error := message.error()) is not None:
                self._read_error(error)
                continue
            part = self._parts.get(message.partition())
            if part is not None and part.admit(message.offset()):
                CONSUMED.labels(self._topic, self._group).inc()
                self._lanes.put(part, message)
        self._lanes.start()

    def _read_error(self, error: KafkaError) -> None:
        if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC) or error.fatal():
            raise translated(error, self._settings, f"reading {self._full_topic}")
        _log.warning("kafka", group=self._group, error=error.str())

    # Backpressure

    def _has_room(self) -> bool:
        """Whether to poll: first not polling holds back, which is free, then pausing, so that the group keeps us."""
        now_s = time.monotonic()
        parts = self._parts.values()
        full = [part for part in parts if not part.paused and len(part.unfinished) >= self._high_water]
        all_wait = self._lanes.crowded or self._commits.stuck
        if not (full or all_wait):
            self._crowded_since_s = None
            ready = [part for part in parts if part.paused and len(part.unfinished) <= self._high_water // 2]
            if ready and not self._stop.is_set():
                self._consumer.resume([TopicPartition(self._full_topic, part.number) for part in ready])
                for part in ready:
                    part.paused = False
            return True
        if self._crowded_since_s is None:
            self._crowded_since_s = now_s
        if now_s - self._crowded_since_s < PATIENCE_S:
            return False
        self._pause([part for part in parts if not part.paused] if all_wait else full)
        return True

    def _pause(self, parts: list[PartitionState]) -> None:
        if parts:
            self._consumer.pause([TopicPartition(self._full_topic, part.number) for part in parts])
        for part in parts:
            part.paused = True

    # Membership. Callbacks run inside poll() and close(); an exception would come out of those as a SystemError.

    def _join(self) -> None:
        classic = {
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": 6000,
            # A cooperative hand-over is two rounds, each noticed at a heartbeat.
            "heartbeat.interval.ms": 1000,
        }
        static = {"group.instance.id": f"{group_name(self._settings, self._group)}-{self._settings.instance_id}"}
        self._consumer = Consumer(
            {
                **client_config(self._settings),
                "group.id": group_name(self._settings, self._group),
                "group.protocol": self._settings.kafka_group_protocol,
                **(classic if self._settings.kafka_group_protocol == "classic" else {}),
                **(static if self._settings.kafka_static_membership else {}),
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                # Well above ASSIGN_TIMEOUT_S, which is spent inside poll().
                "max.poll.interval.ms": 60_000,
                "queued.max.messages.kbytes": 16_384,
            }
        )
        self._consumer.subscribe(
            [self._full_topic],
            on_assign=self._guarded(self._on_assign),
            on_revoke=self._guarded(self._on_revoke),
            on_lost=self._guarded(self._on_lost),
        )

    def _rejoin(self, error: TransientError) -> None:
        """Leave and come back: where a partition stands could not be read, so it must not be worked on."""
        self._waiting.note(self, error)
        self._forget(list(self._parts))
        self._consumer.close()
        self._callback_error = None
        self._stop.wait(REJOIN_AFTER_S)
        self._join()

    def _leave(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
        self._forget(list(self._parts))
        self._commits.close()
        self._lanes.close()
        self._in_hand.close()

    def _guarded(
        self, callback: Callable[[Any, Sequence[TopicPartition]], None]
    ) -> Callable[[Any, list[TopicPartition]], None]:
        def call(consumer: Any, partitions: list[TopicPartition]) -> None:
            try:
                callback(consumer, partitions)
            except BaseException as exc:
                self._callback_error = exc

        return call

    def _on_assign(self, consumer: Any, partitions: Sequence[TopicPartition]) -> None:
        if not partitions:
            return
        stored = self._commits.stored(consumer, [part.partition for part in partitions], ASSIGN_TIMEOUT_S)
        for part in stored:
            restored = PartitionState.restored(part.partition, part.offset, part.metadata or "")
            self._parts[part.partition] = restored
            self._in_hand.assigned(restored)
        consumer.incremental_assign([TopicPartition(p.topic, p.partition, p.offset) for p in stored])
        consumer.resume([TopicPartition(p.topic, p.partition) for p in stored])
        _log.info("assigned", group=self._group, partitions=sorted(self._parts))
        self._waiting.clear(self)
        self._report_lost(stored)

    def _on_revoke(self, consumer: Any, partitions: Sequence[TopicPartition]) -> None:
        try:
            if not self._broken:
                self._settle()
                self._commits.commit(consumer)
        finally:
            self._on_lost(consumer, partitions)

    def _on_lost(self, consumer: Any, partitions: Sequence[TopicPartition]) -> None:
        self._forget([part.partition for part in partitions])
        consumer.incremental_unassign(list(partitions))
        _log.info("revoked", group=self._group, partitions=sorted(part.partition for part in partitions))

    def _forget(self, numbers: list[int]) -> None:
        for number in numbers:
            if (part := self._parts.pop(number, None)) is not None:
                part.live = False
        self._commits.keep_live()

    def _report_lost(self, stored: Sequence[TopicPartition]) -> None:
        for part in stored:
            if part.offset == OFFSET_INVALID or part.offset < 0:
                continue
            try:
                low, _ = self._consumer.get_watermark_offsets(part, timeout=5.0)
            except KafkaException as exc:
                _log.warning("start of the log unknown", group=self._group, reason=exc.args[0].str())
                continue
            if part.offset < low:
                LOST_RECORDS.labels(self._topic, self._group).inc(low - part.offset)
                _log.error(
                    "retention removed records before they were read",
                    group=self._group,
                    partition=part.partition,
                    records=low - part.offset,
                )

    def _not_ready(self) -> str | None:
        dependency = self._waiting.dependency
        return None if dependency is None else f"waiting for {dependency}"
