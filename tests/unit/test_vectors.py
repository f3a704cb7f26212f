"""What Chroma's client does with errors, invalid responses, and vectors of another embedding model."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from rtfm.errors import ConfigError, InvalidEvent, Unavailable
from rtfm.knowledge.embedding import DIMENSION
from rtfm.knowledge.vectors import ChromaVectors, WrongCollection, _check_model

CONNECTION_ANSWERS = {
    "heartbeat": b'{"nanosecond heartbeat": 1}',
    "identity": b'{"user_id": "", "tenant": "default_tenant", "databases": ["default_database"]}',
    "default_tenant": b'{"name": "default_tenant"}',
    "default_database": b'{"id": "4b1a3c7e-0000-4000-8000-000000000000", "name": "default_database", "tenant": ""}',
}
"""Chroma's responses while a client connects, by the end of the requested path."""


class WrongAnswers(BaseHTTPRequestHandler):
    """Answers paths that contain ``asked`` with ``status`` and ``answer``; answers other paths as Chroma does.

    An empty ``asked`` means all paths. The heartbeat is always right.
    """

    answer = b""
    status = 200
    asked = ""

    def do_GET(self) -> None:
        right = next((said for end, said in CONNECTION_ANSWERS.items() if self.path.endswith(end)), b"{}")
        wrong = self.asked in self.path and not self.path.endswith("heartbeat")
        self.send_response(self.status if wrong else 200)
        self.end_headers()
        self.wfile.write(self.answer if wrong else right)

    do_POST = do_GET  # noqa: N815 - the name is the base class's

    def log_message(self, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def wrong_server() -> Iterator[str]:
    """Yield the address of a server that is not Chroma."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), WrongAnswers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "answer"), [(200, b"{}"), (200, b"[]"), (200, b"<html>"), (200, b""), (500, b"oops"), (404, b"{}")]
)
def test_an_answer_that_is_not_from_chroma_is_an_outage(
    wrong_server: str, status: int, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response that is not Chroma's raises Unavailable, so that the pipeline waits and makes no dead letters."""
    monkeypatch.setattr(WrongAnswers, "status", status)
    monkeypatch.setattr(WrongAnswers, "answer", answer)
    with pytest.raises(Unavailable, match="Chroma"):
        ChromaVectors(wrong_server).nearest("1", np.zeros(DIMENSION, dtype=np.float32), 5)


@pytest.mark.parametrize(
    ("status", "answer", "error"),
    [
        (400, b'{"error": "ChromaError", "message": "Validation error: name"}', InvalidEvent),
        (413, b"<html>too large</html>", InvalidEvent),
        (422, b'{"detail": "no"}', InvalidEvent),
        (
            400,
            b'{"error": "InvalidArgumentError", "message": "Collection expecting embedding with dimension of 3"}',
            WrongCollection,
        ),
        (400, b'{"error": "QuotaError", "message": "no more"}', Unavailable),
        (401, b'{"error": "AuthError", "message": "who?"}', Unavailable),
        (409, b'{"error": "UniqueConstraintError", "message": "it is there"}', Unavailable),
        (429, b"slower", Unavailable),
        (500, b'{"error": "ChromaError", "message": "Internal"}', Unavailable),
        (502, b"<html>", Unavailable),
    ],
)
def test_the_status_distinguishes_a_refusal_from_an_outage(
    wrong_server: str, status: int, answer: bytes, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content that never fits raises InvalidEvent, a wrong dimension WrongCollection, any other error Unavailable."""
    monkeypatch.setattr(WrongAnswers, "status", status)
    monkeypatch.setattr(WrongAnswers, "answer", answer)
    monkeypatch.setattr(WrongAnswers, "asked", "/collections")
    with pytest.raises(error, match="Chroma"):
        ChromaVectors(wrong_server).generations("1")


def test_each_guild_has_a_collection_of_its_own() -> None:
    """Guilds with ids of any format have distinct collections in each generation, with names that Chroma accepts."""
    guilds = ["", "direct", "Direct", "5", "5-1", "5.1", "5.2d1", "a:b", "a@b", "a_b", "a.b", "-", "x" * 128, ":" * 128]
    names = [ChromaVectors("http://x")._name(guild, generation) for guild in guilds for generation in (0, 1, 12)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,510}[A-Za-z0-9]", name) for name in names)
    assert names[9] == "rtfm-5"


def test_vectors_of_another_model_ask_for_a_rebuild() -> None:
    """The error for vectors of another embedding model asks for a rebuild."""
    with pytest.raises(ConfigError, match="768 dimensions") as caught:
        _check_model("rtfm-1", {"model": "another", "dimension": 768}, "this", 384)
    assert "rebuild" in str(caught.value.hint)
