"""The start of an assignment, from the group's position and the range of the log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from attrs import define, field
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from structlog.testing import capture_logs

from rtfm.errors import Unavailable
from rtfm.settings import Settings
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.position import PartitionState, encode_map
from rtfm.streams.starts import Starts
from rtfm.telemetry import LOST_RECORDS

NO_OFFSET = -1001
TOPIC = "bot-queries"
GROUP = "starts"


@define
class Log:
    """A consumer that returns the beginning and the end of the log; each call uses the next range."""

    ranges: Iterator[tuple[int, int] | KafkaError]

    def get_watermark_offsets(self, _: TopicPartition, timeout: float) -> tuple[int, int]:
        answer = next(self.ranges)
        if isinstance(answer, KafkaError):
            raise KafkaException(answer)
        return answer


@define
class Coordinator:
    """A coordinator that returns offsets with metadata in order; the last pair is repeated."""

    answers: Sequence[tuple[int, str]]
    asked: int = 0

    def read(self, numbers: list[int], _: float) -> list[TopicPartition]:
        offset, metadata = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [TopicPartition(TOPIC, number, offset, metadata) for number in numbers]


@define
class Clock:
    """A clock that advances only by calls of ``sleep``."""

    now_s: float = 0.0
    slept: list[float] = field(factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


def consumer_of(ranges: Iterator[tuple[int, int] | KafkaError]) -> Any:
    """Return the part of a consumer that is used to find a start."""
    return Log(ranges)


def start_of(
    coordinator: Coordinator, *log: tuple[int, int] | KafkaError, clock: Clock | None = None
) -> PartitionState:
    """Return where partition 0 starts; the last range of ``log`` is repeated."""
    clock = clock or Clock()

    def ranges() -> Iterator[tuple[int, int] | KafkaError]:
        yield from log
        while True:
            yield log[-1]

    starts = Starts(KafkaConfig.of(Settings()), topic=TOPIC, group=GROUP, clock=lambda: clock.now_s, sleep=clock.sleep)
    (start,) = starts.find(consumer_of(ranges()), [0], coordinator.read)
    return start


def lost() -> float:
    """Return the metric of lost records."""
    return float(LOST_RECORDS.labels(TOPIC, GROUP)._value.get())


def test_a_coordinator_that_says_no_offset_at_first_is_asked_again() -> None:
    """A coordinator that first answers "no offset" is asked again, because it may still be loading the group.

    The position that it returns later is the start.
    """
    start = start_of(Coordinator([(NO_OFFSET, ""), (116, "")]), (0, 130))
    assert (start.start, start.stored) == (116, (116, ""))


def test_a_new_group_starts_at_the_beginning_of_the_log_and_has_lost_nothing() -> None:
    """A new group starts at the beginning of the log and has lost nothing.

    The same holds for an added partition, and for a recreated topic, because Kafka removes a deleted topic's positions.
    """
    before, coordinator = lost(), Coordinator([(NO_OFFSET, "")])
    start = start_of(coordinator, (0, 130))
    assert (start.start, start.stored) == (0, None)
    assert coordinator.asked == 3
    assert lost() == before


def test_without_a_position_the_records_before_the_log_count_as_lost() -> None:
    """If the position expired or was not restored, the records before the beginning of the log count as lost."""
    before = lost()
    start = start_of(Coordinator([(NO_OFFSET, "")]), (40, 130))
    assert start.start == 40
    assert lost() == before + 40


def test_a_position_below_the_log_starts_at_the_log_and_the_difference_is_lost() -> None:
    """If retention removed records above the position, the log is read from its beginning.

    The removed records count as lost, except those that were finished.
    """
    before = lost()
    start = start_of(Coordinator([(10, encode_map([10, 15], 20))]), (30, 130))
    assert start.start == 30
    assert lost() == before + 12
    assert start.admit(30)


def test_a_log_that_ends_before_the_position_is_waited_for() -> None:
    """If the log ends below the position, its end is read again; a new leader may learn this end a moment later."""
    start = start_of(Coordinator([(116, "")]), (0, 100), (0, 110), (0, 116))
    assert start.start == 116


def test_a_log_that_stays_shorter_than_the_position_is_another_log() -> None:
    """If the log stays shorter than the position, the topic was recreated or lost records.

    The log is read from its beginning. The group's position is kept in ``stored``, so that the unknown outcome of a
    commit can be resolved.
    """
    start = start_of(Coordinator([(116, "")]), (0, 5))
    assert (start.start, start.stored) == (0, (116, ""))
    assert start.position() == (0, "")


@pytest.mark.parametrize("answer", [(-1, 5), KafkaError(KafkaError._TIMED_OUT)])
def test_a_log_whose_beginning_is_not_known_is_not_read(answer: tuple[int, int] | KafkaError) -> None:
    """If the beginning of the log is unknown, the partition is not read, because lost records could not be counted.

    The processor joins the group again.
    """
    with pytest.raises(Unavailable):
        start_of(Coordinator([(5, "")]), answer)


def test_a_position_behind_what_this_process_committed_is_asked_for_again() -> None:
    """If the position is behind this process's last commit, it is read again, because the coordinator may be wrong."""
    clock, coordinator = Clock(), Coordinator([(40, ""), (116, "")])
    starts = Starts(KafkaConfig.of(Settings()), topic=TOPIC, group=GROUP, clock=lambda: clock.now_s, sleep=clock.sleep)
    starts.remember(PartitionState.from_position(0, 116, ""))
    (start,) = starts.find(consumer_of(iter([(0, 130)])), [0], coordinator.read)
    assert start.start == 116


def test_a_position_that_stays_behind_is_used_and_named() -> None:
    """A position that stays behind the last commit is used as the start, and is logged."""
    clock, coordinator = Clock(), Coordinator([(40, "")])
    starts = Starts(KafkaConfig.of(Settings()), topic=TOPIC, group=GROUP, clock=lambda: clock.now_s, sleep=clock.sleep)
    starts.remember(PartitionState.from_position(0, 116, ""))
    with capture_logs() as lines:
        (start,) = starts.find(consumer_of(iter([(0, 130)])), [0], coordinator.read)
    assert start.start == 40
    assert [line["known"] for line in lines if "moved back" in line["event"]] == [116]
