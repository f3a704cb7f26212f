"""Release: tells which release of Kafka a broker runs, and which known defect it has.

A broker does not name its release. It names the highest ``metadata.version`` that it supports, which each minor release
raises (``org.apache.kafka.server.common.MetadataVersion``: 4.2 supports 29, 4.3 supports 30, 4.4 supports 33).
"""

from __future__ import annotations

import socket
import struct

_API_VERSIONS, _VERSION = 18, 3
_MAX_BYTES = 65_536
_AFFECTED = range(30, 34)
"""Metadata levels of the releases 4.3.0 to 4.4.0. Whether later releases have the defect is unknown."""

DEFECT = (
    "Kafka 4.3 or 4.4: its transactions may not end where a partition has no leader for a moment (KAFKA-20734),"
    " so questions may be answered twice, or not at all"
)


def find_defect(bootstrap_servers: str, timeout_s: float = 2.0) -> str | None:
    """Return the known defect of the first broker that names its features, as a sentence, or None.

    Also None if no broker answers without encryption and a login. Waits ``timeout_s`` for each step of an answer.
    """
    for server in bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            level = read_metadata_level(host.strip("[]"), int(port), timeout_s)
        except (OSError, ValueError):
            continue
        return DEFECT if level in _AFFECTED else None
    return None


def read_metadata_level(host: str, port: int, timeout_s: float) -> int:
    """Return the highest ``metadata.version`` that a broker supports.

    Raises OSError if the broker cannot be reached, ValueError for an answer that cannot be read.
    """
    request = struct.pack(">hhih", _API_VERSIONS, _VERSION, 1, -1) + b"\x00\x05rtfm\x02\x31\x00"
    with socket.create_connection((host, port), timeout=timeout_s) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        with connection.makefile("rb") as answer:
            (length,) = struct.unpack(">i", answer.read(4).ljust(4, b"\0"))
            if not 0 < length <= _MAX_BYTES:
                raise ValueError(f"an answer of {length} bytes")
            # A feature is a name, after its length plus one, and its lowest and highest version. What the broker
            # supports comes before what its cluster agreed on (https://kafka.apache.org/protocol, ApiVersions).
            _, _, versions = answer.read(length).partition(b"\x11metadata.version")
    if len(versions) < 4:
        raise ValueError("no metadata.version")
    return int(struct.unpack_from(">hh", versions)[1])
