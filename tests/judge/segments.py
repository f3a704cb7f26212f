"""Parses the log segments in Kafka's data folder: record batches of version 2, and the outcome of each transaction.

Whether a transaction was committed follows from the control batches in the same partition. An incomplete batch at the
end of the log is left out and reported. Other data that cannot be read raises Unreadable, and so do batches of versions
0 and 1, which Kafka 4 does not write.

The format is described at https://kafka.apache.org/documentation/#recordbatch (batches, records and control records;
the checksum is the CRC-32C of all bytes after it) and in KIP-98 (a transaction ends with a marker of its producer id).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from attrs import field, frozen

from tests.judge import compression
from tests.judge.checksum import crc32c

# Base offset, length of the rest, leader epoch, version, checksum, attributes, last offset delta, base timestamp,
# largest timestamp, producer id, producer epoch, base sequence, number of records.
_HEADER = struct.Struct(">qiibIhiqqqhii")
_LENGTH_COUNTS_FROM = 12
_CHECKED_FROM = 21
_VERSION_AT = 16
_VERSION = 2

_COMPRESSION, _APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0b111, 0b1000, 0b1_0000, 0b10_0000
_CONTROL_KEY = struct.Struct(">hh")  # version, type


class Unreadable(Exception):
    """The files of a partition are not a complete, readable log."""


class TransactionOutcome(Enum):
    """The outcome of the transaction to which a batch belongs."""

    NONE = "not transactional"
    COMMITTED = "committed"
    ABORTED = "aborted"
    OPEN = "open"

    @property
    def is_visible(self) -> bool:
        """Whether a reader of committed records gets the batch."""
        return self in (TransactionOutcome.NONE, TransactionOutcome.COMMITTED)


_MARKERS = {0: TransactionOutcome.ABORTED, 1: TransactionOutcome.COMMITTED}


@frozen(kw_only=True)
class Batch:
    """The header of a batch, and the outcome of its transaction."""

    topic: str
    partition: int
    base_offset: int
    last_offset: int
    leader_epoch: int
    compression: str
    producer_id: int
    """-1 if the producer is not idempotent."""
    producer_epoch: int
    base_sequence: int
    outcome: TransactionOutcome
    marker: int | None
    """The offset of the marker that ended the transaction, or None."""


@frozen
class Record:
    """One record. The topic and partition are those of its ``batch``."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    packed_headers: bytes = field(repr=False)
    batch: Batch = field(repr=False, eq=False)

    @property
    def headers(self) -> list[tuple[str, bytes | None]]:
        """The names and values of the headers, in order."""
        packed = self.packed_headers
        count, at = _varint(packed, 0)
        found: list[tuple[str, bytes | None]] = []
        for _ in range(count):
            size, at = _varint(packed, at)
            name, at = packed[at : at + size], at + size
            size, at = _varint(packed, at)
            value = None if size < 0 else packed[at : at + size]
            at += max(size, 0)
            found.append((name.decode(errors="replace"), value))
        return found

    @property
    def is_visible(self) -> bool:
        """Whether a reader of committed records gets the record."""
        return self.batch.outcome.is_visible


@frozen(kw_only=True)
class Marker:
    """A control record that ends a transaction of its producer."""

    offset: int
    timestamp_ms: int
    producer_id: int
    producer_epoch: int
    outcome: TransactionOutcome


@frozen(kw_only=True)
class PartitionLog:
    """The log of one partition: all records, including those of aborted and open transactions, and the markers."""

    topic: str
    partition: int
    topic_id: str | None
    start: int
    """The offset at which the first segment begins."""
    end: int
    """One more than the last offset of the last batch."""
    records: tuple[Record, ...] = field(repr=False)
    markers: tuple[Marker, ...] = field(repr=False)
    torn: str | None
    """A description of the incomplete batch at the end of the log, or None if there is none."""
    gaps: tuple[tuple[int, int], ...]
    """Ranges (first offset, end) that no batch contains. A compacted topic has such gaps."""

    @property
    def stable_end(self) -> int:
        """The last stable offset. A reader of committed records gets only records before it."""
        return next(
            (record.offset for record in self.records if record.batch.outcome is TransactionOutcome.OPEN), self.end
        )


