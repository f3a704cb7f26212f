"""The registry's client with a server that answers as no registry should."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rtfm.contracts.registry_client import MAX_ANSWER_BYTES, RegistryClient
from rtfm.errors import PermanentError, UnknownSchema

Write = Callable[[bytes], object]


@contextmanager
def registry(answer: Callable[[Write], object], **headers: str) -> Iterator[RegistryClient]:
    """Yield a client of a server whose function ``answer`` writes the body of each response."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            answer(self.wfile.write)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    client = RegistryClient(f"http://127.0.0.1:{server.server_address[1]}", timeout_s=30)
    try:
        yield client
    finally:
        client.close()
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_schema_without_end_is_not_read() -> None:
    """If a schema has no end, reading stops at the limit, and UnknownSchema is raised."""
    sent = 0
    over = threading.Event()

    def answer(write: Write) -> None:
        nonlocal sent
        try:
            while True:
                sent += len(b"x" * 65_536)
                write(b"x" * 65_536)
        except OSError:
            over.set()

    with registry(answer) as client:
        with pytest.raises(UnknownSchema, match=f"more than {MAX_ANSWER_BYTES} bytes"):
            client.fetch_schema(7)
        assert over.wait(60)
    assert sent < 20 * MAX_ANSWER_BYTES  # the sockets buffered the rest


def test_a_list_of_versions_without_end_is_a_named_error() -> None:
    """If a list of versions has no end, PermanentError is raised and names the requested path."""
    with registry(lambda write: write(b"1," * MAX_ANSWER_BYTES)) as client:
        with pytest.raises(PermanentError, match="/versions"):
            client.versions("discord-messages")


def test_a_small_answer_that_unpacks_to_a_large_one_is_not_unpacked_whole() -> None:
    """If a small response would decompress to a large one, it is not decompressed completely."""
    packed = gzip.compress(b"x" * 50 * MAX_ANSWER_BYTES)
    with registry(lambda write: write(packed), Content_Encoding="gzip") as client:
        with pytest.raises(UnknownSchema, match="more than"):
            client.fetch_schema(7)


def test_an_answer_of_a_usual_length_is_read_whole() -> None:
    """A response with a schema of 200,000 characters is read completely, because this is below the limit."""
    schema = {"type": "record", "name": "A", "fields": [{"name": "x", "type": "string", "doc": "d" * 200_000}]}
    body = json.dumps({"schema": json.dumps(schema)}).encode()
    with registry(lambda write: write(body)) as client:
        assert client.fetch_schema(7) == schema
