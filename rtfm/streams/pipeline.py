"""The pipeline: polls a topic, calls a handler with its records, and commits outputs and offsets in one transaction.

Start reading here. A record passes these steps from poll to commit:

1. ``membership`` joins the group. When the group assigns a partition, ``starts`` reads the group's committed position,
   and ``position`` restores from it which offsets are finished.
2. ``membership.Membership.poll`` returns the records that are unfinished according to ``position``.
3. ``lanes.Lanes.put`` appends each record to its lane. A lane has the records of one partition and key, in order. The
   pool handles at most one task of a lane at a time. Lanes do not wait for each other. So while one thread handles a
   slow record, the other threads handle records of other lanes.
4. In the pool, ``handling.Handling.handle`` decodes the record, calls the handler and encodes its outputs. A record
   that can never succeed becomes a dead letter (``dead_letters``). While a dependency is down, the pool's thread waits.
   ``quarantine`` notes which records each thread is handling, so that they are known after a crash.
5. ``lanes.Lanes.collect`` returns what the pool has finished. ``commits.Commits.add_finished`` checks the limit on dead
   letters (``dead_letters.limits``) and notes in ``position`` that the records are finished.
6. ``commits.Commits.commit`` produces the outputs and dead letters and commits the positions, in one transaction
   (``transactions``). A record can be committed while an earlier record of its partition is unfinished. The committed
   offset is the lowest unfinished one, and the metadata of the position says which higher offsets are finished.
7. If a transaction fails, its records are committed with the next one. If the outcome of a transaction is unknown,
   ``commits`` compares the group's positions with the positions in the transaction to find it out.

One thread does all of this except step 4. A defect of the handler ends the pipeline, which then commits nothing more.
But with a crash journal, a record becomes a dead letter at its fourth defect, and the pipeline continues.
In Kafka, the outputs or the dead letter of each record are committed exactly once. The handler itself may run again for
a record, for example after a crash. docs/delivery.md lists the promises and their limits.
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
"""The largest number of records that one poll returns."""

HIGH_WATER = 500
"""A partition with this many unfinished records is full, unless the pool handles as many within LOOKAHEAD_S.

HIGH_WATER and POLL_RECORDS together bound the length of the finished map. The map is part of the position's metadata,
and a broker accepts 4,096 bytes of metadata by default. An unfinished record adds at most three bytes to the map, which
are four characters in base64. So 500 + 300 unfinished records need at most 3,200 characters. The tally of dead letters
needs up to 270 more. With batches, a partition is full only when it also has two batches of unfinished records. The
records of a partition then finish in order, which keeps the map short.
"""

MAX_WINDOW = 2000
"""A partition with HIGH_WATER unfinished records is full at this many offsets in its window, even if the pool is fast.

In such a short window an offset adds at most one byte to the finished map.
"""

CROWDED_PATIENCE_S = 1.0
"""How long the pipeline goes without polling before it pauses partitions and polls again.

Not polling costs nothing, but resuming a paused partition takes up to a second.
"""

REPORT_INTERVAL_S = 0.5
"""Time between two updates of the metrics and of the suspects."""

MAX_OUTSIDE_S = 60.0
"""How long a pipeline may be outside its group before it reports that it is unhealthy.

A member of the group without partitions is healthy, because it may be a spare.
"""

__all__ = ["Handler", "Output", "Pipeline", "Record", "Unfinished"]


class Unfinished(RtfmError):
    """The time for stopping is over, and some records are not committed. The next start reads these records again."""


class Pipeline:
    """A pipeline, which reads one topic as one consumer group and calls ``handler`` with the records.

    With a ``batch_size``, a call gets up to that many records of one partition, in order. Without a ``batch_size``, a
    call gets one record, and the records of one key in a partition are handled one after another. Up to ``concurrency``
    calls run at the same time.
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
        """Prepare the pipeline; ``run`` connects to Kafka.

        If ``handler`` is a future, the pipeline joins the group once the future has a result. Without ``dead_letters``
        the default limits apply. Without a ``quarantine``, nothing prevents a record from crashing the process at every
        start. ``grace_s`` is the time that stopping may take. Four fifths of this time are for unfinished records. If
        the instance is outside the group for longer than ``max_outside_s``, the pipeline reports that it is not alive.

        Raises ConfigError if ``topic`` is not in the catalogue.
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
        """Run until ``stop`` is set. Then finish the records being handled, commit them and leave the group.

        Raises ConfigError if the topic does not exist, Fenced if another process uses this instance's name,
        TooManyDeadLetters at the limit on dead letters, and Unfinished if work is left when the time for stopping is
        over. A defect of the handler is raised as it is, unless its record becomes a dead letter. After an error
        nothing more is committed. TooManyDeadLetters is raised only after the last commit.
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
                f"{self._group}: records were still unfinished after most of the {self._grace_s:g} s for stopping",
                hint="nothing is lost: the next start reads the records again. A higher SHUTDOWN_GRACE_S gives more"
                " time.",
            )

    # The loop

    def _open(self) -> bool:
        """Open the transactional producer and join the group. Return False if ``stop`` is set before that is done.

        If Kafka is unavailable, this method waits and tries again.
        """
        backoff = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S)
        while not self._stop.is_set():
            self._health.beat(self._group)
            try:
                # The producer is opened before the group is joined, because opening it ends any transaction that a
                # crashed process of the same name left open. This takes up to a second.
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
        """Wait until the handler is ready. Return False if ``stop`` is set meanwhile."""
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
        """Collect results, poll and commit, each only if it is due."""
        self._health.beat(self._group)
        if self._lanes:
            # Results are awaited here and not in poll(), because another thread cannot wake poll().
            self._collect(COLLECT_TIMEOUT_S)
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
        """Finish and commit the records being handled, and return whether work is left.

        The pool skips records that are only queued. They stay unfinished, and the next start reads them again.
        Raises TooManyDeadLetters if a partition is at the limit on dead letters.
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

    # Methods that Membership calls, as RebalanceListener describes them

    def read_positions(self, consumer: Consumer, numbers: list[int], timeout_s: float) -> list[TopicPartition]:
        """Return the group's committed positions of the partitions ``numbers``. Raises Unavailable, Fenced."""
        return self._commits.read_positions(consumer, numbers, timeout_s)

    def on_assign(self, partition: PartitionState) -> None:
        """Check for suspects in ``partition`` before its first record is polled."""
        self._quarantine.review(self._group, self._membership.partitions)

    def before_revoke(self) -> None:
        """Commit the finished records, unless an error is ending the pipeline."""
        if not self._has_failed:
            self._collect()
            self._commit()

    def on_drop(self) -> None:
        """Drop the uncommitted records of partitions that are no longer assigned."""
        self._commits.drop_unassigned()

    def on_end_of_log(self, partition: PartitionState) -> None:
        """Commit the end of the log with the next transaction, so that transaction markers do not count as lag."""
        self._commits.add_position(partition)

    def confirm_name(self) -> None:
        """Raise Fenced if another process uses this instance's name."""
        self._commits.confirm_name()

    # Backpressure

    def _apply_backpressure(self) -> bool:
        """Pause and resume partitions as needed, and return whether to poll.

        If the pool is crowded, or if the commits or a partition are full, polling stops at first. If this lasts longer
        than CROWDED_PATIENCE_S, polling continues, because the group removes a member that does not poll. The full
        partitions are then paused, or all partitions if the pool is crowded or the commits are full.
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
