"""Lanes: which records go to the pool, in which order, and how many at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from attrs import frozen

from rtfm.streams.handling import HandlingResult
from rtfm.streams.lanes import LOOKAHEAD_S, SPEED_INTERVAL_S, Finished, Lanes
from rtfm.streams.position import PartitionState
from rtfm.streams.quarantine import Quarantine
from tests.streams import eventually


@frozen
class Message:
    """The part of a confluent_kafka message that lanes use."""

    number: int
    key_: bytes | None

    def offset(self) -> int:
        return self.number

    def key(self) -> bytes | None:
        return self.key_


class Handling:
    """A handling that notes the records of each call, and calls ``act`` with the first of them."""

    def __init__(self, act: Callable[[Message], object] = lambda _: None) -> None:
        self.calls: list[list[int]] = []
        self._act = act

    def handle(self, messages: Sequence[Message], _: object) -> HandlingResult:
        self.calls.append([message.number for message in messages])
        self._act(messages[0])
        return HandlingResult()


@contextmanager
def pool(
    handling: Handling,
    *,
    concurrency: int = 2,
    batch_size: int | None = None,
    quarantine: Quarantine | None = None,
    **options: Any,
) -> Iterator[Lanes]:
    stop = threading.Event()
    lanes = Lanes(
        handling,  # type: ignore[arg-type]  # only the part that lanes use
        name="g",
        concurrency=concurrency,
        batch_size=batch_size,
        quarantine=quarantine or Quarantine(),
        stop=stop,
        **options,
    )
    lanes.open()
    try:
        yield lanes
    finally:
        stop.set()
        lanes.close()


def records_of(part: PartitionState, keys: Sequence[bytes | None]) -> list[tuple[PartitionState, Any]]:
    return [(part, Message(number, key)) for number, key in enumerate(keys)]


def collect_results(lanes: Lanes, count: int) -> list[Finished]:
    found: list[Finished] = []

    def enough() -> bool:
        found.extend(lanes.collect(0.01))
        return len(found) >= count

    eventually(enough)
    return found


def test_records_of_a_key_go_one_after_another_and_hold_up_no_other() -> None:
    """A record waits for earlier records of its key, and delays no record of another key."""
    part, others_done = PartitionState(0), threading.Event()
    handling = Handling(lambda message: message.number or others_done.wait(30))
    with pool(handling) as lanes:
        lanes.put(records_of(part, [b"slow", b"b", b"slow", None, b"b", None]))
        assert sorted(message.offset() for one in collect_results(lanes, 4) for message in one.records) == [1, 3, 4, 5]
        assert len(lanes) == 1
        others_done.set()
        assert [one.records[0].offset() for one in collect_results(lanes, 2)] == [0, 2]
        assert len(lanes) == 0


def test_batches_are_of_one_assignment_and_in_order() -> None:
    """A batch has records of one assignment only, and records of a new assignment wait for the batch of the old one."""
    old, new = PartitionState(0), PartitionState(0)
    with pool(handling := Handling(), batch_size=3) as lanes:
        lanes.put([*records_of(old, [b"a"] * 4), *records_of(new, [b"a"])])
        assert len(collect_results(lanes, 3)) == 3
    assert handling.calls == [[0, 1, 2], [3], [0]]


def test_a_suspect_makes_batches_of_one_record() -> None:
    """While there is a suspect, each batch has one record, so that a crash shows which record caused it."""
    careful = Quarantine()
    careful.is_active = True
    with pool(handling := Handling(), batch_size=3, quarantine=careful) as lanes:
        lanes.put(records_of(PartitionState(0), [b"a"] * 3))
        assert len(collect_results(lanes, 3)) == 3
    assert handling.calls == [[0], [1], [2]]


def test_records_of_a_lost_partition_are_not_handled() -> None:
    """Records of a partition that was lost leave the lanes without being handled."""
    gone = PartitionState(0, is_assigned=False)
    with pool(handling := Handling()) as lanes:
        lanes.put(records_of(gone, [b"a", b"b"]))
        eventually(lambda: not lanes.collect(0.01) and not len(lanes))
    assert handling.calls == []


def test_a_fast_pool_gets_more_tasks_than_a_slow_one() -> None:
    """A slow pool gets few tasks; a fast pool gets more, so that the fast pool is not idle during a transaction."""
    part, now_s, hold = PartitionState(0), [0.0], threading.Event()
    hold.set()
    handling = Handling(lambda _: hold.wait(30))
    with pool(handling, clock=lambda: now_s[0]) as lanes:
        lanes.put(records_of(part, [None] * 100))
        collect_results(lanes, 100)
        now_s[0] += SPEED_INTERVAL_S
        assert lanes.depth == int(100 / SPEED_INTERVAL_S * LOOKAHEAD_S)
        hold.clear()
        lanes.put(records_of(part, [None] * 100))
        assert not lanes.is_crowded
        now_s[0] += SPEED_INTERVAL_S
        assert lanes.depth == 0
        assert lanes.is_crowded
        hold.set()


def test_a_defect_of_a_handler_is_raised_where_results_are_taken() -> None:
    """A defect of a handler is raised when its result is collected, which ends the pipeline."""

    def broken(_: Message) -> None:
        raise ZeroDivisionError("a defect")

    with pool(Handling(broken)) as lanes:
        lanes.put(records_of(PartitionState(0), [b"a"]))
        with pytest.raises(ZeroDivisionError):
            collect_results(lanes, 1)
