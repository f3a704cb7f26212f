"""The Java archives of Kafka and the registry: fetched once, checked by SHA-256 always, offline after that.

``artifacts.lock`` beside this file names each with its size in bytes and its SHA-256; nothing else is run.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.resources import files
from pathlib import Path

from attrs import frozen

from rtfm.errors import ConfigError, Unavailable

Progress = Callable[[str, int, int], None]
"""Called with (what is fetched, bytes so far, bytes in all)."""

_PARALLEL_DOWNLOADS = 6


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
    """The artifacts of ``service``."""
    lines = files("rtfm.local").joinpath("artifacts.lock").read_text(encoding="utf-8").splitlines()
    return [_parse(line) for line in lines if line.startswith(f"{service} ")]


def _parse(line: str) -> Artifact:
    service, coordinates, size, sha256 = line.split()
    name, _, packaging = coordinates.partition("@")
    group, artifact, version, *classifier = name.split(":")
    return Artifact(
        service, group, artifact, version, classifier[0] if classifier else "", packaging, int(size), sha256
    )


def ensure(cache_dir: Path, services: Iterable[str], progress: Progress | None = None) -> None:
    """Have every artifact of ``services`` in ``cache_dir``, fetching what is missing.

    Raises ConfigError for a corrupted file or a full disk, Unavailable when one cannot be fetched.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    wanted = [artifact for service in services for artifact in locked(service)]
    missing = [artifact for artifact in wanted if not _verified(cache_dir, artifact)]
    if not missing:
        return
    total = sum(artifact.size_bytes for artifact in missing)
    if shutil.disk_usage(cache_dir).free < 3 * total:
        raise ConfigError(
            f"{cache_dir} has too little room: {3 * total // 10**6} MB are needed", hint="free some, or set RTFM_HOME"
        )
    done = 0
    with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
        futures = {pool.submit(_fetch, cache_dir, artifact): artifact for artifact in missing}
        try:
            for future in as_completed(futures):
                future.result()
                done += futures[future].size_bytes
                if progress is not None:
                    progress(futures[future].filename, done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def class_path(cache_dir: Path, service: str) -> str:
    """The Java class path of the jars of ``service``."""
    return ":".join(str(cache_dir / artifact.filename) for artifact in locked(service))


def unpacked(cache_dir: Path, service: str) -> Path:
    """The folder with the contents of the one archive of ``service``, unpacked at the first call."""
    (artifact,) = locked(service)
    folder = cache_dir / artifact.filename.removesuffix(f".{artifact.packaging}")
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(cache_dir / artifact.filename) as archive:
            archive.extractall(partial, filter="data")
        partial.rename(folder)
    return folder


def _verified(cache_dir: Path, artifact: Artifact) -> bool:
    """Whether the file is there and whole; a stamp beside it spares hashing it at every start."""
    path = cache_dir / artifact.filename
    if not path.is_file():
        return False
    stamp = path.with_name(f"{path.name}.sha256")
    status = path.stat()
    mark = f"{artifact.sha256} {status.st_size} {status.st_mtime_ns}"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == mark:
        return True
    if _sha256(path) != artifact.sha256:
        raise ConfigError(
            f"{path} is corrupted: its SHA-256 is not the locked one", hint="delete the file and start again"
        )
    stamp.write_text(mark, encoding="utf-8")
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(cache_dir: Path, artifact: Artifact) -> None:
    from jgo.maven import MavenContext

    context = MavenContext(repo_cache=cache_dir / "fetched")
    component = context.project(artifact.group, artifact.name).at_version(artifact.version)
    try:
        fetched = component.artifact(artifact.classifier, artifact.packaging).resolve()
    except Exception as exc:  # jgo raises RuntimeError, requests' and urllib's errors alike
        raise Unavailable(
            "Maven",
            f"{artifact.filename} cannot be fetched: {exc}",
            hint="the first start needs the network; try again",
        ) from exc
    target = cache_dir / artifact.filename
    if (found := _sha256(fetched)) != artifact.sha256:
        fetched.unlink()
        raise ConfigError(f"{artifact.filename} was fetched with SHA-256 {found}, not the locked {artifact.sha256}")
    fetched.replace(target)
    _verified(cache_dir, artifact)