def partitions(data: Path, topic: str) -> dict[int, Path]:
    """Return the folder of each partition of ``topic`` in Kafka's data folder."""
    name = re.compile(re.escape(topic) + r"-(\d+)")
    return {int(found[1]): path for path in data.iterdir() if path.is_dir() and (found := name.fullmatch(path.name))}


def read_partition(folder: Path) -> PartitionLog:
    """Read the log in ``folder``, whose name is TOPIC-PARTITION. Raises Unreadable, OSError."""
    topic, _, number = folder.name.rpartition("-")
    segments = sorted(folder.glob("*.log"))
    if not segments:
        raise Unreadable(f"{folder.name} has no segment")
    found: list[_PackedBatch] = []
    torn = None
    for path in segments:
        torn = _scan(path, found, is_last=path is segments[-1])
    start = int(segments[0].stem)
    gaps, end = [], start
    for raw in found:
        if raw.base_offset < end:
            raise Unreadable(f"{folder.name} has offset {raw.base_offset} again after {end - 1}")
        if raw.base_offset > end:
            gaps.append((end, raw.base_offset))
        end = raw.base_offset + raw.last_delta + 1
    markers = {raw.base_offset: marker for raw in found if (marker := _marker(raw)) is not None}
    records: list[Record] = []
    for raw, (outcome, ended_at) in zip(found, _outcomes(found, markers), strict=True):
        if not raw.attributes & _CONTROL:
            batch = _batch(topic, int(number), raw, outcome, ended_at)
            records += [Record(*fields, batch) for fields in _unpack(raw)]
    return PartitionLog(
        topic=topic,
        partition=int(number),
        topic_id=_topic_id(folder),
        start=start,
        end=end,
        records=tuple(records),
        markers=tuple(markers.values()),
        torn=torn,
        gaps=tuple(gaps),
    )


def _topic_id(folder: Path) -> str | None:
    try:
        text = (folder / "partition.metadata").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    found = re.search(r"^topic_id: (\S+)$", text, re.MULTILINE)
    return found[1] if found else None


@frozen
class _PackedBatch:
    """A batch as it is in a segment: its header, and its records before they are unpacked."""

    where: str
    packed: bytes
    base_offset: int
    length: int
    leader_epoch: int
    version: int
    checksum: int
    attributes: int
    last_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    count: int


def _marker(raw: _PackedBatch) -> Marker | None:
    """Return the marker in a batch, or None if the batch has none. Raises Unreadable."""
    if not raw.attributes & _CONTROL or not raw.attributes & _TRANSACTIONAL:
        return None
    (_, timestamp_ms, key, _, _) = next(_unpack(raw))
    try:
        outcome = _MARKERS[_CONTROL_KEY.unpack(key or b"")[1]]
    except (struct.error, KeyError) as exc:
        raise Unreadable(f"{raw.where}: a control record of an unknown type") from exc
    return Marker(
        offset=raw.base_offset,
        timestamp_ms=timestamp_ms,
        producer_id=raw.producer_id,
        producer_epoch=raw.producer_epoch,
        outcome=outcome,
    )


def _scan(path: Path, found: list[_PackedBatch], *, is_last: bool) -> str | None:
    """Add the batches of a segment to ``found``.

    If the last segment ends in an incomplete batch, return a description of it, otherwise None. Raises Unreadable.
    """
    data = path.read_bytes()
    view = memoryview(data)
    where = f"{path.parent.name}/{path.name}"
    at = 0
    while at < len(data):
        if (size := _complete_batch_size(view, at)) is None:
            if not is_last or (behind := _next_complete_batch(data, view, at + 1)) is not None:
                more = "" if not is_last else f", but a complete batch follows at byte {behind}"
                raise Unreadable(f"{where} is unreadable at byte {at}{more}")
            return f"{where} ends in an incomplete batch: {len(data) - at} bytes from byte {at}"
        packed = data[at + _HEADER.size : at + size]
        found.append(_PackedBatch(f"{where} at byte {at}", packed, *_HEADER.unpack_from(data, at)))
        at += size
    return None


