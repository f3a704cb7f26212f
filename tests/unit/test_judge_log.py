"""The judge's parser with bytes made by hand, some of which no healthy Kafka writes."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.judge.checksum import crc32c
from tests.judge.compression import decompress
from tests.judge.segments import PartitionLog, TransactionOutcome, Unreadable, read_partition
from tests.judging import batch, marker, record


def log(folder: Path, *segments: bytes, starts: tuple[int, ...] = (0,)) -> PartitionLog:
    """Return the log of a partition with ``segments``, which begin at the offsets ``starts``."""
    path = folder / "some-topic-4"
    path.mkdir()
    for start, data in zip(starts, segments, strict=True):
        (path / f"{start:020}.log").write_bytes(data)
    return read_partition(path)


def single(offset: int, value: bytes = b"v", **options: int) -> bytes:
    """Return a batch of one record."""
    return batch(offset, [record(b"k", value)], **options)


@pytest.mark.parametrize(
    ("data", "checksum"),
    [(b"123456789", 0xE3069283), (b"\0" * 32, 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)],
)
def test_the_checksum_is_that_of_rfc_3720(data: bytes, checksum: int) -> None:
    """The checksum is that of the examples in RFC 3720, appendix B.4."""
    assert crc32c(memoryview(data)) == checksum


@given(st.binary(min_size=4, max_size=2000))
def test_the_checksum_of_any_length_is_that_of_one_bit_after_another(data: bytes) -> None:
    """The checksum is computed with tables, and equals that of the bitwise definition for any bytes."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
    assert crc32c(memoryview(data)) == remainder ^ 0xFFFFFFFF


@given(
    st.lists(
        st.tuples(st.none() | st.binary(), st.none() | st.binary(), st.dictionaries(st.text(), st.binary())), max_size=9
    )
)
def test_any_record_is_read_as_it_was_written(
    records: list[tuple[bytes | None, bytes | None, dict[str, bytes]]],
) -> None:
    """A record is read as it was written, even if its key, value or headers are missing or empty."""
    packed = [record(key, value, [*headers.items()], delta=n) for n, (key, value, headers) in enumerate(records)]
    with tempfile.TemporaryDirectory() as folder:
        found = log(Path(folder), batch(0, packed, at_ms=5) if packed else b"")
    assert [(r.key, r.value, r.headers) for r in found.records] == [(k, v, [*h.items()]) for k, v, h in records]
    assert [r.offset for r in found.records] == list(range(len(records)))
    assert {r.timestamp_ms for r in found.records} <= {5}


def test_the_markers_of_a_producer_end_its_own_transaction_only(tmp_path: Path) -> None:
    """A marker ends only the transaction of its own producer, even if transactions are interleaved in the partition."""
    data = (
        single(0, attributes=16, producer=1) + single(1, attributes=16, producer=2) + single(2) + single(3, producer=3)
    )
    data += (
        single(4, attributes=16, producer=1) + marker(5, commit=False, producer=2) + marker(6, commit=True, producer=1)
    )
    data += single(7, attributes=16, producer=1) + single(8)
    found = log(tmp_path, data)
    assert [(r.offset, r.batch.outcome, r.batch.marker) for r in found.records] == [
        (0, TransactionOutcome.COMMITTED, 6),
        (1, TransactionOutcome.ABORTED, 5),
        (2, TransactionOutcome.NONE, None),
        (3, TransactionOutcome.NONE, None),
        (4, TransactionOutcome.COMMITTED, 6),
        (7, TransactionOutcome.OPEN, None),
        (8, TransactionOutcome.NONE, None),
    ]
    assert (found.start, found.end, found.stable_end) == (0, 9, 7)
    assert [(m.offset, m.producer_id, m.outcome) for m in found.markers] == [
        (5, 2, TransactionOutcome.ABORTED),
        (6, 1, TransactionOutcome.COMMITTED),
    ]


def test_a_transaction_continues_in_the_next_segment(tmp_path: Path) -> None:
    """A transaction may continue in the next segment, and its marker may be there."""
    found = log(
        tmp_path, single(0, attributes=16, producer=1), marker(1, commit=True, producer=1) + single(2), starts=(0, 1)
    )
    assert [r.batch.outcome for r in found.records] == [TransactionOutcome.COMMITTED, TransactionOutcome.NONE]


@pytest.mark.parametrize("left", [1, 20, 60, 61, 69])
def test_a_last_batch_that_is_not_whole_is_left_out_and_reported(tmp_path: Path, left: int) -> None:
    """If a broker was killed during a write, its last batch is incomplete. This batch is left out and reported."""
    found = log(tmp_path, single(0) + single(1)[:left])
    assert [r.offset for r in found.records] == [0]
    assert found.torn == f"some-topic-4/{0:020}.log ends in an incomplete batch: {left} bytes from byte 70"


