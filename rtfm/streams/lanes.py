"""Lanes: the thread pool that handles records, keeping those of one lane in order.

Owns the pool's threads and the queues in front of and behind them. Only the pipeline's thread calls ``put`` and
``collect``; handlers run in the pool. Carries offsets, but knows nothing of positions or transactions.
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
"""Partition number and record key.

Not the assignment: work of an old assignment may still run when the partition comes back.
"""

PolledRecord = tuple[PartitionState, RawRecord]
"""A record and the assignment that it was polled under."""

LOOKAHEAD_S = 0.03
"""Seconds of work to queue beyond what the pool is handling: as much as a transaction takes under load."""

SPEED_INTERVAL_S = 0.02
"""Seconds between two measurements of how fast the pool handles records."""

SKIPPED = HandlingResult()
"""The result of records that were not handled."""


class Finished(NamedTuple):
    """Records of one assignment and the result of handling them.

    ``is_last``: they are the last of their lane's task, so that the lane's next task can start.
    """

    partition: PartitionState
    records: list[RawRecord]
    result: HandlingResult
    lane: LaneKey = (-1, None)
    is_last: bool = True


class Lanes:
    """The pool: calls ``handling`` with one record, or with a batch of up to ``batch_size`` records of a partition."""

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
        """Records behind the running task of each lane that has one."""
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
        """Whether more records would only wait behind the pool. Never with batches, which grow while they wait."""
        return self._batch_size is None and self._tasks.qsize() >= max(2 * len(self._threads), self.depth)

    @property
    def depth(self) -> int:
        """The number of records that the pool handles in LOOKAHEAD_S at its latest speed."""
        now_s = self._clock()
        if (elapsed_s := now_s - self._speed_since_s) >= SPEED_INTERVAL_S:
            self._depth = int(self._handled_count / elapsed_s * LOOKAHEAD_S)
            self._speed_since_s, self._handled_count = now_s, 0
        return self._depth

    def put(self, polled: Iterable[PolledRecord]) -> None:
        """Add records to their lanes, and start the lanes that were empty."""
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
        """Return what the pool has finished since the last call, and start the next task of each lane.

        Waits up to ``wait_s`` for the first result. Leaves out records that were skipped or whose partition is no
        longer assigned. Raises a handler's defect.
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
        while queued[count - 1][0] is not queued[0][0]:  # a batch belongs to one assignment
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
