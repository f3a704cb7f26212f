"""Reads the positions that groups committed, from __consumer_offsets, in the order in which they took effect.

A position that is committed in a transaction takes effect at the marker that commits the transaction. If a later record
sets the position of the same partition before that marker, the earlier position never takes effect. A tombstone removes
the position of a partition, and also all positions of this partition that wait for their marker. Kafka's
``OffsetMetadataManager.replay`` and ``replayEndTransactionMarker`` do the same.

The format is defined by ``OffsetCommitKey.json`` and ``OffsetCommitValue.json`` of Kafka's group coordinator. Keys have
versions 0 and 1, and values have versions 0 to 4. Records with keys of other versions are not positions.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from heapq import merge
from pathlib import Path

from attrs import define, evolve, field, frozen

from tests.judge.segments import (
    Marker,
    PartitionLog,
    Record,
    TransactionOutcome,
    Unreadable,
    partitions,
    read_partition,
)

TOPIC = "__consumer_offsets"
_KEYS = (0, 1)
_NO_METADATA_LENGTH = -1

Where = tuple[str, str, int]
"""The group, topic and partition to which a position belongs."""


@frozen(kw_only=True)
class PositionCommit:
    """One commit of a group's position in one partition."""

    group: str
    topic: str
    partition: int
    offset: int | None
    """The next offset to read. None for a tombstone, which removes the position."""
    metadata: str
    leader_epoch: int
    committed_at_ms: int
    written: Record
    """The record of the commit in __consumer_offsets."""
    is_applied: bool
    """Whether the commit set the group's position."""
    applied_at_ms: int | None = None
    """When the commit took effect, or None if it did not.

    It is the time of the marker that ended the transaction, or of the record if there was no transaction.
    """


def read_positions(data: Path) -> dict[Where, list[PositionCommit]]:
    """Read all commits in Kafka's data folder, in the order in which they took effect. Raises Unreadable, OSError."""
    found: dict[Where, list[PositionCommit]] = {}
    for folder in partitions(data, TOPIC).values():
        for where, positions in positions_of(read_partition(folder)).items():
            found.setdefault(where, []).extend(positions)
    return found


def positions_of(log: PartitionLog) -> dict[Where, list[PositionCommit]]:
    """Return the commits in one partition of __consumer_offsets, in the order in which they took effect.

    A commit that had no effect is listed where this became certain: at the marker of its transaction, at a tombstone,
    at a later commit in the same transaction, or at the end of the log.
    """
    replay = _ReplayState()
    events: Iterable[Record | Marker] = merge(log.records, log.markers, key=lambda event: event.offset)
    for event in events:
        if isinstance(event, Marker):
            replay.end_transaction(event)
        elif (commit := _position(event)) is not None:
            replay.add(commit)
    return replay.finish()


@define
class _ReplayState:
    """The commits in one partition of __consumer_offsets up to one place in its log."""

    _history: dict[Where, list[PositionCommit]] = field(factory=dict)
    _current: dict[Where, int] = field(factory=dict)
    """For each position, the offset in __consumer_offsets of the record that set the position."""
    _pending: dict[int, dict[Where, PositionCommit]] = field(factory=dict)
    """Commits of open transactions by producer id."""

    def add(self, commit: PositionCommit) -> None:
        """Apply ``commit``, or keep it until the marker of its transaction."""
        where = commit.group, commit.topic, commit.partition
        batch = commit.written.batch
        if commit.offset is None:
            for waiting in self._pending.values():
                self._drop(waiting, where)
            self._note(where, commit, is_applied=True)
            del self._current[where]
        elif batch.outcome is TransactionOutcome.NONE:
            self._note(where, commit, is_applied=True)
        else:
            waiting = self._pending.setdefault(batch.producer_id, {})
            self._drop(waiting, where)
            waiting[where] = commit

    def end_transaction(self, marker: Marker) -> None:
        """Apply or drop the commits that waited for ``marker``."""
        for where, position in self._pending.pop(marker.producer_id, {}).items():
            is_newer = self._current.get(where, -1) < position.written.offset
            is_applied = marker.outcome is TransactionOutcome.COMMITTED and is_newer
            self._note(where, position, is_applied=is_applied, at_ms=marker.timestamp_ms)

    def finish(self) -> dict[Where, list[PositionCommit]]:
        """Drop the commits that still wait for a marker, and return all commits."""
        for waiting in self._pending.values():
            for where in list(waiting):
                self._drop(waiting, where)
        return self._history

    def _drop(self, waiting: dict[Where, PositionCommit], where: Where) -> None:
        if (dropped := waiting.pop(where, None)) is not None:
            self._note(where, dropped, is_applied=False)

    def _note(self, where: Where, position: PositionCommit, *, is_applied: bool, at_ms: int | None = None) -> None:
        if is_applied:
            self._current[where] = position.written.offset
        applied_at_ms = (position.written.timestamp_ms if at_ms is None else at_ms) if is_applied else None
        noted = evolve(position, is_applied=is_applied, applied_at_ms=applied_at_ms)
        self._history.setdefault(where, []).append(noted)


def _position(record: Record) -> PositionCommit | None:
    """Return the commit in a record, or None if the record is not a position. Raises Unreadable."""
    try:
        key = _Fields(record.key or b"")
        if key.take(">h") not in _KEYS:
            return None
        group, topic, partition = key.text(), key.text(), key.take(">i")
        offset, leader_epoch, metadata, committed_at_ms = None, -1, "", record.timestamp_ms
        if record.value is not None:
            value = _Fields(record.value)
            version = value.take(">h")
            offset = value.take(">q")
            if version >= 3:
                leader_epoch = value.take(">i")
            metadata = value.text() if version < 4 else value.compact_text()
            committed_at_ms = value.take(">q")
    except (struct.error, IndexError, UnicodeDecodeError) as exc:
        batch = record.batch
        raise Unreadable(f"{TOPIC}-{batch.partition}: offset {record.offset} is not a position: {exc}") from exc
    return PositionCommit(
        group=group,
        topic=topic,
        partition=partition,
        offset=offset,
        metadata=metadata,
        leader_epoch=leader_epoch,
        committed_at_ms=committed_at_ms,
        written=record,
        is_applied=False,
    )


class _Fields:
    """Reads the fields of a record in order."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, form: str) -> int:
        """Read a number. ``form`` is its format in the notation of ``struct``."""
        (number,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return int(number)

    def text(self) -> str:
        """Read the length of a string from two bytes, and then the string. Return an empty string for null."""
        return self._text(self.take(">h"))

    def compact_text(self) -> str:
        """Read an unsigned varint, the length of a string plus one, and then the string. Return "" for null."""
        number = shift = 0
        while True:
            byte = self.take(">B")
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return self._text(number - 1)

    def _text(self, size: int) -> str:
        if size == _NO_METADATA_LENGTH:
            return ""
        data = self._data[self._at : self._at + size]
        if len(data) != size:
            raise IndexError("a string is cut off")
        self._at += size
        return data.decode()
