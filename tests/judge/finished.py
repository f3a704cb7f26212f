"""Decodes which offsets are finished according to a committed position.

All offsets below the position are finished, and so are the offsets that the finished map in the position's metadata
marks as finished. The finished map is ``1``, followed by varints in base64 without padding. A varint has seven bits in
each byte, the lowest bits first. Each number is the length of a run of offsets. The first run begins at the
position and is unfinished, the second run is finished, and so on in turn. After a dot, a tally of dead letters may
follow. docs/delivery.md describes the format.
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_right

from attrs import field, frozen

_VERSION = "1"
_TALLY = "."


@frozen
class FinishedOffsets:
    """A set of finished offsets, as ordered runs (first offset, end). The first run begins at 0."""

    runs: tuple[tuple[int, int], ...] = field()

    @classmethod
    def decode(cls, offset: int, metadata: str) -> FinishedOffsets:
        """Decode a position. Raises ValueError for metadata of another format."""
        runs = [(0, offset)]
        packed, _, _ = metadata.removesuffix("\0").partition(_TALLY)
        if packed:
            if packed[0] != _VERSION:
                raise ValueError(f"metadata of an unknown format: {metadata[:20]!r}")
            lengths = _varints(packed[1:])
            if len(lengths) % 2:
                raise ValueError(f"metadata ends in an unfinished run: {metadata[:20]!r}")
            for unfinished, done in zip(lengths[::2], lengths[1::2], strict=True):
                runs.append((offset + unfinished, offset + unfinished + done))
                offset = runs[-1][1]
        return cls(tuple(runs))

    @property
    def position(self) -> int:
        """The lowest unfinished offset."""
        return self.runs[0][1]

    @property
    def end(self) -> int:
        """One more than the highest finished offset."""
        return self.runs[-1][1]

    def is_finished(self, offset: int) -> bool:
        """Return whether ``offset`` is finished."""
        number = bisect_right(self.runs, (offset, self.end + 1)) - 1
        return number >= 0 and offset < self.runs[number][1]

    def first_lost(self, later: FinishedOffsets) -> int | None:
        """Return the lowest offset that is finished here and not in ``later``, or None if there is none."""
        if self.runs == later.runs or self.end <= later.position:
            return None
        mine = iter(later.runs)
        start, stop = next(mine)
        for lowest, end in self.runs:
            while lowest < end:
                while stop <= lowest:
                    if (run := next(mine, None)) is None:
                        return lowest
                    start, stop = run
                if start > lowest:
                    return lowest
                lowest = stop
        return None


def _varints(text: str) -> list[int]:
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as exc:
        raise ValueError(f"metadata is not base64: {text[:20]!r}") from exc
    numbers, number, shift = [], 0, 0
    for byte in packed:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(number)
            number = shift = 0
    if shift:
        raise ValueError(f"metadata is cut off: {text[:20]!r}")
    return numbers
