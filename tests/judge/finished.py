"""What a committed position says is finished: all offsets below it, and the runs that its metadata tells of.

The metadata is ``1``, then base64 without padding of varints, seven bits a byte, the lowest first. From the position
on, runs of unfinished and finished offsets take turns. A tally of dead letters may follow behind a dot. Without
metadata there are no such runs. docs/delivery.md describes it.
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_right

from attrs import field, frozen

_VERSION = "1"
_TALLY = "."


@frozen
class Finished:
    """Finished offsets, as runs (from, to) in order; the first run begins at 0."""

    runs: tuple[tuple[int, int], ...] = field()

    @classmethod
    def decode(cls, offset: int, metadata: str) -> Finished:
        """From a position. Raises ValueError for metadata of another form."""
        runs = [(0, offset)]
        packed, _, _ = metadata.removesuffix("\0").partition(_TALLY)
        if packed:
            if packed[0] != _VERSION:
                raise ValueError(f"metadata of an unknown form: {metadata[:20]!r}")
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
        """Behind the highest finished offset."""
        return self.runs[-1][1]

    def holds(self, offset: int) -> bool:
        """Whether ``offset`` is finished."""
        number = bisect_right(self.runs, (offset, self.end + 1)) - 1
        return number >= 0 and offset < self.runs[number][1]

    def first_lost(self, later: Finished) -> int | None:
        """The lowest offset that is finished here and not in ``later``; None where all are."""
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
        raise ValueError(f"metadata that is not base64: {text[:20]!r}") from exc
    numbers, number, shift = [], 0, 0
    for byte in packed:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(number)
            number = shift = 0
    if shift:
        raise ValueError(f"metadata that is cut off: {text[:20]!r}")
    return numbers
