"""What becomes of a Chroma that answers with nonsense, with errors, or with vectors of another model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from rtfm.errors import ConfigError, Unavailable
from rtfm.knowledge.embedding import DIMENSION
from rtfm.knowledge.vectors import ChromaVectors, _check_model


class Confused(BaseHTTPRequestHandler):
    """Says what the test wants, whatever it is asked; only the heartbeat is right."""

    answer = b""
    status = 200

    def do_GET(self) -> None:
        heartbeat = self.path.endswith("heartbeat")
        self.send_response(200 if heartbeat else self.status)
        self.end_headers()
        self.wfile.write(b'{"nanosecond heartbeat": 1}' if heartbeat else self.answer)

    do_POST = do_GET  # noqa: N815 - as above

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def confused() -> Iterator[str]:
    """The address of a server that is no Chroma."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Confused)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "answer"), [(200, b"{}"), (200, b"[]"), (200, b"<html>"), (200, b""), (500, b"oops"), (404, b"{}")]
)
def test_an_answer_that_is_none_of_chromas_is_an_outage(
    confused: str, status: int, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipeline waits for it to be mended; nothing is lost and nothing goes to dead-letters."""
    monkeypatch.setattr(Confused, "status", status)
    monkeypatch.setattr(Confused, "answer", answer)
    with pytest.raises(Unavailable, match="Chroma"):
        ChromaVectors(confused).nearest("1", np.zeros(DIMENSION, dtype=np.float32), 5)


def test_vectors_of_another_model_ask_for_a_rebuild() -> None:
    """They cannot be compared; nothing found in them would mean anything."""
    with pytest.raises(ConfigError, match="768 dimensions") as caught:
        _check_model("rtfm-1", {"model": "another", "dimension": 768}, "this", 384)
    assert "rebuild" in str(caught.value.hint)
