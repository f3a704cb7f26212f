"""Which release of Kafka a broker runs, and which known defect that release has.

A broker does not name its release. It names the highest ``metadata.version`` that it supports, which each minor release
raises (``org.apache.kafka.server.common.MetadataVersion``: 4.2 supports 29, 4.3 supports 30, 4.4 supports 33).
"""

from __future__ import annotations

import socket
import struct

_API_VERSIONS, _VERSION = 18, 3
_SUPPORTED_FEATURES = 0
"""The tag of that field of an answer (https://kafka.apache.org/protocol, ApiVersions)."""

_MOST_BYTES = 65_536
_AFFECTED = range(30, 34)
"""Levels of 4.3.0 to 4.4.0. Whether later releases have the defect is not known."""

DEFECT = (
    "Kafka 4.3 or 4.4: its transactions may not end where a partition has no leader for a moment (KAFKA-20734),"
    " so questions may be answered twice, or not at all"
)


def defect(bootstrap_servers: str, timeout_s: float = 2.0) -> str | None:
    """The known defect of the first broker that names its features, as a sentence; None where there is none.

    Also None where no broker answers without encryption and a login. Waits ``timeout_s`` for each step of an answer.
    """
    for server in bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            level = metadata_level(host.strip("[]"), int(port), timeout_s)
        except (OSError, ValueError):
            continue
        return DEFECT if level in _AFFECTED else None
    return None


def metadata_level(host: str, port: int, timeout_s: float) -> int:
    """The highest ``metadata.version`` that a broker supports.

    Raises OSError where the broker cannot be asked, ValueError for an answer that cannot be read.
    """
    request = struct.pack(">hhih", _API_VERSIONS, _VERSION, 1, -1) + b"\x00\x05rtfm\x02\x31\x00"
    with socket.create_connection((host, port), timeout=timeout_s) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        with connection.makefile("rb") as answer:
            (length,) = struct.unpack(">i", answer.read(4).ljust(4, b"\0"))
            if not 0 < length <= _MOST_BYTES:
                raise ValueError(f"an answer of {length} bytes")
            return _Answer(answer.read(length)).metadata_level()


class _Answer:
    """An answer to ApiVersions in version 3, read from its start to its end."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def metadata_level(self) -> int:
        """The highest supported ``metadata.version``; ValueError where the answer does not hold it."""
        self._take(4 + 2)  # the correlation id and the error code
        for _ in range(self._length()):
            self._take(3 * 2)  # a request's key, the lowest and the highest version
            self._skip_tags()
        self._take(4)  # how long the client is throttled
        for _ in range(self._varint()):
            tag, size = self._varint(), self._varint()
            if tag != _SUPPORTED_FEATURES:
                self._take(size)
                continue
            for _ in range(self._length()):
                name = self._take(self._length())
                _, highest = struct.unpack(">hh", self._take(4))
                self._skip_tags()
                if name == b"metadata.version":
                    return int(highest)
        raise ValueError("no metadata.version")

    def _take(self, size: int) -> bytes:
        found = self._raw[self._at : self._at + size]
        if len(found) < size:
            raise ValueError("an answer that is cut off")
        self._at += size
        return found

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 35, 7):  # 32 bits are at most five bytes
            (byte,) = self._take(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("a number of more than 32 bits")

    def _length(self) -> int:
        """Of an array or a string, which is kept as one more."""
        return max(0, self._varint() - 1)

    def _skip_tags(self) -> None:
        for _ in range(self._varint()):
            self._varint()
            self._take(self._varint())
