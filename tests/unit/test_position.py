"""A group's position when records finish out of order."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer
from hypothesis import given
from hypothesis import strategies as st

from rtfm.errors import ConfigError, RtfmError
from rtfm.streams.position import PartitionState, decode_map, encode_map
from rtfm.streams.transactions import is_member, member_id


@pytest.mark.parametrize("metadata", ["2AQE", "hello", "1***", "1gA", "1AQ"])
def test_metadata_of_another_form_stops_the_processor(metadata: str) -> None:
    """Metadata in an unknown format ends the processor, because ignoring it would repeat or skip records."""
    with pytest.raises(ConfigError, match="another program or version"):
        decode_map(7, metadata)


def test_records_out_of_order_stop_the_processor() -> None:
    """If the offset of a record is not above that of the record polled before it, an error is raised."""
    part = PartitionState(number=0)
    assert part.admit(5)
    with pytest.raises(RtfmError, match="offset 5 after 5"):
        part.admit(5)


def test_a_consumer_that_is_in_no_group_is_no_member() -> None:
    """A consumer outside a group is recognised, because a broker would accept its offsets unchecked.

    The test fails if librdkafka changes the format of the bytes that describe a member.
    """
    consumer = Consumer({"bootstrap.servers": "localhost:1", "group.id": "none", "log_level": 0})
    assert not is_member(consumer.consumer_group_metadata())
    assert is_member(b"CGMDv2:" + (3).to_bytes(4, "little") + b"rest")


def test_the_id_of_a_member_is_read_from_what_librdkafka_says_of_it() -> None:
    """In the bytes by which librdkafka describes a member, the member id is between group name and instance id.

    A consumer outside a group has no member id.
    """
    consumer = Consumer({"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "log_level": 0})
    assert member_id(consumer.consumer_group_metadata()) == b""
    assert member_id(b"CGMDv2:" + (3).to_bytes(4, "little") + b"group\0member-1\0instance\0") == b"member-1"
    consumer.close()


def test_without_gaps_there_is_no_map() -> None:
    """A position without gaps has empty metadata, like a position that Kafka's own tools set."""
    part = PartitionState(number=0)
    for offset in range(10):
        part.admit(offset)
        part.finish(offset)
    assert part.position() == (10, "")
    assert decode_map(10, "") == ([], 10)


def test_the_position_is_the_lowest_unfinished_record_and_the_rest_is_not_done_again() -> None:
    """The position is the lowest unfinished offset, and a new assignment skips the finished records above it."""
    part = PartitionState(number=0)
    for offset in range(10):
        part.admit(offset)
    for offset in (0, 1, 3, 4, 8):
        part.finish(offset)
    offset, metadata = part.position()
    assert offset == 2
    again = PartitionState.from_position(0, offset, metadata)
    assert [n for n in range(2, 12) if again.admit(n)] == [2, 5, 6, 7, 9, 10, 11]


def test_awaited_records_that_the_log_no_longer_has_are_dropped() -> None:
    """Awaited records that retention or compaction removed are dropped, so that the position does not wait for them."""
    part = PartitionState.from_position(0, 2, encode_map([2, 5, 6], 9))
    assert [offset for offset in (6, 9) if part.admit(offset)] == [6, 9]
    assert part.position()[0] == 6


def test_a_record_below_the_start_of_an_assignment_stops_the_processor() -> None:
    """A record below the start of its assignment ends the processor.

    The record is committed already, so something other than the group moved the consumer back.
    """
    part = PartitionState.from_position(0, 100, encode_map([100], 105))
    with pytest.raises(RtfmError, match="polled offset 0, but reading started at 100"):
        part.admit(0)
    assert part.admit(100)
    assert part.position() == (100, encode_map([100], 105))


def test_a_negative_offset_is_not_a_position() -> None:
    """A negative offset means "no offset"; as a position it is an error, and it does not become 0."""
    with pytest.raises(ConfigError, match="-1001 is not an offset"):
        PartitionState.from_position(0, -1001, "")


@given(st.integers(0, 2**40), st.lists(st.tuples(st.integers(1, 300), st.integers(1, 20_000)), max_size=50))
def test_a_position_says_what_is_unfinished(start: int, runs: list[tuple[int, int]]) -> None:
    """A map that is encoded and decoded has the same unfinished offsets, for any runs."""
    unfinished: list[int] = []
    end = start
    for undone, done in runs:
        unfinished += range(end, end + undone)
        end += undone + done
    assert decode_map(start, encode_map(unfinished, end)) == (unfinished, end)


@given(st.sets(st.integers(0, 400)), st.sets(st.integers(0, 400)))
def test_after_a_restart_exactly_the_unfinished_records_are_handled(taken: set[int], finished: set[int]) -> None:
    """After a restart, exactly the unfinished records are handled, even if the log has gaps, as after transactions."""
    part = PartitionState(number=0)
    for offset in sorted(taken):
        assert part.admit(offset)
        if offset in finished:
            part.finish(offset)
    restored = PartitionState.from_position(0, *part.position())
    again = [offset for offset in sorted(taken) if offset >= restored.start and restored.admit(offset)]
    assert again == sorted(taken - finished)


def test_the_map_stays_within_what_a_broker_takes() -> None:
    """The map fits into a broker's 4,096 bytes of metadata, even if every other record is finished."""
    assert len(encode_map(range(0, 1400, 2), 1401)) < 4096


def test_awaited_records_do_not_fill_a_partition() -> None:
    """Awaited records do not count towards the limit of a partition.

    Otherwise a partition that was full at a stop would wait forever.
    """
    part = PartitionState.from_position(0, 0, encode_map(range(0, 1400, 2), 1401))
    assert part.unfinished_count == 0
    assert part.admit(0)
    assert part.unfinished_count == 1


def test_a_position_that_moves_on_during_a_replay_is_no_new_topic() -> None:
    """After a restart, records that are finished in the restored map are skipped even if the position moves on."""
    part = PartitionState.from_position(0, 10, encode_map([10, 15], 20))
    assert part.admit(10)
    part.finish(10)
    assert part.position()[0] == 15
    assert [offset for offset in range(11, 22) if part.admit(offset)] == [15, 20, 21]


def test_what_retention_removed_is_counted_without_what_was_finished() -> None:
    """The number of records that retention removed does not include finished ones.

    In the test, the offsets 10 to 21 are removed. Of these, two were unfinished and two were never polled.
    """
    part = PartitionState.from_position(0, 10, encode_map([10, 15], 20))
    assert part.count_unfinished_below(22) == 4
    assert part.count_unfinished_below(10) == 0


def test_the_window_spans_the_finished_map() -> None:
    """The window goes from the lowest unfinished offset to the highest polled one; it is empty if all are finished."""
    part = PartitionState.from_position(0, 10, "")
    for offset in range(10, 20):
        assert part.admit(offset)
    assert part.window == 10
    for offset in (10, 11, 15):
        part.finish(offset)
    assert part.window == 8
    for offset in (12, 13, 14, 16, 17, 18, 19):
        part.finish(offset)
    assert part.window == 0
