"""The pipeline: polls a topic, hands its records to a handler, and commits outputs and offsets in one transaction.

Start reading here. The way of a record from poll to commit:

1. ``membership`` joins the group. When it gets a partition, ``starts`` reads the group's committed position, and
   ``position`` restores from it which offsets are finished and which are not.
2. ``membership.Membership.poll`` returns the records that ``position`` says are unfinished.
3. ``lanes.Lanes.put`` appends each record to its lane: the records of one partition and key, in order. The pool takes
   one task of a lane at a time, so that one slow key holds up no other.
4. In the pool, ``handling.Handling.handle`` decodes the record, calls the handler and encodes its outputs. A record
   that can never succeed becomes a dead letter (``dead_letters``). While a dependency is down, the thread waits.
   ``quarantine`` notes what each thread is handling, in case the process dies.
5. ``lanes.Lanes.collect`` returns what the pool has finished. ``commits.Commits.add_finished`` checks the limit on dead
   letters (``dead_letters.limits``) and marks the records as finished in ``position``.
6. ``commits.Commits.commit`` produces outputs and dead letters and commits the positions, in one transaction
   (``transactions``). A record that finishes before an earlier one is committed early: the position is the lowest
   unfinished offset, and its metadata maps what is finished above it.
7. A failed transaction changes nothing: its records are committed with the next one. If its outcome is unknown,
   ``commits`` compares the group's positions with those that it sent.

One thread does all of this except step 4. Every record has its outputs, or its dead letter, exactly once in Kafka; a
handler may run again after a crash. docs/delivery.md lists the promises and what they do not cover.
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
"""Records that one poll returns at most."""

HIGH_WATER = 500
"""Unfinished records at which a partition is full.

Together with one poll it bounds the finished map in the position's metadata, for which a broker takes 4,096 bytes by
default: a record needs at most three bytes of the map, which are four characters, so 800 records need 3,200. The tally
of dead letters needs 270 more.
"""

MAX_WINDOW = 2000
"""Length of a partition's window at which it is full even if the pool is quick enough to be given more records.

At that density an offset needs at most one byte of the map.
"""

CROWDED_PATIENCE_S = 1.0
"""How long to go without polling before partitions are paused.

