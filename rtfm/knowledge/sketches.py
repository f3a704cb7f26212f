"""Sketches: what choosing among few passages needs of each, small enough to stand in an index beside its channel.

A sketch is the passage's vector in a quarter of its size, a hash of each of its terms, and how many terms it has.
Promises nothing exact: a cosine is off by about 0.0005, and a word is taken for another in one of four billion cases.
What is chosen by sketches is scored by vectors and terms.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rtfm.knowledge.embedding import Vectors

MAX_BYTES = 2_000
"""An entry of an index may have 2,704 bytes (PostgreSQL: a third of a page), of which ids take some."""

_HEADER = np.dtype([("largest", "<f4"), ("length", "<u2"), ("dimension", "<u2")])


def sketch(vector: bytes | None, terms: Sequence[str]) -> bytes | None:
    """The sketch of a passage with these terms, and this vector (float32, little-endian) if it has one.

    None where it would be too large.
    """
    values = np.frombuffer(vector or b"", dtype="<f4")
    hashes = np.array(sorted({_hash(term) for term in terms}), dtype="<u4")
    if _HEADER.itemsize + values.size + hashes.nbytes > MAX_BYTES or len(terms) > np.iinfo(np.uint16).max:
        return None
    largest = float(np.abs(values).max(initial=0.0))
    header = np.array((largest, len(terms), values.size), dtype=_HEADER)
    quantized = np.rint(values * (127 / largest)) if largest else values
    return header.tobytes() + quantized.astype(np.int8).tobytes() + hashes.tobytes()


class Sketches:
    """The sketches of some passages, taken apart."""

    def __init__(self, sketches: Sequence[bytes]) -> None:
        head = _HEADER.itemsize
        headers = np.frombuffer(b"".join(one[:head] for one in sketches), dtype=_HEADER)
        self._largest, self._lengths, self._dimensions = (headers[name] for name in ("largest", "length", "dimension"))
        ends = (self._dimensions.astype(int) + head).tolist()
        self._values = [one[head:end] for one, end in zip(sketches, ends, strict=True)]
        hashes = [one[end:] for one, end in zip(sketches, ends, strict=True)]
        self._hashes = np.frombuffer(b"".join(hashes), dtype="<u4")
        self._owners = np.repeat(np.arange(len(sketches)), [len(one) // 4 for one in hashes])

    def cosines(self, question: Vectors) -> tuple[NDArray[np.intp], Vectors]:
        """The places of passages that have a vector of the question's dimension, and how near these are to it."""
        places = np.flatnonzero(self._dimensions == len(question))
        if not places.size:
            return places, np.empty(0, dtype=np.float32)
        rows = np.frombuffer(b"".join(self._values[place] for place in places), dtype=np.int8)
        near = rows.reshape(len(places), -1).astype(np.float32) @ question
        return places, near * self._largest[places] / np.float32(127)

    def points(self, rarity: Mapping[str, float], mean_length: float) -> NDArray[np.float64]:
        """For each passage how rare the words are that it holds of ``rarity``, less for a long one; 0 for none."""
        points = np.zeros(len(self._values))
        for word, weight in rarity.items():
            points[self._owners[self._hashes == _hash(word)]] += weight
        return points / (1 + self._lengths / mean_length)


def _hash(term: str) -> int:
    return zlib.crc32(term.encode(errors="surrogatepass"))