def test_zeros_at_the_end_are_left_out_and_reported(tmp_path: Path) -> None:
    """After a loss of power, some file systems leave zeros at the end. The zeros are left out and reported."""
    found = log(tmp_path, single(0) + bytes(500))
    assert ([r.offset for r in found.records], "500 bytes" in (found.torn or "")) == ([0], True)


def flipped(data: bytes, at: int) -> bytes:
    """Return ``data`` with one bit changed at ``at``."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("at", [9, 16, 18, 30, 65])
def test_a_bad_batch_before_a_whole_one_is_unreadable(tmp_path: Path, at: int) -> None:
    """A bad batch before a valid one makes the log unreadable.

    In the test, the fault is in the length, version, checksum, header or records of the batch.
    """
    with pytest.raises(Unreadable, match="is unreadable at byte 0, but a complete batch follows at byte 70"):
        log(tmp_path, flipped(single(0), at) + single(1))


def test_a_torn_batch_in_a_segment_that_is_not_the_last_is_unreadable(tmp_path: Path) -> None:
    """An incomplete batch in an earlier segment makes the log unreadable.

    A broker starts a new segment only after a complete batch.
    """
    with pytest.raises(Unreadable, match="is unreadable at byte 0"):
        log(tmp_path, single(0)[:-1], single(1), starts=(0, 1))


def test_missing_offsets_are_reported_as_gaps(tmp_path: Path) -> None:
    """Missing offsets are reported as gaps, within a segment, between segments, and at the start of a segment."""
    found = log(tmp_path, single(3) + single(5), single(9), starts=(3, 8))
    assert (found.start, found.end, found.gaps) == (3, 10, ((4, 5), (6, 9)))


def test_an_offset_that_comes_again_is_unreadable(tmp_path: Path) -> None:
    """An offset that occurs twice makes the log unreadable."""
    with pytest.raises(Unreadable, match="has offset 0 again after 0"):
        log(tmp_path, single(0) + single(0))


def test_records_that_are_not_what_the_batch_says_are_unreadable(tmp_path: Path) -> None:
    """Records that contradict their batch make the log unreadable, even if the checksum is valid."""
    for number, data in enumerate(
        (single(0, attributes=4), single(0, attributes=1), batch(0, [b"\x40"]), batch(0, [b""]))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(Unreadable, match="byte 0: its records are"):
            log(folder, data)


def test_an_unknown_compression_and_an_unknown_marker_are_unreadable(tmp_path: Path) -> None:
    """An unknown compression or kind of marker makes the log unreadable; a later Kafka may write one."""
    with pytest.raises(Unreadable, match="an unknown compression type"):
        log(tmp_path, single(0, attributes=7))
    (tmp_path / "some-topic-4").rename(tmp_path / "other")
    unknown = batch(0, [record(struct.pack(">hh", 0, 9), b"")], attributes=0x30, producer=1)
    with pytest.raises(Unreadable, match="an unknown type"):
        log(tmp_path, unknown)


def test_a_control_batch_without_a_transaction_is_no_marker(tmp_path: Path) -> None:
    """A control batch that is in no transaction is not a marker.

    Kafka's metadata log has such batches for leaders and snapshots.
    """
    found = log(tmp_path, batch(0, [record(struct.pack(">hh", 0, 2), b"")], attributes=0x20) + single(1))
    assert ([r.offset for r in found.records], found.markers) == ([1], ())


def test_log_append_time_is_the_time_of_all_records(tmp_path: Path) -> None:
    """With message.timestamp.type=LogAppendTime, all records of a batch have the time of the batch."""
    found = log(tmp_path, single(0, attributes=8, at_ms=123))
    assert [r.timestamp_ms for r in found.records] == [123]


def test_a_folder_without_segments_is_unreadable(tmp_path: Path) -> None:
    """A folder without segments is unreadable, because a partition has at least an empty segment."""
    with pytest.raises(Unreadable, match="some-topic-4 has no segment"):
        log(tmp_path, starts=())


def test_snappy_of_the_java_client_is_read(tmp_path: Path) -> None:
    """The Java client writes Snappy data as several blocks after magic bytes. Such data can be read."""
    blocks = [bytes(cramjam.snappy.compress_raw(part)) for part in (b"hello ", b"world")]
    data = b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1) + b"".join(struct.pack(">i", len(b)) + b for b in blocks)
    assert decompress("snappy", data) == b"hello world"
