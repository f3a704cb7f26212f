"""The embedding model's files: fetched once from where Chroma fetches them, checked by SHA-256.

Owns ``RTFM_HOME/models``. Promises a whole model or none. Nobody needs the model to work: without it search is
lexical, so a caller that only wants to offer it catches Unavailable and says its one line.
"""

from __future__ import annotations

import hashlib
import queue
import shutil
import threading
from pathlib import Path

import httpx

from rtfm.addresses import shown
from rtfm.errors import ConfigError, RtfmError, Unavailable
from rtfm.home import make_private
from rtfm.local.artifacts import Progress, unpack

MODEL_NAME = "all-MiniLM-L6-v2"

ARCHIVE_SHA256 = "913d7300ceae3b2dbc2c50d1de4baacab4be7b9380491c27fab7418616a16ec3"
"""Of the archive that chromadb's ONNXMiniLM_L6_V2 fetches."""

CONNECT_TIMEOUT_S = 5.0
_STALL_TIMEOUT_S = 20.0
_CHUNK_BYTES = 1 << 18


def model_dir(home: Path) -> Path:
    """Where the model stands once it is fetched: the folder in which the services look for it."""
    return home / "models" / MODEL_NAME


def is_there(home: Path) -> bool:
    """Whether the model was fetched. Its files are put in place at once, so they are whole."""
    return all((model_dir(home) / "onnx" / name).is_file() for name in ("model.onnx", "tokenizer.json"))


def fetch(
    home: Path,
    *,
    url: str,
    sha256: str = ARCHIVE_SHA256,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    progress: Progress | None = None,
) -> Path:
    """Fetch the model where it is not there yet; its folder.

    Raises Unavailable when nothing answers within ``connect_timeout_s`` or the download breaks off, RtfmError when it
    is not the model, ConfigError when the disk does not take it.
    """
    target = model_dir(home)
    if is_there(home):
        return target
    partial = target.with_name(f"{target.name}.partial")
    try:
        make_private(home)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        archive = partial / "archive.tar.gz"
        found = _download(url, archive, connect_timeout_s, progress)
        if found != sha256:
            raise RtfmError(
                f"the embedding model from {shown(url)} has the SHA-256 {found}, not the expected one",
                hint="a proxy may have answered; try again",
            )
        unpack(archive, partial)
        archive.unlink()
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except OSError as exc:
        raise ConfigError(f"{target}: the embedding model cannot be written: {exc.strerror}") from exc
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _download(url: str, path: Path, connect_timeout_s: float, progress: Progress | None) -> str:
    """Fetch ``url`` into ``path``; the SHA-256 of what came."""
    chunks = _Download(url, connect_timeout_s)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while chunk := chunks.next():
            file.write(chunk)
            digest.update(chunk)
            if progress is not None:
                progress(MODEL_NAME, file.tell(), max(chunks.total_bytes, file.tell()))
    return digest.hexdigest()


class _Download:
    """A download in a thread of its own, because looking a name up cannot be given a time limit."""

    def __init__(self, url: str, connect_timeout_s: float) -> None:
        self.total_bytes = 0
        self._url = url
        self._connect_timeout_s = connect_timeout_s
        self._wait_s = connect_timeout_s
        self._chunks: queue.Queue[bytes | Exception] = queue.Queue(maxsize=16)
        threading.Thread(target=self._run, name="model", daemon=True).start()

    def next(self) -> bytes:
        """The next chunk, empty at the end."""
        try:
            chunk = self._chunks.get(timeout=self._wait_s)
        except queue.Empty:
            chunk = TimeoutError(f"no answer within {self._wait_s:.0f} s")
        if isinstance(chunk, Exception):
            raise Unavailable(
                "embedding model",
                f"the embedding model cannot be fetched: {str(chunk) or type(chunk).__name__}",
                hint="search is lexical without it; `rtfm-cli doctor --fetch-model` tries again",
            ) from chunk
        self._wait_s = _STALL_TIMEOUT_S
        return chunk

    def _run(self) -> None:
        try:
            timeout = httpx.Timeout(_STALL_TIMEOUT_S, connect=self._connect_timeout_s)
            with httpx.stream("GET", self._url, timeout=timeout, follow_redirects=True) as response:
                response.raise_for_status()
                self.total_bytes = int(response.headers.get("content-length", 0))
                for chunk in response.iter_bytes(_CHUNK_BYTES):
                    if chunk:
                        self._chunks.put(chunk, timeout=_STALL_TIMEOUT_S)
            self._chunks.put(b"")
        except httpx.HTTPStatusError as exc:
            self._chunks.put(RuntimeError(f"{shown(self._url)} answers {exc.response.status_code}"))
        except (httpx.HTTPError, OSError, queue.Full) as exc:
            self._chunks.put(exc)
