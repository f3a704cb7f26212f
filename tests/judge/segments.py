"""Parses the log segments of Kafka's data folder: record batches of version 2, and what became of each transaction.

Promises for each record whether it is visible to a reader of committed records, from the control batches of the same
partition. A last batch that was not written whole is left out and reported; anything else that is not readable raises
Unreadable. Batches of versions 0 and 1, which Kafka 4 does not write, are unreadable.

Source of the format: https://kafka.apache.org/documentation/#recordbatch (batches, records and control records; the
checksum is CRC-32C of everything behind it) and KIP-98 (transactions end with a marker of their producer id).
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

# Base offset, length of what follows, leader epoch, version, checksum, attributes, last offset delta, base timestamp,
# largest timestamp, producer id, producer epoch, base sequence, number of records.
_HEADER = struct.Struct(">qiibIhiqqqhii")
_LENGTH_COUNTS_FROM = 12
_CHECKED_FROM = 21
_VERSION_AT = 16
_VERSION = 2

_COMPRESSION, _APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0b111, 0b1000, 0b1_0000, 0b10_0000
_CONTROL_KEY = struct.Struct(">hh")  # version, type


class Unreadable(Exception):
    """The files are not a log that can be read whole."""


class Outcome(Enum):
    """What became of the transaction of a batch."""

    NONE = "not transactional"
    COMMITTED = "committed"
    ABORTED = "aborted"
    OPEN = "open"

    @property
    def is_visible(self) -> bool:
        """Whether a reader of committed records is given the batch."""
        return self in (Outcome.NONE, Outcome.COMMITTED)


_MARKERS = {0: Outcome.ABORTED, 1: Outcome.COMMITTED}


@frozen(kw_only=True)
class Batch:
    """The header of a batch, and how its transaction ended."""

    topic: str
    partition: int
    base_offset: int
    last_offset: int
    leader_epoch: int
    compression: str
    producer_id: int
    """-1 where the producer is not idempotent."""
    producer_epoch: int
    base_sequence: int
    outcome: Outcome
    marker: int | None
    """Offset of the marker that ended its transaction."""


@frozen
class Record:
    """One record; it is known by the topic and partition of its ``batch``, and its ``offset``."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    packed_headers: bytes = field(repr=False)
    batch: Batch = field(repr=False, eq=False)

    @property
    def headers(self) -> list[tuple[str, bytes | None]]:
        """Names and values, in order."""
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
        """Whether a reader of committed records is given it."""
        return self.batch.outcome.is_visible


@frozen(kw_only=True)
class Marker:
    """A control record that ends the transaction of its producer."""

    offset: int
    timestamp_ms: int
    producer_id: int
    producer_epoch: int
    outcome: Outcome


@frozen(kw_only=True)
class PartitionLog:
    """A partition: everything that producers wrote, aborted and open records included, and the markers."""

    topic: str
    partition: int
    topic_id: str | None
    start: int
    """Offset of the first batch."""
    end: int
    """Offset behind the last batch."""
    records: tuple[Record, ...] = field(repr=False)
    markers: tuple[Marker, ...] = field(repr=False)
    torn: str | None
    """Where the last segment ends in a batch that was not written whole, and how many bytes that leaves out."""
    gaps: tuple[tuple[int, int], ...]
    """Offsets (from, to) that no batch holds, as the cleaner leaves them in a compacted topic."""

    @property
    def stable_end(self) -> int:
        """The last stable offset: a reader of committed records is given nothing from here on."""
        return next((record.offset for record in self.records if record.batch.outcome is Outcome.OPEN), self.end)


def partitions(data: Path, topic: str) -> dict[int, Path]:
    """Folders of ``topic`` in the data folder ``data``, by partition."""
    name = re.compile(re.escape(topic) + r"-(\d+)")
    return {int(found[1]): path for path in data.iterdir() if path.is_dir() and (found := name.fullmatch(path.name))}


def read_partition(folder: Path) -> PartitionLog:
    """The log in ``folder``, which is named TOPIC-PARTITION. Raises Unreadable, OSError."""
    topic, _, number = folder.name.rpartition("-")
    segments = sorted(folder.glob("*.log"))
    if not segments:
        raise Unreadable(f"{folder.name} has no segment")
    found: list[_Found] = []
    torn = None
    for path in segments:
        torn = _scan(path, found, is_last=path is segments[-1])
    start = int(segments[0].stem)
    gaps, end = [], start
    for one in found:
        if one.base_offset < end:
            raise Unreadable(f"{folder.name} holds offset {one.base_offset} again behind {end - 1}")
        if one.base_offset > end:
            gaps.append((end, one.base_offset))
        end = one.base_offset + one.last_delta + 1
    markers = {one.base_offset: marker for one in found if (marker := _marker(one)) is not None}
    records: list[Record] = []
    for one, (outcome, ended_at) in zip(found, _outcomes(found, markers), strict=True):
        if not one.attributes & _CONTROL:
            batch = _batch(topic, int(number), one, outcome, ended_at)
            records += [Record(*fields, batch) for fields in _unpacked(one)]
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
class _Found:
    """A batch in a segment, its records still packed."""

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


