"""Where a group is in a partition when records are finished out of order.

Owns the form of a committed position: the lowest unfinished offset, and in its metadata a run-length map of what is
finished above it, then the tally of dead letters where there are any. Pure: no Kafka, no clock. The map is as long as
there are runs, and runs are separated by unfinished records, so a bound on unfinished records is a bound on the map; it
is never cut, which would repeat finished work.
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
    """The map of ``unfinished`` (ascending offsets, the first of them the committed one) below ``end``.

    Runs of unfinished and finished offsets take turns, as varints in base64 after the form's version. Empty when
    nothing above the committed offset is finished.
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
    """The unfinished offsets, and the end, of a position. Raises ConfigError for metadata of another form."""
    if not metadata:
        return [], offset
    wrong = ConfigError(
        f"the group's offset metadata is of another program or version: {metadata[:20]!r}",
        hint="stop the group and reset its offsets with Kafka's own tools, or run the version that wrote them",
    )
    if metadata[0] != _VERSION:
        raise wrong
    try:
        packed = base64.b64decode(metadata[1:] + "=" * (-(len(metadata) - 1) % 4), validate=True)
    except binascii.Error as exc:
        raise wrong from exc
    runs, number, shift = [], 0, 0
    for byte in packed:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            runs.append(number)
            number = shift = 0
    if shift or len(runs) % 2:
        raise wrong
    unfinished: list[int] = []
    for undone, done in zip(runs[::2], runs[1::2], strict=True):
        unfinished += range(offset, offset + undone)
        offset += undone + done
    return unfinished, offset


@define(eq=False)
class PartitionState:
    """One assignment of one partition: what is taken in and not finished.

    A new assignment is a new object, so its identity tells whether a result is still wanted: ``live`` is False once the
    partition went elsewhere. Everything from the lowest unfinished offset to ``end`` that is not in ``unfinished`` is
    finished, gaps of transactions and compaction included.
    """

    number: int
    member_id: bytes = b""
    """As whom the group knew the member that it was assigned to."""
    start: int = 0
    """The offset from which this assignment is fetched: no record below it is taken."""
    committed: int = 0
    """The offset that is committed now, as far as is known."""
    stored: tuple[int, str] | None = None
    """Offset and metadata as the group has them, as far as is known; None where the group has no position."""
    end: int = 0
    """The highest offset taken in, plus one."""
    unfinished: dict[int, None] = field(factory=dict)
    awaited: deque[int] = field(factory=deque)
    """Restored unfinished offsets that have not come from the log again yet."""
    tally: TallyState = field(factory=TallyState)
    is_assigned: bool = True
    is_paused: bool = False
    _last_polled: int = -1

    @classmethod
    def from_position(cls, number: int, offset: int, metadata: str) -> PartitionState:
        """The state that a committed position stands for. Raises ConfigError for a position of another form."""
        if offset < 0:
            raise ConfigError(f"partition {number}: {offset} is no offset to start from")
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
        """The state of a partition that is read from ``offset``, because the group has no position that is of use."""
        return cls(number=number, start=offset, committed=offset, stored=stored, end=offset)

    @property
    def unfinished_count(self) -> int:
        """How many records were taken in and are not finished."""
        return len(self.unfinished) - len(self.awaited)

    def admit(self, offset: int) -> bool:
        """Whether the record at ``offset`` is still to be done. Raises RtfmError for a record out of order."""
        if 0 <= self._last_polled < offset >= self.end and not self.awaited:  # as nearly all are
            self._last_polled = offset
            self.unfinished[offset] = None
            self.end = offset + 1
            return True
        if offset <= self._last_polled:
            raise RtfmError(f"partition {self.number} gave offset {offset} after {self._last_polled}")
        if offset < self.start:
            # The consumer was told to begin at ``start``. To take what it gives instead would do finished work again.
            raise RtfmError(f"partition {self.number} gave offset {offset}, but its assignment starts at {self.start}")
        self._last_polled = offset
        while self.awaited and self.awaited[0] < offset:
            del self.unfinished[self.awaited.popleft()]  # gone from the log
        if self.awaited and self.awaited[0] == offset:
            self.awaited.popleft()
            return True
        if offset < self.end:
            return False
        self.unfinished[offset] = None
        self.end = offset + 1
        return True

    def extend_to(self, end: int) -> bool:
        """Note that the log holds no record between the last one taken in and ``end``; whether that says more."""
        if end <= self.end or self.awaited:
            return False
        self.end = end
        return True

    def is_finished(self, offset: int) -> bool:
        """Whether the record at ``offset`` is done."""
        return offset < self.end and offset not in self.unfinished

    def count_unfinished_below(self, low: int) -> int:
        """How many offsets below ``low`` are not finished, those included that were never taken in."""
        return sum(offset < low for offset in self.unfinished) + max(0, low - self.end)

    @property
    def window(self) -> int:
        """Offsets from the lowest unfinished one to the end: what the map would have to tell of."""
        return self.end - next(iter(self.unfinished), self.end)

    def finish(self, offset: int) -> None:
        """Note that the record at ``offset`` is done."""
        del self.unfinished[offset]

    def position(self) -> tuple[int, str]:
        """Offset and metadata to commit."""
        metadata, tally = encode_map(self.unfinished, self.end), self.tally.encode()
        if tally:
            metadata = f"{metadata or _VERSION}{_TALLY}{tally}"
        return next(iter(self.unfinished), self.end), metadata
