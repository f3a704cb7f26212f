"""Downloaded files are complete, or not used."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
import stamina

from rtfm.errors import ConfigError, Unavailable
from rtfm.local import artifacts, services
from rtfm.local.artifacts import Artifact


def _artifact(content: bytes, packaging: str = "jar", size_bytes: int | None = None) -> Artifact:
    sha256 = hashlib.sha256(content).hexdigest()
    return Artifact("made-up", "org.example", "thing", "1.0", "", packaging, size_bytes or len(content), sha256)


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_a_corrupted_jar_is_named_with_what_to_do(tmp_path: Path) -> None:
    """The error for a corrupted jar names the jar and has a hint; the jar is not silently downloaded again."""
    (tmp_path / "thing-1.0.jar").write_bytes(b"not what was locked")
    with pytest.raises(ConfigError, match=r"thing-1\.0\.jar is corrupted") as caught:
        artifacts.ensure(tmp_path, [_artifact(b"content")])
    assert "delete the file" in str(caught.value.hint)


def test_a_jar_that_changes_after_it_was_checked_is_found_corrupted(tmp_path: Path) -> None:
    """If a jar changes after it was checked, the change is found, even if the length stays the same."""
    jar = tmp_path / "thing-1.0.jar"
    jar.write_bytes(b"content")
    artifacts.ensure(tmp_path, [_artifact(b"content")])
    jar.write_bytes(b"CONTENT")
    with pytest.raises(ConfigError, match="corrupted"):
        artifacts.ensure(tmp_path, [_artifact(b"content")])


def test_a_disk_without_room_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    """If disk space is missing, nothing is downloaded; the error says how much is free and how much is needed."""
    with pytest.raises(ConfigError, match=r"MB free, the services need 3000000000 MB"):
        artifacts.ensure(tmp_path, [_artifact(b"content", size_bytes=10**15)])
    assert not (tmp_path / "partial").exists()


def test_complete_files_are_not_fetched_again(tmp_path: Path) -> None:
    """If every file is complete, there is no network access and no progress."""
    (tmp_path / "thing-1.0.jar").write_bytes(b"content")
    reports: list[tuple[str, int, int]] = []
    for _ in range(2):
        artifacts.ensure(tmp_path, [_artifact(b"content")], lambda *report: reports.append(report))
    assert reports == []


def test_an_unpacked_folder_that_was_damaged_is_unpacked_again(tmp_path: Path) -> None:
    """A changed or missing file of an unpacked folder is restored from the archive, whose SHA-256 is known."""
    content = _archive({"lib/a.jar": b"first", "lib/b.jar": b"second"})
    artifact = _artifact(content, "tar.gz")
    (tmp_path / artifact.filename).write_bytes(content)
    folder = artifacts.ensure_unpacked(tmp_path, artifact)
    (folder / "lib" / "a.jar").write_bytes(b"damaged")
    (folder / "lib" / "b.jar").unlink()
    assert artifacts.ensure_unpacked(tmp_path, artifact) == folder
    assert (folder / "lib" / "a.jar").read_bytes() == b"first"
    assert (folder / "lib" / "b.jar").read_bytes() == b"second"


def test_unpacking_that_was_killed_halfway_is_begun_again(tmp_path: Path) -> None:
    """If unpacking was killed, the folder has no list of its files, and is unpacked again."""
    content = _archive({"lib/a.jar": b"first"})
    artifact = _artifact(content, "tar.gz")
    (tmp_path / artifact.filename).write_bytes(content)
    half = tmp_path / "thing-1.0"
    half.mkdir()
    (half / "rest").write_bytes(b"")
    folder = artifacts.ensure_unpacked(tmp_path, artifact)
    assert [path.name for path in folder.rglob("*.jar")] == ["a.jar"]
    assert not (folder / "rest").exists()


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    """An archive with a path outside its folder is refused."""
    content = _archive({"../climbed": b""})
    artifact = _artifact(content, "tar.gz")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / artifact.filename).write_bytes(content)
    with pytest.raises(ConfigError, match=r"\.\./climbed"):
        artifacts.ensure_unpacked(cache, artifact)
    assert not (tmp_path / "climbed").exists()


@pytest.mark.parametrize("service", ["kafka", "schema-registry"])
def test_the_lock_names_every_file_with_size_and_digest(service: str) -> None:
    """The lock has name, size and digest of every file; no two files of a dependency have the same name."""
    locked = services.artifacts_of(service)
    assert locked
    assert all(len(artifact.sha256) == 64 and artifact.size_bytes > 0 for artifact in locked)
    assert len({artifact.filename for artifact in locked}) == len(locked)


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("", "no message"),
        ("starting\nready\n", "ready"),
        ("ERROR could not bind\n\tat java.base/x.y(Z.java:1)\n\t... 3 more\nshutting down\n", "ERROR could not bind"),
        ("Error: outer\nCaused by: java.net.BindException: Address already in use\n at x\n",
         "Caused by: java.net.BindException: Address already in use"),
    ],
)  # fmt: skip
def test_the_reason_is_found_in_a_programs_last_output(log: str, line: str) -> None:
    """The reason for a program's end is found in its last log lines, between stack traces and other messages."""
    assert services.find_reason(log) == line


class InterruptedRepository:
    """A repository whose first ``breaks`` downloads stop after a part of the file."""

    def __init__(self, path: Path, breaks: int) -> None:
        self.path, self.breaks, self.asked = path, breaks, 0

    def project(self, *_: str) -> InterruptedRepository:
        return self

    at_version = artifact = project

    def resolve(self) -> Path:
        self.asked += 1
        if self.path.exists():
            return self.path
        if self.asked <= self.breaks:
            self.path.write_bytes(b"the be")
            raise OSError("the connection was lost")
        self.path.write_bytes(b"the beginning and the end")
        return self.path


@pytest.mark.parametrize(("breaks", "whole"), [(2, True), (3, False)])
def test_an_interrupted_download_is_retried_twice(tmp_path: Path, breaks: int, whole: bool) -> None:
    """A download that stops early is repeated from its beginning, twice at most.

    If the last attempt fails, the error says that the file cannot be fetched.
    """
    artifact = artifacts.locked_artifacts("kafka")[0]
    repository = InterruptedRepository(tmp_path / artifact.filename, breaks)
    with stamina.set_testing(True, attempts=3):
        if whole:
            fetched = artifacts._download(repository, artifact, tmp_path)
            assert fetched.read_bytes() == b"the beginning and the end"
        else:
            with pytest.raises(Unavailable, match="cannot be fetched"):
                artifacts._download(repository, artifact, tmp_path)
    assert repository.asked == 3
