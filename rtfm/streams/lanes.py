"""Lanes: records on their way through the pool, those of one lane one after another.

Owns the pool's threads and what waits behind them. Only the pipeline's own thread puts and settles; two queues are all
that it shares with the pool. Knows nothing of offsets beyond carrying them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

from rtfm.errors import RtfmError
from rtfm.streams.crashes import InHand
from rtfm.streams.handling import GaveUp, Handling, Result
from rtfm.streams.position import PartitionState

Lane = tuple[int, Hashable]
"""Partition and key: what stays in order. Not the assignment: work for an old one may still run when it comes back."""

Taken = tuple[PartitionState, Any]
"""A message of confluent_kafka and the assignment that it came with."""


class _Done(NamedTuple):
    lane: Lane
    unit: list[Taken]
    result: Result | BaseException | None
    last: bool


class Finished(NamedTuple):
    """What became of some messages of one assignment."""

    part: PartitionState
    messages: list[Any]
    result: Result


class Lanes:
    """Hands records to ``handling`` one by one, or in batches of up to ``batch_size`` of a partition."""

    def __init__(
        self,
        handling: Handling,
        *,
        name: str,
        concurrency: int,
        batch_size: int | None,
        in_hand: InHand,
        stop: threading.Event,
    ) -> None:
        self._handling = handling
        self._in_hand = in_hand
        self._batch_size = batch_size
        self._stop = stop
        self._waiting: dict[Lane, list[Taken]] = {}
        self._work: queue.SimpleQueue[tuple[Lane, list[Taken]] | None] = queue.SimpleQueue()
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
        """Whether more would only wait behind the pool. Batches grow while they wait, so of them it never is."""
        return self._batch_size is None and self._work.qsize() >= 2 * len(self._threads)

    def put(self, taken: Iterable[Taken]) -> None:
        """Add records, and set those lanes going that were empty."""
        fresh = []
        for one in taken:
            part, message = one
            if self._batch_size is not None:
                lane: Lane = (part.number, None)
            else:
                key = message.key()
                lane = (part.number, message.offset() if key is None else key)
            if (waiting := self._waiting.get(lane)) is None:
                self._waiting[lane] = [one]
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
        finished = []
        for lane, unit, result, last in done:
            if last and self._waiting[lane]:
                self._next(lane)
            elif last:
                del self._waiting[lane]
            if isinstance(result, BaseException):
                raise result
            part = unit[0][0]
            if result is not None and part.live:
                finished.append(Finished(part, [message for _, message in unit], result))
        return finished

    def _next(self, lane: Lane) -> None:
        waiting = self._waiting[lane]
        count = len(waiting)
        if self._batch_size is not None:
            count = min(count, self._batch_size)
            while waiting[count - 1][0] is not waiting[0][0]:  # a batch is of one assignment
                count -= 1
            if self._in_hand.suspects:
                count = self._in_hand.together(lane[0], [message.offset() for _, message in waiting[:count]])
        self._work.put((lane, waiting[:count]))
        self._waiting[lane] = waiting[count:]

    def _run(self) -> None:
        while (task := self._work.get()) is not None:
            lane, taken = task
            if self._batch_size is not None:
                self._done.put(_Done(lane, taken, self._handled(taken), True))
                continue
            final = len(taken) - 1
            for number, one in enumerate(taken):
                unit = [one]
                self._done.put(_Done(lane, unit, self._handled(unit), number == final))

    def _handled(self, unit: list[Taken]) -> Result | BaseException | None:
        part = unit[0][0]
        if self._stop.is_set() or not part.live:
            return None
        if not self._in_hand.take(part.number, unit[0][1].offset(), unit[-1][1].offset()):
            return None
        try:
            return self._handling.handle([message for _, message in unit], part)
        except GaveUp:
            return None
        except RtfmError as exc:  # for the operator to mend, whichever record it was
            return exc
        except Exception as exc:  # a defect of the handler, of any kind
            if len(unit) == 1 and self._in_hand.is_last_try(part.number, unit[0][1].offset()):
                return self._handling.given_up(unit[0][1], exc)
            self._in_hand.blame()
            return exc
        except BaseException as exc:
            return exc
        finally:
            self._in_hand.release()
