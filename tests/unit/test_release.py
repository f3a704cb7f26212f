"""How the release of a broker is recognised, over a real socket."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rtfm.streams.release import DEFECT, find_defect, read_metadata_level


def answer(level: int, name: bytes = b"metadata.version") -> bytes:
    """Return an ApiVersions response, version 3, of a broker that supports the feature ``name`` from 7 to ``level``."""
    requests = bytes([2]) + struct.pack(">hhh", 18, 0, 4) + b"\0"
    features = bytes([3, 4]) + b"abc" + struct.pack(">hh", 0, 1) + b"\0"
    features += bytes([len(name) + 1]) + name + struct.pack(">hh", 7, level) + b"\0"
    epoch = bytes([1, 8]) + bytes(8)
    tags = bytes([2]) + epoch + bytes([0, len(features)]) + features
    return struct.pack(">ih", 1, 0) + requests + struct.pack(">i", 0) + tags


@contextmanager
def broker(raw: bytes) -> Iterator[int]:
    """Yield the port of a server that answers every request with ``raw``."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1_000)
                    connection.sendall(raw)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def with_length(raw: bytes) -> bytes:
    """Return ``raw`` after its length."""
    return struct.pack(">i", len(raw)) + raw


@pytest.mark.parametrize(("level", "wrong"), [(25, False), (29, False), (30, True), (33, True), (34, False)])
def test_releases_that_do_not_end_transactions_are_named(level: int, wrong: bool) -> None:
    """Brokers of Kafka 4.3 and 4.4 may leave transactions open. They are recognised by the level of a feature.

    In the response, another feature comes before this feature.
    """
    with broker(with_length(answer(level))) as port:
        assert read_metadata_level("127.0.0.1", port, 2) == level
        assert find_defect(f"127.0.0.1:{port}") == (DEFECT if wrong else None)


def test_the_first_broker_that_answers_decides() -> None:
    """The first broker that answers decides; a broker that is down and an invalid address are skipped."""
    with broker(with_length(answer(30))) as port:
        assert find_defect(f"127.0.0.1:1,nonsense,127.0.0.1:{port}") == DEFECT


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0",
        with_length(b""),
        with_length(answer(30)[:-3]),
        with_length(answer(30, b"other")),
        with_length(b"\x80" * 60_000),
        b"HTTP/1.1 400 Bad Request\r\n",
    ],
    ids=["closed", "a byte", "empty", "cut off", "another feature", "endless number", "another protocol"],
)
def test_an_unknown_answer_is_not_a_defect(raw: bytes) -> None:
    """An unknown response is ignored, because other checks find servers that are not brokers."""
    with broker(raw) as port:
        with pytest.raises((ValueError, OSError)):
            read_metadata_level("127.0.0.1", port, 2)
        assert find_defect(f"127.0.0.1:{port}") is None
