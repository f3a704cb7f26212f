"""Computes CRC-32C (Castagnoli, RFC 3720), the checksum of Kafka's record batches, with numpy: about 50 MB per second.

The checksum is the remainder of a division. The data is divided into blocks. Because the remainder is linear, each byte
of a block contributes to it independently of the other bytes. A table contains the contribution of each value of a byte
at each place in a block. The remainder of the preceding blocks contributes as if it were in the first four bytes of
the block.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78  # reflected
_BLOCK = 256

_Words = NDArray[np.uint32]


@cache
def _tables() -> tuple[_Words, list[list[int]]]:
    """Return two tables of contributions.

    The first is one flat array, ordered by the byte's place in a block and then by its value. The second consists of
    four lists, one for each of the first four places in a block.
    """
    words: _Words = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        words = (words >> 1 ^ (words & 1) * _POLYNOMIAL).astype(np.uint32)
    rows = [words]
    for _ in range(_BLOCK - 1):
        rows.append(words[rows[-1] & 255] ^ rows[-1] >> 8)
    rows.reverse()
    return np.concatenate(rows), [row.tolist() for row in rows[:4]]


_PLACES = np.arange(_BLOCK, dtype=np.int64) * 256


def crc32c(data: memoryview) -> int:
    """Return the checksum of ``data``, which must have at least four bytes."""
    contributions, (first, second, third, fourth) = _tables()
    blocks = -(-len(data) // _BLOCK)
    padded = np.zeros(blocks * _BLOCK, dtype=np.uint8)  # leading zeros leave the remainder at zero
    padded[len(padded) - len(data) :] = np.frombuffer(data, dtype=np.uint8)
    padded[len(padded) - len(data) :][:4] ^= 255  # the initial remainder is all ones
    parts = np.bitwise_xor.reduce(contributions[padded.reshape(blocks, _BLOCK) + _PLACES], axis=1)
    remainder = 0
    for part in parts.tolist():
        remainder = (
            part
            ^ first[remainder & 255]
            ^ second[remainder >> 8 & 255]
            ^ third[remainder >> 16 & 255]
            ^ fourth[remainder >> 24]
        )
    return remainder ^ 0xFFFFFFFF
