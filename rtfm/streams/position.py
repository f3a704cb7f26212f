"""Position: the state of one assignment, and the position to commit when records finish out of order.

Owns the format of a committed position. Its offset is the lowest unfinished one. Its metadata holds the finished map, a
run-length map of what is finished above that offset, and after it the tally of dead letters if there are any.
Unfinished records separate the runs of the map, so that a bound on unfinished records bounds its length. The map is
never cut, because that would repeat finished records. Pure: no Kafka, no clock.
"""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import Iterable

from attrs import define, field

from rtfm.errors import ConfigError, RtfmError
from rtfm.streams.dead_letters.limits import TallyState

_VERSION = "1"
_TALLY = "."


def encode_map(unfinished: Iterable[int], end: int) -> str:
    """Return the finished map below ``end``, given the ``unfinished`` offsets, ascending from the committed one.

    The map alternates the lengths of runs of unfinished and finished offsets, as varints in base64 after the version of
    the format. It is empty if nothing above the committed offset is finished.
    """
    runs: list[int] = []
    start = stop = -1
    for offset in unfinished:
        if offset == stop:
            stop += 1
            continue
        if stop >= 0:
            runs += (stop - start, offset - stop)
        start, stop = offset, offset + 1
    if 0 <= stop < end:
        runs += (stop - start, end - stop)
    if not runs:
        return ""
    out = bytearray()
    for run in runs:
        while run > 127:
            out.append(run & 127 | 128)
            run >>= 7
        out.append(run)
    return _VERSION + base64.b64encode(out).decode().rstrip("=")


def decode_map(offset: int, metadata: str) -> tuple[list[int], int]:
    """Return the unfinished offsets and the end of a position. Raises ConfigError for metadata in another format."""
    if not metadata:
        return [], offset
    error = ConfigError(
        f"the group's offset metadata was written by another program or version: {metadata[:20]!r}",
        hint="stop the group and reset its offsets with Kafka's own tools, or run the version that wrote them",
    )
    if metadata[0] != _VERSION:
        raise error
    try:
        packed = base64.b64decode(metadata[1:] + "=" * (-(len(metadata) - 1) % 4), validate=True)
    except binascii.Error as exc:
        raise error from exc
    runs, number, shift = [], 0, 0
    for byte in packed:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            runs.append(number)
            number = shift = 0
    if shift or len(runs) % 2:
        raise error
    unfinished: list[int] = []
    for undone, done in zip(runs[::2], runs[1::2], strict=True):
        unfinished += range(offset, offset + undone)
        offset += undone + done
    return unfinished, offset


@define(eq=False)
class PartitionState:
    """One assignment of one partition, and which of its offsets are unfinished.

    A new assignment is a new object, and ``is_assigned`` of the old one is False from then on, so that late results of
    the old one are recognised. Every offset from the lowest unfinished one to ``end`` that is not in ``unfinished`` is
    finished, including offsets that hold no record because of transactions or compaction.
    """

    number: int
    member_id: bytes = b""
    """The id that the group gave to the member at the time of the assignment."""
    start: int = 0
    """The offset from which this assignment is fetched; no record below it is accepted."""
    committed: int = 0
    """The committed offset, as far as this process knows."""
    stored: tuple[int, str] | None = None
    """The group's offset and metadata, as far as this process knows; None if the group has no position."""
    end: int = 0
    """The highest polled offset plus one; higher if the log is known to end there."""
    unfinished: dict[int, None] = field(factory=dict)
    """Unfinished offsets in ascending order."""
    awaited: deque[int] = field(factory=deque)
    """Unfinished offsets of the restored position that have not been polled yet."""
    tally: TallyState = field(factory=TallyState)
    is_assigned: bool = True
    is_paused: bool = False
    _last_polled: int = -1

    @classmethod
    def from_position(cls, number: int, offset: int, metadata: str) -> PartitionState:
        """Restore the state from a committed position. Raises ConfigError for a position in another format."""
        if offset < 0:
            raise ConfigError(f"partition {number}: the position {offset} is not an offset")
        finished, _, tally = metadata.partition(_TALLY)
        unfinished, end = decode_map(offset, "" if finished == _VERSION else finished)
        return cls(
            number=number,
            start=offset,
            committed=offset,
            stored=(offset, metadata),
            end=end,
            unfinished=dict.fromkeys(unfinished),
            awaited=deque(unfinished),
            tally=TallyState.decode(tally),
        )

    @classmethod
    def from_offset(cls, number: int, offset: int, *, stored: tuple[int, str] | None = None) -> PartitionState:
        """Return the state of a partition that is read from ``offset``, because the group has no valid position."""
        return cls(number=number, start=offset, committed=offset, stored=stored, end=offset)

    @property
    def unfinished_count(self) -> int:
        """The number of records that were polled and are not finished."""
        return len(self.unfinished) - len(self.awaited)

    def admit(self, offset: int) -> bool:
        """Note that the record at ``offset`` was polled, and return whether it is unfinished.

        Raises RtfmError for a record out of order.
        """
        if 0 <= self._last_polled < offset >= self.end and not self.awaited:  # the usual case
            self._last_polled = offset
            self.unfinished[offset] = None
            self.end = offset + 1
            return True
        if offset <= self._last_polled:
            raise RtfmError(f"partition {self.number} gave offset {offset} after {self._last_polled}")
        if offset < self.start:
            # The consumer was told to begin at ``start``. Accepting an earlier record would repeat finished work.
            raise RtfmError(f"partition {self.number} gave offset {offset}, but its assignment starts at {self.start}")
        self._last_polled = offset
        while self.awaited and self.awaited[0] < offset:
            del self.unfinished[self.awaited.popleft()]  # no longer in the log
        if self.awaited and self.awaited[0] == offset:
            self.awaited.popleft()
            return True
        if offset < self.end:
            return False
        self.unfinished[offset] = None
        self.end = offset + 1
        return True

    def extend_to(self, end: int) -> bool:
        """Note that the log has no record from ``self.end`` to ``end``. Return whether that moves the end."""
        if end <= self.end or self.awaited:
            return False
        self.end = end
        return True

    def is_finished(self, offset: int) -> bool:
        """Return whether the record at ``offset`` is finished."""
        return offset < self.end and offset not in self.unfinished

    def count_unfinished_below(self, low: int) -> int:
        """Return the number of unfinished offsets below ``low``, including those that were never polled."""
        return sum(offset < low for offset in self.unfinished) + max(0, low - self.end)

    @property
    def window(self) -> int:
        """The number of offsets from the lowest unfinished one to ``end``, which the finished map covers."""
        return self.end - next(iter(self.unfinished), self.end)

    def finish(self, offset: int) -> None:
        """Note that the record at ``offset`` is finished."""
        del self.unfinished[offset]

    def reopen(self, offset: int) -> None:
        """Note that the record at ``offset`` is unfinished again, because its result is not committed."""
        self.unfinished = dict.fromkeys(sorted((*self.unfinished, offset)))

    def position(self) -> tuple[int, str]:
        """Return the offset and metadata to commit."""
        metadata, tally = encode_map(self.unfinished, self.end), self.tally.encode()
        if tally:
            metadata = f"{metadata or _VERSION}{_TALLY}{tally}"
        return next(iter(self.unfinished), self.end), metadata