def _marker(one: _Found) -> Marker | None:
    """The marker that a batch is, or None. Raises Unreadable."""
    if not one.attributes & _CONTROL or not one.attributes & _TRANSACTIONAL:
        return None
    (_, timestamp_ms, key, _, _) = next(_unpacked(one))
    try:
        outcome = _MARKERS[_CONTROL_KEY.unpack(key or b"")[1]]
    except (struct.error, KeyError) as exc:
        raise Unreadable(f"{one.where}: a control record of an unknown type") from exc
    return Marker(
        offset=one.base_offset,
        timestamp_ms=timestamp_ms,
        producer_id=one.producer_id,
        producer_epoch=one.producer_epoch,
        outcome=outcome,
    )


def _scan(path: Path, found: list[_Found], *, is_last: bool) -> str | None:
    """Add the batches of a segment to ``found``; what is torn at its end, or None. Raises Unreadable."""
    data = path.read_bytes()
    view = memoryview(data)
    where = f"{path.parent.name}/{path.name}"
    at = 0
    while at < len(data):
        if (size := _whole_batch(view, at)) is None:
            if not is_last or (behind := _next_batch(data, view, at + 1)) is not None:
                more = "" if not is_last else f", and a whole batch follows at byte {behind}"
                raise Unreadable(f"{where} is not readable at byte {at}{more}")
            return f"{where} ends in a batch that was not written whole: {len(data) - at} bytes from byte {at}"
        packed = data[at + _HEADER.size : at + size]
        found.append(_Found(f"{where} at byte {at}", packed, *_HEADER.unpack_from(data, at)))
        at += size
    return None


def _whole_batch(view: memoryview, at: int) -> int | None:
    """The size in bytes of the batch at ``at``; None where none is whole there."""
    if at + _HEADER.size > len(view):
        return None
    _, length, _, version, checksum, *_ = _HEADER.unpack_from(view, at)
    size: int = length + _LENGTH_COUNTS_FROM
    if version != _VERSION or size < _HEADER.size or at + size > len(view):
        return None
    return size if crc32c(view[at + _CHECKED_FROM : at + size]) == checksum else None


def _next_batch(data: bytes, view: memoryview, start: int) -> int | None:
    """Where the first whole batch from ``start`` on begins."""
    at = data.find(_VERSION, start + _VERSION_AT)
    while at >= 0:
        if _whole_batch(view, at - _VERSION_AT) is not None:
            return at - _VERSION_AT
        at = data.find(_VERSION, at + 1)
    return None


def _outcomes(found: list[_Found], markers: dict[int, Marker]) -> list[tuple[Outcome, int | None]]:
    """For each batch how its transaction ended, and the offset of the marker that ended it."""
    outcomes: list[tuple[Outcome, int | None]] = []
    running: dict[int, list[int]] = {}
    for number, one in enumerate(found):
        outcomes.append((Outcome.NONE, None))
        if (marker := markers.get(one.base_offset)) is not None:
            for begun in running.pop(one.producer_id, ()):
                outcomes[begun] = marker.outcome, marker.offset
        elif one.attributes & _TRANSACTIONAL:
            outcomes[number] = Outcome.OPEN, None
            running.setdefault(one.producer_id, []).append(number)
    return outcomes


def _batch(topic: str, partition: int, one: _Found, outcome: Outcome, marker: int | None) -> Batch:
    return Batch(
        topic=topic,
        partition=partition,
        base_offset=one.base_offset,
        last_offset=one.base_offset + one.last_delta,
        leader_epoch=one.leader_epoch,
        compression=_compression(one),
        producer_id=one.producer_id,
        producer_epoch=one.producer_epoch,
        base_sequence=one.base_sequence,
        outcome=outcome,
        marker=marker,
    )


def _compression(one: _Found) -> str:
    try:
        return compression.NAMES[one.attributes & _COMPRESSION]
    except IndexError as exc:
        raise Unreadable(f"{one.where}: an unknown compression type") from exc


_Fields = tuple[int, int, bytes | None, bytes | None, bytes]
"""Of a record: offset, timestamp, key, value, packed headers."""


def _unpacked(one: _Found) -> Iterator[_Fields]:
    """The records of a batch. Raises Unreadable."""
    appended_ms = one.max_timestamp if one.attributes & _APPEND_TIME else None
    try:
        data = compression.decompress(_compression(one), one.packed)
        at = 0
        for _ in range(one.count):
            size, at = _varint(data, at)
            end = at + size
            timestamp_delta, at = _varint(data, at + 1)  # behind a byte of attributes, none of which is in use
            offset_delta, at = _varint(data, at)
            size, at = _varint(data, at)
            key = None if size < 0 else data[at : at + size]
            at += max(size, 0)
            size, at = _varint(data, at)
            value = None if size < 0 else data[at : at + size]
            at += max(size, 0)
            timestamp_ms = one.base_timestamp + timestamp_delta if appended_ms is None else appended_ms
            yield one.base_offset + offset_delta, timestamp_ms, key, value, data[at:end]
            at = end
    except (*compression.FAILURES, IndexError) as exc:
        raise Unreadable(f"{one.where}: its records are not readable: {exc}") from exc
    if at != len(data):
        raise Unreadable(f"{one.where}: its records are {at} bytes long, its data {len(data)}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The zigzag varint at ``at``, and where it ends."""
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
