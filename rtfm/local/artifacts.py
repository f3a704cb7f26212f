"""The Java archives of Kafka and the registry: fetched once, checked by SHA-256 always, offline after that.

``artifacts.lock`` beside this file names each with its size in bytes and its SHA-256; nothing else is run. Several
stacks may share a cache folder. Does not choose versions: the lock does.
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
"""Called with (what is fetched, bytes so far, bytes in all), from several threads but one at a time."""

Meter = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""In the shape in which jgo reports: for a file's name and size, a function to call with the bytes of each chunk."""

_PARALLEL_DOWNLOADS = 6
_REPLY_TIMEOUT_S = 20
_ATTEMPTS = 3


@frozen
class Artifact:
    """One line of the lock."""

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


def locked(service: str) -> list[Artifact]:
    """The artifacts of ``service``, as the lock has them."""
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
    """Have every one of ``artifacts`` whole in ``cache_dir``, fetching what is missing.

    Raises ConfigError for a corrupted file or a full disk, Unavailable when one cannot be fetched.
    """
    with _sole_use(cache_dir):
        # All 200 MB are hashed in 0.2 s, which is little beside what the services take to start.
        missing = [artifact for artifact in artifacts if not _is_whole(cache_dir / artifact.filename, artifact)]
        if not missing:
            return
        total = sum(artifact.size_bytes for artifact in missing)
        # The archives are unpacked beside themselves.
        if (free := shutil.disk_usage(cache_dir).free) < 3 * total:
            raise ConfigError(
                f"{cache_dir} has {free / 1e6:.0f} MB free, the services need {3 * total / 1e6:.0f} MB",
                hint="make room, or set RTFM_HOME to a folder on another disk",
            )
        partial = cache_dir / "partial"
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        try:
            _fetch_all(missing, partial, cache_dir, _meter(total, progress))
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def class_path(cache_dir: Path, service: str) -> str:
    """The Java class path of the jars of ``service``."""
    return os.pathsep.join(str(cache_dir / artifact.filename) for artifact in locked(service))


def unpacked(cache_dir: Path, artifact: Artifact) -> Path:
    """The folder with the contents of an archive that ``ensure`` found whole.

    Unpacks it at the first call, and again when a file of the folder is missing or has changed since.
    """
    folder = cache_dir / artifact.filename.removesuffix(f".{artifact.packaging}")
    listing = folder.with_name(f"{folder.name}.json")
    with _sole_use(cache_dir):
        if listing.is_file() and json.loads(listing.read_text(encoding="utf-8")) == _listing(folder):
            return folder
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        unpack(cache_dir / artifact.filename, partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        listing.write_text(json.dumps(_listing(folder)), encoding="utf-8")
    return folder


def unpack(path: Path, folder: Path) -> None:
    """Unpack a tar archive of files and folders into ``folder``; ConfigError when it holds anything else."""
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            where = PurePosixPath(member.name)
            if not (member.isfile() or member.isdir()) or where.is_absolute() or ".." in where.parts:
                raise ConfigError(f"{path} is not unpacked: {member.name} would not be a file of its own folder")
        # extractall takes a filter from Python 3.11.4 on, and Debian 12 has 3.11.2.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)  # noqa: S202 - its members were checked


def _listing(folder: Path) -> dict[str, list[int]]:
    """Size in bytes and time of change in nanoseconds of every file below ``folder``."""
    return {
        str(path.relative_to(folder)): [(status := path.stat()).st_size, status.st_mtime_ns]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _meter(total: int, progress: Progress | None) -> Meter:
    """What adds up how much several downloads have fetched, and tells ``progress``."""
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


def _is_whole(path: Path, artifact: Artifact) -> bool:
    if not path.is_file():
        return False
    if _sha256(path) != artifact.sha256:
        raise ConfigError(
            f"{path} is corrupted: its SHA-256 is not the locked one",
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
    # The largest first, or it would be the only one left at the end.
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
            f"{artifact.filename} was fetched with the SHA-256 {found}, not the locked one",
            hint="try again; if it stays so, the repository or a proxy before it serves another file",
        )
    fetched.replace(cache_dir / artifact.filename)


def _download(context: Any, artifact: Artifact, partial: Path) -> Path:
    # A decorator would log the arguments, too.
    for attempt in stamina.retry_context(on=Unavailable, attempts=_ATTEMPTS, wait_initial=1.0, wait_max=5.0):
        with attempt:
            return _resolved(context, artifact, partial)
    raise AssertionError("stamina raises the last failure")


def _resolved(context: Any, artifact: Artifact, partial: Path) -> Path:
    component = context.project(artifact.group, artifact.name).at_version(artifact.version)
    try:
        fetched: Path = component.artifact(artifact.classifier, artifact.packaging).resolve()
    except Exception as exc:  # jgo lets its own, requests' and the system's errors out
        if getattr(exc, "errno", None) == errno.ENOSPC:
            raise
        for left in partial.rglob(f"{artifact.filename}*"):  # which would pass for the whole
            left.unlink()
        raise Unavailable(
            "Maven repository",
            f"{artifact.filename} cannot be fetched: {type(exc).__name__}",
            hint="the first start needs the network; try again"
            " (REQUESTS_CA_BUNDLE names the certificate of a proxy that has its own)",
        ) from exc
    return fetched


@contextmanager
def _sole_use(cache_dir: Path) -> Iterator[None]:
    """Stacks that share a cache take turns."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    with (cache_dir / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
