"""Fetches the Java archives of Kafka and the registry once, and checks their SHA-256 at every start.

``artifacts.lock`` in this folder names each archive with its version, size in bytes and SHA-256. Archives that the lock
does not name are never fetched or used. A start with a filled cache folder needs no network. Several stacks may share
a cache folder.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

import stamina
from attrs import frozen

from rtfm.errors import ConfigError, Unavailable

Progress = Callable[[str, int, int], None]
"""A function that is called with (name of the file, bytes fetched so far, bytes in all).

Several threads call it, but never two at the same time.
"""

Meter = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""The progress callback of jgo, the library that downloads the archives.

jgo calls the meter with a file's name and size. The meter returns a context manager that yields a function. For each
chunk, jgo calls this function with the chunk's number of bytes.
"""

_PARALLEL_DOWNLOADS = 6
_REPLY_TIMEOUT_S = 20
_ATTEMPTS = 3


@frozen
class Artifact:
    """One line of ``artifacts.lock``: an archive of Maven Central that a dependency or the embedding model needs."""

    service: str
    group: str
    name: str
    version: str
    classifier: str
    packaging: str
    size_bytes: int
    sha256: str

    @property
    def filename(self) -> str:
        """Name of the file in the cache."""
        classifier = f"-{self.classifier}" if self.classifier else ""
        return f"{self.name}-{self.version}{classifier}.{self.packaging}"


def locked_artifacts(service: str) -> list[Artifact]:
    """Return the artifacts that the lock names for ``service``."""
    lines = files("rtfm.local").joinpath("artifacts.lock").read_text(encoding="utf-8").splitlines()
    return [_parse(line) for line in lines if line.startswith(f"{service} ")]


def _parse(line: str) -> Artifact:
    service, coordinates, size, sha256 = line.split()
    name, _, packaging = coordinates.partition("@")
    group, artifact, version, *classifier = name.split(":")
    return Artifact(
        service, group, artifact, version, classifier[0] if classifier else "", packaging, int(size), sha256
    )


def ensure(cache_dir: Path, artifacts: Iterable[Artifact], progress: Progress | None = None) -> None:
    """Check all ``artifacts`` that are in ``cache_dir``, and fetch the missing artifacts.

    Raises ConfigError for a corrupted file or a full disk, Unavailable if an artifact cannot be fetched.
    """
    with _lock_cache(cache_dir):
        # Hashing all 200 MB takes 0.2 s. Kafka and the registry need seconds to start.
        missing = [artifact for artifact in artifacts if not _is_cached(cache_dir / artifact.filename, artifact)]
        if not missing:
            return
        total = sum(artifact.size_bytes for artifact in missing)
        # Three times the size, because the archives are also unpacked in this folder.
        if (free := shutil.disk_usage(cache_dir).free) < 3 * total:
            raise ConfigError(
                f"{cache_dir} has {free / 1e6:.0f} MB free, the services need {3 * total / 1e6:.0f} MB",
                hint="free disk space, or set RTFM_HOME to a folder on another disk",
            )
        partial = cache_dir / "partial"
        shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
        try:
            _fetch_all(missing, partial, cache_dir, _build_meter(total, progress))
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def class_path(cache_dir: Path, service: str) -> str:
    """Return the Java class path of the jars of ``service``."""
    return os.pathsep.join(str(cache_dir / artifact.filename) for artifact in locked_artifacts(service))


