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

POLL_S = 0.1
SETTLE_S = 0.005
IDLE_S = 0.01
HANDLER_POLL_S = 0.05
TAKE = 300
HIGH_WATER = 500
"""Unfinished records of a partition; with those of one intake they bound the map in the offset's metadata.

A record has at most three bytes of the map, or four characters: 3,200, and the tally's 270.
"""

MAX_WINDOW = 2000
"""Offsets of a partition from the lowest unfinished one on, where more is taken because the pool is quick.

Then an offset has at most one byte of the map.
"""

PATIENCE_S = 1.0
"""Crowded that long, partitions are paused; a resume costs up to a second, not polling costs nothing."""

REPORT_EVERY_S = 0.5
OUTSIDE_S = 60.0
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
        outside_s: float = OUTSIDE_S,
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
        self._outside_s = outside_s
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
        self._members = Membership(kafka, topic=topic, group=group, waiting=self._waiting, listener=self)
        self._crowded_since_s: float | None = None
        self._reported_s = self._useful_s = float("-inf")
        self._broken = False

    def run(self) -> None:
        """Work until ``stop`` is set, then finish what is under way, commit and leave the group.

        Raises ConfigError for a topic that does not exist, Fenced when another process has this one's name,
        TooManyDeadLetters, Unfinished when the work in hand takes longer than the time for stopping, and whatever
        defect the handler has.
        """
        self._health.ready_when(self._group, self._not_ready)
        self._health.alive_when(f"{self._group} membership", self._outside)
        POLL_GAP_SECONDS.labels(self._group).set_function(partial(self._health.gap_s, self._group))
        try:
            if not self._open():
                return
            self._lanes.open()
            while not self._stop.is_set():
                self._step()
            unfinished = self._drain()
            if self._commits.over is not None:
                raise self._commits.over
        except BaseException:
            self._broken = True
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
                self._members.open()
            except Unavailable as exc:
                self._waiting.note(self, exc)
                self._stop.wait(backoff.next_s())
                continue
            self._waiting.clear(self)
            self._useful_s = time.monotonic()
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
            self._settle(SETTLE_S)  # poll() cannot be woken from another thread
        if self._has_room():
            due_s = self._commits.due_in_s()
            wait_s = 0 if self._lanes else POLL_S if due_s is None else min(POLL_S, due_s)
            if taken := self._members.take(wait_s, TAKE):
                CONSUMED.labels(self._topic, self._group).inc(len(taken))
                self._lanes.put(taken)
        elif not self._lanes:
            time.sleep(IDLE_S)
        if self._commits.due_in_s() == 0:
            try:
                self._commit()
            except PositionsChanged as exc:
                self._members.rejoin(exc)
        self._report()

    def _settle(self, wait_s: float = 0.0) -> None:
        if finished := self._lanes.settle(wait_s):
            self._commits.add(finished)
        if self._commits.over is not None:
            self._stop.set()

    def _commit(self) -> None:
        self._commits.commit(self._members.consumer)

    def _drain(self) -> bool:
        """Let what runs finish; the pool skips what it has not begun. Whether something is left."""
        deadline_s = time.monotonic() + self._grace_s * 0.8
        self._quarantine.end()
        self._members.wind_down()
        while (self._lanes or self._commits) and time.monotonic() < deadline_s:
            self._step()
        return bool(self._lanes or self._commits)

    def _close(self) -> None:
        try:
            self._members.leave()
        finally:
            self._commits.close()
            self._lanes.close()
            self._health.end(self._group)

    # As the listener of its membership

    def committed(self, consumer: Consumer, numbers: list[int], timeout_s: float) -> list[TopicPartition]:
        """The group's positions; see RebalanceListener for this and the next ones."""
        return self._commits.committed(consumer, numbers, timeout_s)

    def assigned(self, part: PartitionState) -> None:
        """Before the first record of ``part``, it is known which of them are suspected."""
        self._quarantine.review(self._group, self._members.parts)

    def before_revoke(self) -> None:
        """Commit what is finished."""
        if not self._broken:
            self._settle()
            self._commit()

    def dropped(self) -> None:
        """Commit nothing of what went elsewhere."""
        self._commits.keep_live()

    def reached_end(self, part: PartitionState) -> None:
        """Commit the end of the log, so that markers of transactions do not count as lag."""
        self._commits.add_end(part)

    def confirm_name(self) -> None:
        """Raises Fenced where another process has this one's name."""
        self._commits.confirm_name()

    # Backpressure

    def _has_room(self) -> bool:
        """Whether to poll: first not polling holds back, which is free, then pausing, so that the group keeps us."""
        now_s = time.monotonic()
        parts = self._members.parts
        depth = self._lanes.depth
        full = [part for part in parts if not part.paused and self._is_full(part, depth)]
        all_wait = self._lanes.crowded or self._commits.stuck
        if not (full or all_wait):
            self._crowded_since_s = None
            self._members.resume(part for part in parts if part.unfinished_count <= self._high_water // 2)
            return True
        if self._crowded_since_s is None:
            self._crowded_since_s = now_s
        if now_s - self._crowded_since_s < PATIENCE_S:
            return False
        self._members.pause(parts if all_wait else full)
        return True

    def _is_full(self, part: PartitionState, depth: int) -> bool:
        count = part.unfinished_count
        return count >= self._high_water and (count >= depth or part.window >= MAX_WINDOW)

    # What others see

    def _report(self) -> None:
        now_s = time.monotonic()
        if now_s - self._reported_s < REPORT_EVERY_S:
            return
        self._reported_s = now_s
        parts = self._members.parts
        if parts or self._waiting.dependency is not None or self._members.joined:
            self._useful_s = now_s
        self._members.report()
        self._quarantine.review(self._group, parts)
        INFLIGHT.labels(self._group).set(sum(part.unfinished_count for part in parts))
        PAUSED_PARTITIONS.labels(self._group).set(sum(part.paused for part in parts))

    def _outside(self) -> str | None:
        outside_s = time.monotonic() - self._useful_s
        return f"no place in the group for {outside_s:.0f} s" if self._outside_s < outside_s < float("inf") else None

    def _not_ready(self) -> str | None:
        dependency = self._waiting.dependency
        return None if dependency is None else f"waiting for {dependency}"
