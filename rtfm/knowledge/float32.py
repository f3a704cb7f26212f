"""Converts vectors to and from the bytes that the archive stores: little-endian float32. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def to_bytes(vector: Vectors) -> bytes:
    """Return a vector as the bytes that the archive stores."""
    return vector.astype("<f4").tobytes()


def from_bytes(vectors: Sequence[bytes]) -> Vectors:
    """Return stored vectors, all of one dimension, as an array of shape (len(vectors), dimension).

    If ``vectors`` is empty, the shape is (0, 0).
    """
    if not vectors:
        return np.empty((0, 0), dtype=np.float32)
    return np.frombuffer(b"".join(vectors), dtype="<f4").reshape(len(vectors), -1)