Not polling costs nothing; resuming a paused partition takes up to a second.
"""

REPORT_INTERVAL_S = 0.5

MAX_OUTSIDE_S = 60.0
"""Unhealthy after this long outside the group; a member without partitions is a healthy spare."""

__all__ = ["Handler", "Output", "Pipeline", "Record", "Unfinished"]


class Unfinished(RtfmError):
    """Records were still being handled when the time for stopping was over; they are read again at the next start."""


class Pipeline:
    """Reads one topic as one consumer group and hands its records to ``handler``.

    With a ``batch_size``, a call of the handler gets up to that many records of one partition, in order. Without it, a
    call gets one record, and those of one key run one after another. Up to ``concurrency`` calls run at a time.
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
        """Prepare; ``run`` connects. If ``handler`` is a future, the pipeline joins the group once it has a result.

        ``dead_letters`` None means the default limits, ``quarantine`` None that a record that kills the process does so
        at every start. ``grace_s`` is how long running handlers may take after ``stop`` is set. ``max_outside_s`` is
        how long the pipeline may be outside the group and still report that it is alive. Raises ConfigError for a topic
        that is not in the catalogue.
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
        """Run until ``stop`` is set; then finish the records being handled, commit them and leave the group.

        Raises ConfigError for a topic that does not exist, Fenced when another process uses this instance's name,
        TooManyDeadLetters at the limit on dead letters, Unfinished when running handlers take longer than ``grace_s``,
        and any defect of the handler.
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
        except BaseException:
            self._has_failed = True
            raise
        finally:
            self._close()
        if unfinished:
            raise Unfinished(
                f"{self._group}: the remaining work was not finished within {self._grace_s:g} s",
                hint="nothing is lost: the records are read again at the next start; SHUTDOWN_GRACE_S gives more time",
            )

    # The loop

    def _open(self) -> bool:
        """Start transactions and join the group, waiting for Kafka. Return False if stopped meanwhile."""
        backoff = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S)
        while not self._stop.is_set():
            self._health.beat(self._group)
            try:
                # First, because ending a transaction that a dead predecessor left open takes up to a second.
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
        """Wait until the handler is ready. Return False if stopped meanwhile."""
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
        """Collect, poll and commit once each, as far as there is something to do."""
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
        if self._commits.limit_error is not None:
            self._stop.set()
        self._report()

    def _collect(self, wait_s: float = 0.0) -> None:
        if finished := self._lanes.collect(wait_s):
            self._commits.add_finished(finished)

    def _commit(self) -> None:
        self._commits.commit(self._membership.consumer)

    def _drain(self) -> bool:
        """Finish and commit running records; the pool skips the others. Return whether unfinished work is left.

        Raises TooManyDeadLetters if that was the reason to stop.
        """
        deadline_s = time.monotonic() + self._grace_s * 0.8
        self._quarantine.note_shutdown()
        self._membership.wind_down()
        while (self._lanes or self._commits) and time.monotonic() < deadline_s:
            self._step()
        if self._commits.limit_error is not None:
            raise self._commits.limit_error
        return bool(self._lanes or self._commits)

    def _close(self) -> None:
        try:
            self._membership.leave()
        finally:
            self._commits.close()
            self._lanes.close()
            self._health.end(self._group)

    # As the listener of its membership

    def read_positions(self, consumer: Consumer, numbers: list[int], timeout_s: float) -> list[TopicPartition]:
        """Return the group's positions. RebalanceListener describes this method and the following ones."""
        return self._commits.read_positions(consumer, numbers, timeout_s)

    def on_assign(self, partition: PartitionState) -> None:
        """Find out, before the first record of ``partition``, whether it holds suspects."""
        self._quarantine.review(self._group, self._membership.partitions)

    def before_revoke(self) -> None:
        """Commit what is finished, unless the pipeline is failing."""
        if not self._has_failed:
            self._collect()
            self._commit()

    def on_drop(self) -> None:
        """Drop what is finished in partitions that are no longer assigned."""
        self._commits.drop_unassigned()

    def on_end_of_log(self, partition: PartitionState) -> None:
        """Commit the end of the log, so that transaction markers do not count as lag."""
        self._commits.add_end_of_log(partition)

    def confirm_name(self) -> None:
        """Raise Fenced if another process uses this instance's name."""
        self._commits.confirm_name()

    # Backpressure

    def _apply_backpressure(self) -> bool:
        """Pause and resume partitions as needed, and return whether to poll.

        When the pool or a partition is full, polling stops at first, which costs nothing. After CROWDED_PATIENCE_S the
        full partitions are paused and polling goes on, because the group removes a member that does not poll.
        """
        now_s = time.monotonic()
        partitions = self._membership.partitions
        depth = self._lanes.depth
        full = [partition for partition in partitions if not partition.is_paused and self._is_full(partition, depth)]
        is_all_full = self._lanes.is_crowded or self._commits.is_full
        if not (full or is_all_full):
            self._crowded_since_s = None
            self._membership.resume(
                partition for partition in partitions if partition.unfinished_count <= self._high_water // 2
            )
            return True
        if self._crowded_since_s is None:
            self._crowded_since_s = now_s
        if now_s - self._crowded_since_s < CROWDED_PATIENCE_S:
            return False
        self._membership.pause(partitions if is_all_full else full)
        return True

    def _is_full(self, partition: PartitionState, depth: int) -> bool:
        count = partition.unfinished_count
        return count >= self._high_water and (count >= depth or partition.window >= MAX_WINDOW)

    # Metrics and health

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
