"""RTFM_HOME is closed to other users, unless it is a folder that all users share."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from rtfm_cli import main
from structlog.testing import capture_logs

from rtfm.home import make_private, restrict_to_owner


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_home_is_closed_whatever_the_umask(tmp_path: Path) -> None:
    """A new home is closed whatever the umask is, and the umask decides the mode of its parents."""
    before = os.umask(0)
    try:
        make_private(tmp_path / "a" / "home")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a" / "home") == 0o700
    assert mode(tmp_path / "a") == 0o777


@pytest.mark.parametrize("was", [0o755, 0o701, 0o750, 0o777])
def test_a_wider_home_is_closed_with_a_line_that_says_so(tmp_path: Path, was: int) -> None:
    """A home that is open to other users is closed, and one log line names the folder and both modes.

    A second call logs nothing.
    """
    tmp_path.chmod(was)
    with capture_logs() as lines:
        restrict_to_owner(tmp_path)
        restrict_to_owner(tmp_path)
    assert mode(tmp_path) == 0o700
    (line,) = lines
    assert (line["folder"], line["mode"], line["was"]) == (str(tmp_path), "0700", f"{was:04o}")


def test_a_folder_shared_by_all_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    """A folder that all users share, as in RTFM_HOME=/tmp, is named in the log and not closed."""
    tmp_path.chmod(0o1777)
    with capture_logs() as lines:
        restrict_to_owner(tmp_path)
    assert mode(tmp_path) == 0o1777
    assert [line["folder"] for line in lines] == [str(tmp_path)]


def test_any_command_closes_a_home_that_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command closes an open home, even if the command does not use the home."""
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    monkeypatch.setenv("RTFM_HOME", str(home))
    assert main.run(["schemas", "list"]) == 0
    assert mode(home) == 0o700
    assert str(home) in capsys.readouterr().err
