"""Decompresses the records of a batch, for every compression type of Kafka's protocol.

The types and their numbers are documented at https://kafka.apache.org/documentation/#recordbatch. Data that is
compressed with Snappy has one of two formats: librdkafka writes one raw block, and the Java library snappy-java writes
several blocks after a header with magic bytes.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable

import cramjam

_JAVA_SNAPPY = b"\x82SNAPPY\x00"
_JAVA_SNAPPY_HEADER = len(_JAVA_SNAPPY) + 8  # after the magic bytes come two version numbers of 4 bytes


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
"""The compression types. The index is the number of the type in a batch's attributes."""

_DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "gzip": gzip.decompress,
    "snappy": _snappy,
    "lz4": lambda data: bytes(cramjam.lz4.decompress(data)),
    "zstd": lambda data: bytes(cramjam.zstd.decompress(data)),
}

FAILURES = (OSError, EOFError, struct.error, cramjam.DecompressionError)
"""The errors that ``decompress`` raises for data that is not compressed with the given type."""


def decompress(compression: str, data: bytes) -> bytes:
    """Return ``data`` decompressed. Raises one of FAILURES if it cannot be decompressed."""
    return _DECOMPRESS[compression](data)