def ensure_unpacked(cache_dir: Path, artifact: Artifact) -> Path:
    """Return the folder with the contents of an archive that ``ensure`` has checked.

    Unpacks the archive at the first call, and again if a file in the folder is missing or changed.
    """
    folder = cache_dir / artifact.filename.removesuffix(f".{artifact.packaging}")
    listing = folder.with_name(f"{folder.name}.json")
    with _lock_cache(cache_dir):
        if listing.is_file() and json.loads(listing.read_text(encoding="utf-8")) == _list_files(folder):
            return folder
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        unpack(cache_dir / artifact.filename, partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        listing.write_text(json.dumps(_list_files(folder)), encoding="utf-8")
    return folder


def unpack(path: Path, folder: Path) -> None:
    """Unpack a tar archive into ``folder``.

    Raises ConfigError if a member of the archive is not a file or folder, or lies outside the archive's folder.
    """
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            where = PurePosixPath(member.name)
            if not (member.isfile() or member.isdir()) or where.is_absolute() or ".." in where.parts:
                raise ConfigError(f"{path} is not unpacked: {member.name} is not a file inside the archive's folder")
        # The argument for a filter exists from Python 3.11.4 on. Debian 12 has 3.11.2, which ignores this attribute.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)  # noqa: S202 - the members were checked above


def _list_files(folder: Path) -> dict[str, list[int]]:
    """Return the size in bytes and the modification time in nanoseconds of every file below ``folder``."""
    return {
        str(path.relative_to(folder)): [(status := path.stat()).st_size, status.st_mtime_ns]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _build_meter(total: int, progress: Progress | None) -> Meter:
    """Return a meter that adds up the bytes of several downloads and reports them to ``progress``."""
    done, lock = 0, threading.Lock()

    @contextmanager
    def download(filename: str, _size_bytes: int) -> Iterator[Callable[[int], None]]:
        def add(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                if progress is not None:
                    progress(filename, done, total)

        yield add

    return download


def _is_cached(path: Path, artifact: Artifact) -> bool:
    """Return whether the file ``path`` exists. Raises ConfigError if its SHA-256 differs from the lock's."""
    if not path.is_file():
        return False
    if _sha256(path) != artifact.sha256:
        raise ConfigError(
            f"{path} is corrupted: its SHA-256 differs from the locked one",
            hint="delete the file; the next start fetches it again",
        )
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_all(artifacts: list[Artifact], partial: Path, cache_dir: Path, meter: Meter) -> None:
    from jgo.maven import MavenContext, PythonResolver

    context = MavenContext(
        repo_cache=partial, resolver=PythonResolver(progress_callback=meter), timeout=_REPLY_TIMEOUT_S
    )
    # Largest first, so that no large download runs alone at the end.
    order = sorted(artifacts, key=lambda artifact: -artifact.size_bytes)
    with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
        try:
            for _ in pool.map(lambda artifact: _fetch(context, artifact, partial, cache_dir), order):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _fetch(context: Any, artifact: Artifact, partial: Path, cache_dir: Path) -> None:
    fetched = _download(context, artifact, partial)
    if (found := _sha256(fetched)) != artifact.sha256:
        raise ConfigError(
            f"the fetched {artifact.filename} has the SHA-256 {found}, not the locked one",
            hint="try again; if this repeats, the repository or a proxy serves another file",
        )
    fetched.replace(cache_dir / artifact.filename)


def _download(context: Any, artifact: Artifact, partial: Path) -> Path:
    # stamina's decorator is not used, because it would log the arguments.
    for attempt in stamina.retry_context(on=Unavailable, attempts=_ATTEMPTS, wait_initial=1.0, wait_max=5.0):
        with attempt:
            return _resolve(context, artifact, partial)
    raise AssertionError("stamina raises the last failure")


def _resolve(context: Any, artifact: Artifact, partial: Path) -> Path:
    component = context.project(artifact.group, artifact.name).at_version(artifact.version)
    try:
        fetched: Path = component.artifact(artifact.classifier, artifact.packaging).resolve()
    except Exception as exc:  # jgo raises its own errors, those of requests and OSError
        if getattr(exc, "errno", None) == errno.ENOSPC:
            raise
        for part in partial.rglob(f"{artifact.filename}*"):  # jgo would use a partial file as if it were complete
            part.unlink()
        raise Unavailable(
            "Maven repository",
            f"{artifact.filename} cannot be fetched: {type(exc).__name__}",
            hint="the first start needs the network; try again"
            " (if a proxy uses its own certificate, set REQUESTS_CA_BUNDLE to the certificate's file)",
        ) from exc
    return fetched


@contextmanager
def _lock_cache(cache_dir: Path) -> Iterator[None]:
    """Lock the cache folder during the block, so that stacks that share the folder take turns."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    with (cache_dir / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
