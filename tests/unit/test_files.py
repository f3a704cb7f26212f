"""A file is written completely, or not at all."""

import stat
from pathlib import Path

import pytest

from rtfm.files import write_atomically


def test_a_file_is_replaced_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    """Writing replaces a file, leaves no temporary file, and creates a missing folder."""
    path = tmp_path / "folder" / "state.json"
    write_atomically(path, "first")
    write_atomically(path, "zwölf")
    assert path.read_text("utf-8") == "zwölf"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """A write that fails leaves the old file unchanged, and leaves no part of the new file."""
    path = tmp_path / "state.json"
    write_atomically(path, "first")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "no \ud800 UTF-8")
    assert path.read_text("utf-8") == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_private_file_is_private_from_the_first_byte(tmp_path: Path) -> None:
    """A private file has the requested mode."""
    path = tmp_path / "password"
    write_atomically(path, "secret", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
