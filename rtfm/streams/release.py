"""Release: finds out whether a broker runs a release of Kafka with a known defect.

A broker does not report its release, but it reports the highest ``metadata.version`` that it supports. Each minor
release raises that number (``org.apache.kafka.server.common.MetadataVersion``: 4.2 supports 29, 4.3 supports 30, 4.4
supports 33).
"""

from __future__ import annotations

import socket
import struct

_API_VERSIONS, _VERSION = 18, 3
_MAX_BYTES = 65_536
_AFFECTED = range(30, 34)
"""The values of ``metadata.version`` of the releases 4.3.0 to 4.4.0. Later releases may be affected, too."""

DEFECT = (
    "Kafka 4.3 or 4.4: its transactions may not end where a partition has no leader for a moment (KAFKA-20734),"
    " so questions may be answered twice, or not at all"
)


def find_defect(bootstrap_servers: str, timeout_s: float = 2.0) -> str | None:
    """Return DEFECT if the first broker that responds runs an affected release, otherwise None.

    If no broker responds, for example because all brokers require encryption, the result is also None.
    ``timeout_s`` is the time limit for a connection and for each read.
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

    Raises OSError if the broker cannot be reached, ValueError if its response cannot be parsed.
    """
    request = struct.pack(">hhih", _API_VERSIONS, _VERSION, 1, -1) + b"\x00\x05rtfm\x02\x31\x00"
    with socket.create_connection((host, port), timeout=timeout_s) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        with connection.makefile("rb") as answer:
            (length,) = struct.unpack(">i", answer.read(4).ljust(4, b"\0"))
            if not 0 < length <= _MAX_BYTES:
                raise ValueError(f"a response of {length} bytes")
            # The response contains two lists of features (https://kafka.apache.org/protocol, ApiVersions). A feature is
            # written as the length of its name plus one, its name, its lowest version and its highest version. The
            # first list is that of the features that the broker supports, so the first match is the right one.
            _, _, versions = answer.read(length).partition(b"\x11metadata.version")
    if len(versions) < 4:
        raise ValueError("no metadata.version")
    return int(struct.unpack_from(">hh", versions)[1])
