"""Decompresses the records of a batch, for every compression type of Kafka's protocol.

The types and their numbers: https://kafka.apache.org/documentation/#recordbatch. Snappy comes in two framings: one raw
block (librdkafka), and the blocks of the Java library snappy-java after its magic bytes.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable

import cramjam

_JAVA_SNAPPY = b"\x82SNAPPY\x00"
_JAVA_SNAPPY_HEADER = len(_JAVA_SNAPPY) + 8  # followed by two version numbers of 4 bytes


def _snappy(data: bytes) -> bytes:
    if not data.startswith(_JAVA_SNAPPY):
        return bytes(cramjam.snappy.decompress_raw(data))
    parts, position = [], _JAVA_SNAPPY_HEADER
    while position < len(data):
        (size,) = struct.unpack_from(">i", data, position)
        parts.append(bytes(cramjam.snappy.decompress_raw(data[position + 4 : position + 4 + size])))
        position += 4 + size
    return b"".join(parts)


NAMES = ("none", "gzip", "snappy", "lz4", "zstd")
"""Compression types by their number in a batch's attributes."""

_DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "gzip": gzip.decompress,
    "snappy": _snappy,
    "lz4": lambda data: bytes(cramjam.lz4.decompress(data)),
    "zstd": lambda data: bytes(cramjam.zstd.decompress(data)),
}

FAILURES = (OSError, EOFError, struct.error, cramjam.DecompressionError)
"""Errors that ``decompress`` raises for data that is not of its type."""


def decompress(compression: str, data: bytes) -> bytes:
    """Return ``data`` decompressed. Raises one of FAILURES."""
    return _DECOMPRESS[compression](data)
