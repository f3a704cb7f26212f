"""Lanes: records on their way through the pool, those of one lane one after another.

Owns the pool's threads and what waits behind them. Only the pipeline's own thread puts and settles; two queues are all
that it shares with the pool. Knows nothing of offsets beyond carrying them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

from rtfm.streams.consumer import Message
from rtfm.streams.handling import GaveUp, Handling, HandlingResult
from rtfm.streams.position import PartitionState
from rtfm.streams.quarantine import Quarantine

Lane = tuple[int, Hashable]
"""Partition and key: what stays in order. Not the assignment: work for an old one may still run when it comes back."""

Taken = tuple[PartitionState, Message]
"""A message and the assignment that it came with."""

AHEAD_S = 0.03
"""What the pool is given beyond what it works on, in its own time: as much as a transaction takes under load."""

SPEED_EVERY_S = 0.02

SKIPPED = HandlingResult()
"""In place of what handling came to, where nothing was handled."""


class Finished(NamedTuple):
    """What became of some messages of one assignment; ``last`` when their lane's turn is over."""

    part: PartitionState
    messages: list[Message]
    result: HandlingResult
    lane: Lane = (-1, None)
    last: bool = True


class Lanes:
    """Hands records to ``handling`` one by one, or in batches of up to ``batch_size`` of a partition."""

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
        self._since_s, self._count, self._depth = clock(), 0, 0
        self._defects: list[BaseException] = []
        self._waiting: dict[Lane, list[Taken]] = {}
        self._work: queue.SimpleQueue[tuple[Lane, list[Taken]] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Finished] = queue.SimpleQueue()
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
        """Whether more would only wait behind the pool. Batches grow while they wait, so of them it never is."""
        return self._batch_size is None and self._work.qsize() >= max(2 * len(self._threads), self.depth)

    @property
    def depth(self) -> int:
        """How many records the pool gets through while a transaction is under way, as fast as it was of late."""
        now_s = self._clock()
        if (elapsed_s := now_s - self._since_s) >= SPEED_EVERY_S:
            self._depth = int(self._count / elapsed_s * AHEAD_S)
            self._since_s, self._count = now_s, 0
        return self._depth

    def put(self, taken: Iterable[Taken]) -> None:
        """Add records, and set those lanes going that were empty."""
        fresh, all_waiting, batched = [], self._waiting, self._batch_size is not None
        for one in taken:
            part, message = one
            if batched:
                lane: Lane = (part.number, None)
            else:
                key = message.key()
                lane = (part.number, message.offset() if key is None else key)
            if (waiting := all_waiting.get(lane)) is None:
                all_waiting[lane] = [one]
                fresh.append(lane)
            else:
                waiting.append(one)
        for lane in fresh:
            self._next(lane)

    def settle(self, wait_s: float = 0.0) -> list[Finished]:
        """What the pool has finished since; waits up to ``wait_s`` for the first. Raises a handler's defect."""
        try:
            done = [self._done.get(timeout=wait_s)] if wait_s else []
        except queue.Empty:
            return []
        done += [self._done.get() for _ in range(self._done.qsize())]
        self._count += len(done)
        if self._defects:
            raise self._defects[0]
        for _, _, _, lane, last in done:
            if last:
                if self._waiting[lane]:
                    self._next(lane)
                else:
                    del self._waiting[lane]
        return [one for one in done if one.result is not SKIPPED and one.part.live]

    def _next(self, lane: Lane) -> None:
        waiting = self._waiting[lane]
        if self._batch_size is None:
            self._waiting[lane] = []
            self._work.put((lane, waiting))
            return
        count = min(len(waiting), self._batch_size)
        while waiting[count - 1][0] is not waiting[0][0]:  # a batch is of one assignment
            count -= 1
        if self._quarantine.active:
            count = 1
        self._work.put((lane, waiting[:count]))
        self._waiting[lane] = waiting[count:]

    def _run(self) -> None:
        put = self._done.put
        while (task := self._work.get()) is not None:
            lane, taken = task
            if self._batch_size is not None:
                part, messages = taken[0][0], [message for _, message in taken]
                put(Finished(part, messages, self._handled(part, messages), lane, True))
                continue
            final = taken[-1]
            for one in taken:
                part, message = one
                messages = [message]
                put(Finished(part, messages, self._handled(part, messages), lane, one is final))

    def _handled(self, part: PartitionState, messages: list[Message]) -> HandlingResult:
        if self._stop.is_set() or self._defects or not part.live:
            return SKIPPED
        try:
            return self._handling.handle(messages, part)
        except GaveUp:
            return SKIPPED
        except BaseException as exc:
            self._defects.append(exc)
            return SKIPPED