def _complete_batch_size(view: memoryview, at: int) -> int | None:
    """Return the size in bytes of the batch at ``at``, or None if there is no complete batch."""
    if at + _HEADER.size > len(view):
        return None
    _, length, _, version, checksum, *_ = _HEADER.unpack_from(view, at)
    size: int = length + _LENGTH_COUNTS_FROM
    if version != _VERSION or size < _HEADER.size or at + size > len(view):
        return None
    return size if crc32c(view[at + _CHECKED_FROM : at + size]) == checksum else None


def _next_complete_batch(data: bytes, view: memoryview, start: int) -> int | None:
    """Return where the first complete batch at or after ``start`` begins, or None if there is none."""
    at = data.find(_VERSION, start + _VERSION_AT)
    while at >= 0:
        if _complete_batch_size(view, at - _VERSION_AT) is not None:
            return at - _VERSION_AT
        at = data.find(_VERSION, at + 1)
    return None


def _outcomes(found: list[_PackedBatch], markers: dict[int, Marker]) -> list[tuple[TransactionOutcome, int | None]]:
    """Return for each batch the outcome of its transaction, and the offset of the marker that ended it."""
    outcomes: list[tuple[TransactionOutcome, int | None]] = []
    running: dict[int, list[int]] = {}
    for number, raw in enumerate(found):
        outcomes.append((TransactionOutcome.NONE, None))
        if (marker := markers.get(raw.base_offset)) is not None:
            for begun in running.pop(raw.producer_id, ()):
                outcomes[begun] = marker.outcome, marker.offset
        elif raw.attributes & _TRANSACTIONAL:
            outcomes[number] = TransactionOutcome.OPEN, None
            running.setdefault(raw.producer_id, []).append(number)
    return outcomes


def _batch(topic: str, partition: int, raw: _PackedBatch, outcome: TransactionOutcome, marker: int | None) -> Batch:
    return Batch(
        topic=topic,
        partition=partition,
        base_offset=raw.base_offset,
        last_offset=raw.base_offset + raw.last_delta,
        leader_epoch=raw.leader_epoch,
        compression=_compression(raw),
        producer_id=raw.producer_id,
        producer_epoch=raw.producer_epoch,
        base_sequence=raw.base_sequence,
        outcome=outcome,
        marker=marker,
    )


def _compression(raw: _PackedBatch) -> str:
    try:
        return compression.NAMES[raw.attributes & _COMPRESSION]
    except IndexError as exc:
        raise Unreadable(f"{raw.where}: an unknown compression type") from exc


_RecordFields = tuple[int, int, bytes | None, bytes | None, bytes]
"""The offset, timestamp, key, value and packed headers of a record."""


def _unpack(raw: _PackedBatch) -> Iterator[_RecordFields]:
    """Yield the fields of each record of a batch. Raises Unreadable."""
    appended_ms = raw.max_timestamp if raw.attributes & _APPEND_TIME else None
    try:
        data = compression.decompress(_compression(raw), raw.packed)
        at = 0
        for _ in range(raw.count):
            size, at = _varint(data, at)
            end = at + size
            timestamp_delta, at = _varint(data, at + 1)  # skips the record's attributes, which are unused
            offset_delta, at = _varint(data, at)
            size, at = _varint(data, at)
            key = None if size < 0 else data[at : at + size]
            at += max(size, 0)
            size, at = _varint(data, at)
            value = None if size < 0 else data[at : at + size]
            at += max(size, 0)
            timestamp_ms = raw.base_timestamp + timestamp_delta if appended_ms is None else appended_ms
            yield raw.base_offset + offset_delta, timestamp_ms, key, value, data[at:end]
            at = end
    except (*compression.FAILURES, IndexError) as exc:
        raise Unreadable(f"{raw.where}: its records are unreadable: {exc}") from exc
    if at != len(data):
        raise Unreadable(f"{raw.where}: its records are {at} bytes long, but its data is {len(data)}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the zigzag varint at ``at``, and the place after it."""
    byte = data[at]
    at += 1
    if byte < 128:
        return (byte >> 1) ^ -(byte & 1), at
    number, shift = byte & 127, 7
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return (number >> 1) ^ -(number & 1), at
        shift += 7
