"""Lanes: the thread pool that handles records, and that keeps the records of one lane in order.

This module owns the pool's threads, the queue of tasks and the queue of results. Handlers run in the pool. Only the
pipeline's thread calls the public methods of ``Lanes``. Nothing is committed here.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

from rtfm.streams.consumer import RawRecord
from rtfm.streams.handling import Handling, HandlingCancelled, HandlingResult
from rtfm.streams.position import PartitionState
from rtfm.streams.quarantine import Quarantine

LaneKey = tuple[int, Hashable]
"""What identifies a lane: the partition number and the record's key.

A record without a key has a lane of its own, in which its offset replaces the key. With batches, None replaces the key.
A lane key does not contain the assignment. So if a partition is revoked and assigned again, its records stay in order:
a record of the new assignment waits until no handler works on a record of the old assignment in the same lane.
"""

PolledRecord = tuple[PartitionState, RawRecord]
"""A record and the assignment in which the record was polled."""

LOOKAHEAD_S = 0.03
"""Seconds of work that are queued before the pool is crowded. A transaction takes about this long under load."""

SPEED_INTERVAL_S = 0.02
"""Shortest time between two measurements of the pool's speed, in seconds."""

SKIPPED = HandlingResult()
"""The result of records that were not handled."""


class Finished(NamedTuple):
    """Records of one assignment and the result of handling them.

    If ``is_last`` is true, these records are the last ones of their lane's task, and the lane's next task can start.
    """

    partition: PartitionState
    records: list[RawRecord]
    result: HandlingResult
    lane: LaneKey = (-1, None)
    is_last: bool = True


class Lanes:
    """The pool of ``concurrency`` threads, which call ``handling``.

    Without a ``batch_size``, a call gets one record. With a ``batch_size``, a call gets up to that many records of one
    partition.
    """

    def __init__(
        self,
        handling: Handling,
        *,
        name: str,
        concurrency: int,
        batch_size: int | None,
        quarantine: Quarantine,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._handling = handling
        self._quarantine = quarantine
        self._batch_size = batch_size
        self._stop = stop
        self._clock = clock
        self._speed_since_s, self._handled_count, self._depth = clock(), 0, 0
        self._defects: list[BaseException] = []
        self._queued: dict[LaneKey, list[PolledRecord]] = {}
        """For each lane with a task in the pool, the records that wait for the end of the task."""
        self._tasks: queue.SimpleQueue[tuple[LaneKey, list[PolledRecord]] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(concurrency)
        ]

    def open(self) -> None:
        """Start the pool's threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Tell the pool's threads to end after their current task. Does not wait for them."""
        for _ in self._threads:
            self._tasks.put(None)

    def __len__(self) -> int:
        """Return the number of lanes that have work."""
        return len(self._queued)

    @property
    def is_crowded(self) -> bool:
        """Whether so many tasks are queued that more records would only wait.

        With batches, this is false, because a longer queue then makes larger batches.
        """
        return self._batch_size is None and self._tasks.qsize() >= max(2 * len(self._threads), self.depth)

    @property
    def depth(self) -> int:
        """The number of records, or of batches, that the pool handles in LOOKAHEAD_S at its latest speed."""
        now_s = self._clock()
        if (elapsed_s := now_s - self._speed_since_s) >= SPEED_INTERVAL_S:
            self._depth = int(self._handled_count / elapsed_s * LOOKAHEAD_S)
            self._speed_since_s, self._handled_count = now_s, 0
        return self._depth

    def put(self, polled: Iterable[PolledRecord]) -> None:
        """Add records to their lanes, and queue a task for each lane that had no work."""
        new_lanes, all_queued, is_batched = [], self._queued, self._batch_size is not None
        for item in polled:
            partition, record = item
            if is_batched:
                lane: LaneKey = (partition.number, None)
            else:
                key = record.key()
                lane = (partition.number, record.offset() if key is None else key)
            if (queued := all_queued.get(lane)) is None:
                all_queued[lane] = [item]
                new_lanes.append(lane)
            else:
                queued.append(item)
        for lane in new_lanes:
            self._dispatch(lane)

    def collect(self, wait_s: float = 0.0) -> list[Finished]:
        """Return what the pool has finished since the last call, and queue the next task of each lane.

        Waits up to ``wait_s`` for the first result. The return value contains neither skipped records nor records of
        assignments that have ended. If the handling of a record raised an error in the pool, raises the first such
        error.
        """
        try:
            results = [self._results.get(timeout=wait_s)] if wait_s else []
        except queue.Empty:
            return []
        results += [self._results.get() for _ in range(self._results.qsize())]
        self._handled_count += len(results)
        if self._defects:
            raise self._defects[0]
        for _, _, _, lane, is_last in results:
            if is_last:
                if self._queued[lane]:
                    self._dispatch(lane)
                else:
                    del self._queued[lane]
        return [finished for finished in results if finished.result is not SKIPPED and finished.partition.is_assigned]

    def _dispatch(self, lane: LaneKey) -> None:
        """Queue the lane's next task for the pool."""
        queued = self._queued[lane]
        if self._batch_size is None:
            self._queued[lane] = []
            self._tasks.put((lane, queued))
            return
        count = min(len(queued), self._batch_size)
        while queued[count - 1][0] is not queued[0][0]:  # All records of a batch must be of one assignment.
            count -= 1
        if self._quarantine.is_active:
            count = 1
        self._tasks.put((lane, queued[:count]))
        self._queued[lane] = queued[count:]

    def _run(self) -> None:
        put = self._results.put
        while (task := self._tasks.get()) is not None:
            lane, polled = task
            if self._batch_size is not None:
                partition, records = polled[0][0], [record for _, record in polled]
                put(Finished(partition, records, self._handle(partition, records), lane, True))
                continue
            final = polled[-1]
            for item in polled:
                partition, record = item
                records = [record]
                put(Finished(partition, records, self._handle(partition, records), lane, item is final))

    def _handle(self, partition: PartitionState, records: list[RawRecord]) -> HandlingResult:
        if self._stop.is_set() or self._defects or not partition.is_assigned:
            return SKIPPED
        try:
            return self._handling.handle(records, partition)
        except HandlingCancelled:
            return SKIPPED
        except BaseException as exc:
            self._defects.append(exc)
            return SKIPPED
