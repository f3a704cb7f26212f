"""Containers for the tests: if a machine cannot run them, one line says why, and the run continues without them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests import containers


class EngineWithoutImages(BaseHTTPRequestHandler):
    """A server with the two responses of the Docker Engine API that a client needs before it starts a container."""

    def do_GET(self) -> None:
        found = self.path.endswith("/version")
        body = {"ApiVersion": "1.41", "MinAPIVersion": "1.12"} if found else {"message": "No such image"}
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def engine() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), EngineWithoutImages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"tcp://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_machine_without_an_engine_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without a container engine, the error says that no engine answers."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(containers.Unusable, match="no engine answers"), containers.running():
        pass


def test_an_engine_without_the_images_cannot_serve_and_is_not_asked_to_pull_them(
    monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """If the engine lacks the images, none is pulled, and the error names the first missing image."""
    monkeypatch.setenv("DOCKER_HOST", engine)
    with pytest.raises(containers.Unusable, match="does not have apache/kafka:"), containers.running():
        pass


def test_the_images_are_those_of_the_compose_file() -> None:
    """The containers of the tests use the images of docker-compose.yml."""
    assert set(containers.images()) == {"kafka", "schema-registry", "chromadb", "postgres"}
