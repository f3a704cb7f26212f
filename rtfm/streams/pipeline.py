"""The pipeline of a service: poll, handle, and commit outputs with offsets in one transaction.

Promises that in Kafka every record has its outputs, or its dead letter, exactly once; a handler may run again after a
crash. One thread owns the consumer (``membership``), the transactions (``commits``) and all state; handlers run in a
pool (``lanes``), records of one key one after another, and what finishes early is committed early: the offset's
metadata holds the map of what is finished above it (``position``). What is down pauses the pipeline, which keeps its
place in the group. docs/delivery.md has the promises, and what they do not cover.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from functools import partial

from confluent_kafka import Consumer, TopicPartition

from rtfm.backoff import Backoff
from rtfm.contracts import Contracts
from rtfm.errors import ConfigError, RtfmError, Unavailable
from rtfm.streams.commits import Commits, PositionsChanged
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.consumer import Record
from rtfm.streams.dead_letters.limits import DeadLetterPolicy
from rtfm.streams.handling import FIRST_BACKOFF_S, MAX_BACKOFF_S, Handler, Handling, Output, WaitingState
from rtfm.streams.lanes import Lanes
from rtfm.streams.membership import Membership
from rtfm.streams.position import PartitionState
from rtfm.streams.quarantine import Quarantine
from rtfm.streams.transactions import Transactions
from rtfm.telemetry import CONSUMED, INFLIGHT, PAUSED_PARTITIONS, POLL_GAP_SECONDS, Health

POLL_TIMEOUT_S = 0.1
COLLECT_TIMEOUT_S = 0.005
IDLE_SLEEP_S = 0.01
HANDLER_POLL_S = 0.05
POLL_RECORDS = 300
HIGH_WATER = 500
"""Unfinished records of a partition; with those of one intake they bound the map in the offset's metadata.

A record has at most three bytes of the map, or four characters: 3,200, and the tally's 270.
"""

MAX_WINDOW = 2000
"""Offsets of a partition from the lowest unfinished one on, where more is polled because the pool is quick.

