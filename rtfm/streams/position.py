"""Position: the state of one assignment, and the position to commit when records finish out of order.

This module owns the format of a committed position. The committed offset is the lowest unfinished one, or the end of
the window if all offsets are finished. The metadata contains the finished map, which says which offsets above the
committed one are finished. After the map follows the tally of dead letters, if there are dead letters. The finished map
is a list of run lengths. The length of the map is bounded by the number of unfinished records, because each run of
finished offsets follows an unfinished one. The map is never cut. If it were, the finished records beyond its end would
be handled again. This module uses neither Kafka nor a clock.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Iterable

from attrs import define, field

from rtfm.errors import ConfigError, RtfmError
from rtfm.streams.dead_letters.limits import TallyState

_VERSION = "1"
_TALLY = "."


def encode_map(unfinished: Iterable[int], end: int) -> str:
    """Return the finished map up to ``end`` (exclusive), given the ``unfinished`` offsets in ascending order.

    The map begins at the first unfinished offset. It consists of the version of the format and then, in base64, the
    lengths of the runs of unfinished and of finished offsets in turn, each as a varint. The map is empty if no offset
    above the first unfinished one is finished.
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
    """Return the unfinished offsets in a finished map that begins at ``offset``, and the end of the map (exclusive).

    Raises ConfigError if ``metadata`` has another format.
    """
    if not metadata:
        return [], offset
    error = ConfigError(
        f"the metadata of the group's position was written by another program or version: {metadata[:20]!r}",
        hint="stop the group and reset its offsets with Kafka's own tools, or run the version that wrote them",
    )
    if metadata[0] != _VERSION:
        raise error
    try:
        packed = base64.b64decode(metadata[1:] + "=" * (-(len(metadata) - 1) % 4), validate=True)
    except ValueError as exc:
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
    """The state of one assignment of a partition, above all which offsets are unfinished.

    Each assignment has its own object. ``is_assigned`` becomes False when the assignment ends, so that results that
    come later are recognised and dropped. Every offset below ``end`` that is not in ``unfinished`` is finished. The
    finished offsets include those without a record, which transactions and compaction leave.
    """

    number: int
    member_id: bytes = b""
    """The member id that this instance had in the group when the partition was assigned."""
    start: int = 0
    """The offset from which this assignment is read. Polling a record with a lower offset is an error."""
    committed: int = 0
    """The committed offset, as far as this process knows."""
    stored: tuple[int, str] | None = None
    """The group's offset and metadata, as far as this process knows; None if the group has no position."""
    end: int = 0
    """The offset after the window: the highest polled offset plus one, or a higher one if no record lies between them.

    When an assignment begins, this offset is the end of the restored finished map.
    """
    unfinished: dict[int, None] = field(factory=dict)
    """Unfinished offsets in ascending order."""
    awaited: deque[int] = field(factory=deque)
    """The offsets in ``unfinished`` that come from the restored position and have not been polled yet, ascending."""
    tally: TallyState = field(factory=TallyState)
    is_assigned: bool = True
    is_paused: bool = False
    _last_polled: int = -1

    @classmethod
    def from_position(cls, number: int, offset: int, metadata: str) -> PartitionState:
        """Restore the state from a committed position. Raises ConfigError if the position has another format."""
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
        """Return the state of a partition that starts at ``offset``, because the group has no usable position.

        ``stored`` is the unusable position, if there is one.
        """
        return cls(number=number, start=offset, committed=offset, stored=stored, end=offset)

    @property
    def unfinished_count(self) -> int:
        """The number of records that were polled and are not finished."""
        return len(self.unfinished) - len(self.awaited)

    def admit(self, offset: int) -> bool:
        """Note that the record at ``offset`` was polled, and return whether it is unfinished.

        Raises RtfmError if the offset is not higher than the last polled offset, or is below ``start``.
        """
        if 0 <= self._last_polled < offset >= self.end and not self.awaited:  # the usual case
            self._last_polled = offset
            self.unfinished[offset] = None
            self.end = offset + 1
            return True
        if offset <= self._last_polled:
            raise RtfmError(f"partition {self.number}: polled offset {offset} after {self._last_polled}")
        if offset < self.start:
            # The record may be finished already, and would be handled a second time.
            raise RtfmError(f"partition {self.number}: polled offset {offset}, but reading started at {self.start}")
        self._last_polled = offset
        while self.awaited and self.awaited[0] < offset:
            del self.unfinished[self.awaited.popleft()]  # The log no longer has the awaited record.
        if self.awaited and self.awaited[0] == offset:
            self.awaited.popleft()
            return True
        if offset < self.end:
            return False
        self.unfinished[offset] = None
        self.end = offset + 1
        return True

    def extend_to(self, end: int) -> bool:
        """Note that the log has no record from ``self.end`` up to ``end``. Return whether ``self.end`` was moved."""
        if end <= self.end or self.awaited:
            return False
        self.end = end
        return True

    def is_finished(self, offset: int) -> bool:
        """Return whether the record at ``offset`` is finished."""
        return offset < self.end and offset not in self.unfinished

    def count_unfinished_below(self, low: int) -> int:
        """Return the number of offsets below ``low`` that are unfinished or at or above ``end``."""
        return sum(offset < low for offset in self.unfinished) + max(0, low - self.end)

    @property
    def window(self) -> int:
        """The number of offsets in the window, which reaches from the lowest unfinished offset up to ``end``."""
        return self.end - next(iter(self.unfinished), self.end)

    def finish(self, offset: int) -> None:
        """Note that the record at ``offset``, which was unfinished, is finished."""
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
