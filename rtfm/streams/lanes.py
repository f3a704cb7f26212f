"""Lanes: records on their way through the pool, those of one lane one after another.

Owns the pool's threads and what waits behind them. Only the pipeline's own thread puts and settles; two queues are all
that it shares with the pool. Knows nothing of offsets beyond carrying them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Hashable
from typing import Any

from attrs import frozen

from rtfm.streams.crashes import InHand
from rtfm.streams.handling import GaveUp, Handling, Result
from rtfm.streams.position import PartitionState

Lane = tuple[int, Hashable]
"""Partition and key: what stays in order. Not the assignment: work for an old one may still run when it comes back."""


@frozen
class _Taken:
    part: PartitionState
    message: Any


@frozen
class _Done:
    lane: Lane
    unit: list[_Taken]
    result: Result | BaseException | None
    last: bool


@frozen
class Finished:
    """What became of some records of one assignment."""

    part: PartitionState
    offsets: list[int]
    result: Result


class Lanes:
    """Hands records to ``handling``: to one thread in batches of up to ``batch_size`` of a partition, else singly."""

    def __init__(
        self,
        handling: Handling,
        *,
        name: str,
        concurrency: int,
        batch_size: int,
        in_hand: InHand,
        stop: threading.Event,
    ) -> None:
        self._handling = handling
        self._in_hand = in_hand
        self._batch_size = batch_size
        self._single = concurrency == 1
        self._stop = stop
        self._waiting: dict[Lane, list[_Taken]] = {}
        self._fresh: list[Lane] = []
        self._work: queue.SimpleQueue[tuple[Lane, list[_Taken]] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[_Done] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(concurrency)
        ]

    def open(self) -> None:
        """Start the pool."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the pool's threads as soon as each is through with what it runs."""
        for _ in self._threads:
            self._work.put(None)

    def __len__(self) -> int:
        """How many lanes have work."""
        return len(self._waiting)

    @property
    def crowded(self) -> bool:
        """Whether more would only wait behind the pool."""
        return not self._single and self._work.qsize() >= 2 * len(self._threads)

    def put(self, part: PartitionState, message: Any) -> None:
        """Add a record; ``start`` sets a lane going that was empty."""
        key = message.key()
        lane: Lane = (part.number, None if self._single else message.offset() if key is None else key)
        if lane not in self._waiting:
            self._waiting[lane] = []
            self._fresh.append(lane)
        self._waiting[lane].append(_Taken(part, message))

    def start(self) -> None:
        """Give the pool what ``put`` brought to empty lanes."""
        for lane in self._fresh:
            self._next(lane)
        self._fresh = []

    def settle(self, wait_s: float = 0.0) -> list[Finished]:
        """What the pool has finished since; waits up to ``wait_s`` for the first. Raises a handler's defect."""
        try:
            done = [self._done.get(timeout=wait_s)] if wait_s else []
        except queue.Empty:
            return []
        done += [self._done.get() for _ in range(self._done.qsize())]
        finished = []
        for one in done:
            if one.last and self._waiting[one.lane]:
                self._next(one.lane)
            elif one.last:
                del self._waiting[one.lane]
            if isinstance(one.result, BaseException):
                raise one.result
            part = one.unit[0].part
            if one.result is not None and part.live:
                finished.append(Finished(part, [taken.message.offset() for taken in one.unit], one.result))
        return finished

    def _next(self, lane: Lane) -> None:
        waiting = self._waiting[lane]
        count = len(waiting)
        if self._single:
            count = min(count, self._batch_size)
            while waiting[count - 1].part is not waiting[0].part:  # a batch is of one assignment
                count -= 1
            count = self._in_hand.together(lane[0], [taken.message.offset() for taken in waiting[:count]])
        self._work.put((lane, waiting[:count]))
        self._waiting[lane] = waiting[count:]

    def _run(self) -> None:
        while (task := self._work.get()) is not None:
            lane, taken = task
            units = [taken] if self._single else [[one] for one in taken]
            for unit in units:
                self._done.put(_Done(lane, unit, self._handled(unit), unit is units[-1]))

    def _handled(self, unit: list[_Taken]) -> Result | BaseException | None:
        part = unit[0].part
        if self._stop.is_set() or not part.live:
            return None
        if not self._in_hand.take(part.number, unit[0].message.offset(), unit[-1].message.offset()):
            return None
        try:
            return self._handling.handle([taken.message for taken in unit], lambda: not part.live)
        except GaveUp:
            return None
        except BaseException as exc:
            return exc
        finally:
            self._in_hand.release()
