"""Vectors in memory and as the archive keeps them, as little-endian float32. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def to_bytes(vector: Vectors) -> bytes:
    """A vector as the archive keeps it."""
    return vector.astype("<f4").tobytes()


def from_bytes(vectors: Sequence[bytes]) -> Vectors:
    """Vectors of the archive, all of one dimension: float32, shape (len(vectors), dimension), or (0, 0) for none."""
    if not vectors:
        return np.empty((0, 0), dtype=np.float32)
    return np.frombuffer(b"".join(vectors), dtype="<f4").reshape(len(vectors), -1)
