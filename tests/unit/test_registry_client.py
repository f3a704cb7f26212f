"""A registry that means harm: what it answers is bounded, and a schema that no reader can end is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rtfm.contracts.registry_client import MAX_ANSWER_BYTES, RegistryClient
from rtfm.errors import ConfigError, UnknownSchema


@contextmanager
def answering(body: bytes, repeat: int = 1) -> Iterator[tuple[RegistryClient, list[int]]]:
    """A client of a registry that answers everything with ``body``, ``repeat`` times; and how often it was written."""
    written: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) * repeat))
            self.end_headers()
            for number in range(repeat):
                try:
                    self.wfile.write(body)
                except OSError:
                    return
                written.append(number)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    client = RegistryClient(f"http://127.0.0.1:{server.server_address[1]}", timeout_s=30)
    try:
        yield client, written
    finally:
        client.close()
        server.shutdown()
        server.server_close()


def test_an_answer_without_end_is_not_read_whole() -> None:
    """300 MB would fill the memory of every service that asks."""
    with answering(b" " * 1_000_000, repeat=300) as (client, written):
        with pytest.raises(ConfigError, match="more than 5 MB"):
            client.schema_of(1)
    assert len(written) * 1_000_000 < MAX_ANSWER_BYTES + 50_000_000


@pytest.mark.parametrize("size", [-1, "8", None, True, 1.5])
def test_a_fixed_type_without_a_size_is_no_schema(size: object) -> None:
    """An array of fixed of size -1 would be skipped for ever."""
    fixed = {"type": "fixed", "name": "F", "size": size}
    schema = {"type": "record", "name": "R", "fields": [{"name": "a", "type": {"type": "array", "items": fixed}}]}
    with answering(json.dumps({"schema": json.dumps(schema)}).encode()) as (client, _), pytest.raises(UnknownSchema):
        client.schema_of(1)


def test_an_answer_that_is_nested_without_end_is_no_registrys() -> None:
    """It costs an error, not the process."""
    with answering(b"[" * 1_000_000) as (client, _), pytest.raises(ConfigError, match="does not answer as"):
        client.schema_of(1)