Then an offset has at most one byte of the map.
"""

CROWDED_PATIENCE_S = 1.0
"""Crowded that long, partitions are paused; a resume costs up to a second, not polling costs nothing."""

REPORT_INTERVAL_S = 0.5
MAX_OUTSIDE_S = 60.0
"""Unhealthy after this long outside the group; a member without partitions is a healthy spare."""

__all__ = ["Handler", "Output", "Pipeline", "Record", "Unfinished"]


class Unfinished(RtfmError):
    """Work was still under way when the time for stopping was over; what it read will be read again."""


class Pipeline:
    """Reads one topic as one consumer group and hands its records to ``handler``.

    With a ``batch_size`` the handler gets up to so many records of one partition a call, in order. Without, it gets
    one record a call, those of one key one after another. Up to ``concurrency`` calls run at a time.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        contracts: Contracts,
        *,
        group: str,
        topic: str,
        handler: Handler | Future[Handler],
        health: Health,
        stop: threading.Event,
        batch_size: int | None = None,
        concurrency: int = 1,
        dead_letters: DeadLetterPolicy | None = None,
        quarantine: Quarantine | None = None,
        grace_s: float = 20.0,
        max_outside_s: float = MAX_OUTSIDE_S,
    ) -> None:
        """The group is joined when ``handler`` is there; it need not be at first.

        ``dead_letters`` None: the default limits. ``quarantine`` None: a record that ends the process ends it at every
        start. ``grace_s``: how long work under way may take after ``stop``.
        """
        if topic not in contracts.catalogue.topics:
            raise ConfigError(f"there is no topic {topic} in contracts.toml")
        policy = dead_letters or DeadLetterPolicy()
        self._topic = topic
        self._group = group
        self._health = health
        self._max_outside_s = max_outside_s
        self._high_water = HIGH_WATER if batch_size is None else max(HIGH_WATER, 2 * batch_size)
        self._grace_s = grace_s
        self._stop = stop
        self._handler = handler
        self._waiting = WaitingState(group)
        self._quarantine = quarantine or Quarantine()
        self._handling = Handling(
            contracts,
            topic=topic,
            group=group,
            waiting=self._waiting,
            secrets=policy.secrets,
            quarantine=self._quarantine,
            stop=stop,
        )
        self._lanes = Lanes(
            self._handling,
            name=group,
            concurrency=concurrency,
            batch_size=batch_size,
            quarantine=self._quarantine,
            stop=stop,
        )
        self._commits = Commits(
            kafka,
            topic=topic,
            group=group,
            policy=policy,
            waiting=self._waiting,
            handling=self._handling,
            transactions=Transactions(kafka, f"{group}-{kafka.instance_id}"),
        )
        self._membership = Membership(kafka, topic=topic, group=group, waiting=self._waiting, listener=self)
        self._crowded_since_s: float | None = None
        self._last_report_s = self._last_useful_s = float("-inf")
        self._has_failed = False

    def run(self) -> None:
        """Work until ``stop`` is set, then finish what is under way, commit and leave the group.

        Raises ConfigError for a topic that does not exist, Fenced when another process has this one's name,
        TooManyDeadLetters, Unfinished when the work in hand takes longer than the time for stopping, and whatever
        defect the handler has.
        """
        self._health.ready_when(self._group, self._waiting_reason)
        self._health.alive_when(f"{self._group} membership", self._outside_reason)
        POLL_GAP_SECONDS.labels(self._group).set_function(partial(self._health.gap_s, self._group))
        try:
            if not self._open():
                return
            self._lanes.open()
            while not self._stop.is_set():
                self._step()
            unfinished = self._drain()
            if self._commits.limit_error is not None:
                raise self._commits.limit_error
        except BaseException:
            self._has_failed = True
            raise
        finally:
            self._close()
        if unfinished:
            raise Unfinished(
                f"{self._group}: the work in hand was not finished within {self._grace_s:g} s",
                hint="nothing is lost: it is read again at the next start; SHUTDOWN_GRACE_S gives it longer",
            )

    # The loop

    def _open(self) -> bool:
        """Start transactions and join, waiting for Kafka; False when stopped meanwhile."""
        backoff = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S)
        while not self._stop.is_set():
            self._health.beat(self._group)
            try:
                # Early: the end of a transaction that a dead predecessor left open takes up to a second.
                self._commits.open()
                if not self._await_handler():
                    return False
                self._membership.open()
            except Unavailable as exc:
                self._waiting.note(self, exc)
                self._stop.wait(backoff.next_s())
                continue
            self._waiting.clear(self)
            self._last_useful_s = time.monotonic()
            return True
        return False

    def _await_handler(self) -> bool:
        """Wait until the handler is there; False when stopped meanwhile."""
        handler = self._handler
        if isinstance(handler, Future):
            while not handler.done():
                self._health.beat(self._group)
                if self._stop.wait(HANDLER_POLL_S):
                    return False
            handler = handler.result()
        self._handling.handler = handler
        return True

    def _step(self) -> None:
        self._health.beat(self._group)
        if self._lanes:
            self._collect(COLLECT_TIMEOUT_S)  # poll() cannot be woken from another thread
        if self._apply_backpressure():
            due_s = self._commits.due_in_s()
            wait_s = 0 if self._lanes else POLL_TIMEOUT_S if due_s is None else min(POLL_TIMEOUT_S, due_s)
            if polled := self._membership.poll(wait_s, POLL_RECORDS):
                CONSUMED.labels(self._topic, self._group).inc(len(polled))
                self._lanes.put(polled)
        elif not self._lanes:
            time.sleep(IDLE_SLEEP_S)
        if self._commits.due_in_s() == 0:
            try:
                self._commit()
            except PositionsChanged as exc:
                self._membership.rejoin(exc)
        self._report()

    def _collect(self, wait_s: float = 0.0) -> None:
        if finished := self._lanes.collect(wait_s):
            self._commits.add_finished(finished)
        if self._commits.limit_error is not None:
            self._stop.set()

    def _commit(self) -> None:
        self._commits.commit(self._membership.consumer)

    def _drain(self) -> bool:
        """Let what runs finish; the pool skips what it has not begun. Whether something is left."""
        deadline_s = time.monotonic() + self._grace_s * 0.8
        self._quarantine.note_shutdown()
        self._membership.wind_down()
        while (self._lanes or self._commits) and time.monotonic() < deadline_s:
            self._step()
        return bool(self._lanes or self._commits)

    def _close(self) -> None:
        try:
            self._membership.leave()
        finally:
            self._commits.close()
            self._lanes.close()
            self._health.rest(self._group)

    # As the listener of its membership

    def read_positions(self, consumer: Consumer, numbers: list[int], timeout_s: float) -> list[TopicPartition]:
        """The group's positions; see RebalanceListener for this and the next ones."""
        return self._commits.read_positions(consumer, numbers, timeout_s)

    def on_assign(self, partition: PartitionState) -> None:
        """Before the first record of ``partition``, it is known which of them are suspected."""
        self._quarantine.review(self._group, self._membership.partitions)

    def before_revoke(self) -> None:
        """Commit what is finished."""
        if not self._has_failed:
            self._collect()
            self._commit()

    def on_drop(self) -> None:
        """Commit nothing of what went elsewhere."""
        self._commits.drop_unassigned()

    def on_end_of_log(self, partition: PartitionState) -> None:
        """Commit the end of the log, so that markers of transactions do not count as lag."""
        self._commits.add_end_of_log(partition)

    def confirm_name(self) -> None:
        """Raises Fenced where another process has this one's name."""
        self._commits.confirm_name()

    # Backpressure

    def _apply_backpressure(self) -> bool:
        """Whether to poll: first not polling holds back, which is free, then pausing, so that the group keeps us."""
        now_s = time.monotonic()
        partitions = self._membership.partitions
        depth = self._lanes.depth
        full = [partition for partition in partitions if not partition.is_paused and self._is_full(partition, depth)]
        all_wait = self._lanes.is_crowded or self._commits.is_full
        if not (full or all_wait):
            self._crowded_since_s = None
            self._membership.resume(
                partition for partition in partitions if partition.unfinished_count <= self._high_water // 2
            )
            return True
        if self._crowded_since_s is None:
            self._crowded_since_s = now_s
        if now_s - self._crowded_since_s < CROWDED_PATIENCE_S:
            return False
        self._membership.pause(partitions if all_wait else full)
        return True

    def _is_full(self, partition: PartitionState, depth: int) -> bool:
        count = partition.unfinished_count
        return count >= self._high_water and (count >= depth or partition.window >= MAX_WINDOW)

    # What others see

    def _report(self) -> None:
        now_s = time.monotonic()
        if now_s - self._last_report_s < REPORT_INTERVAL_S:
            return
        self._last_report_s = now_s
        partitions = self._membership.partitions
        if partitions or self._waiting.dependency is not None or self._membership.has_joined:
            self._last_useful_s = now_s
        self._membership.report_lag()
        self._quarantine.review(self._group, partitions)
        INFLIGHT.labels(self._group).set(sum(partition.unfinished_count for partition in partitions))
        PAUSED_PARTITIONS.labels(self._group).set(sum(partition.is_paused for partition in partitions))

    def _outside_reason(self) -> str | None:
        outside_s = time.monotonic() - self._last_useful_s
        return (
            f"no place in the group for {outside_s:.0f} s" if self._max_outside_s < outside_s < float("inf") else None
        )

    def _waiting_reason(self) -> str | None:
        dependency = self._waiting.dependency
        return None if dependency is None else f"waiting for {dependency}"
