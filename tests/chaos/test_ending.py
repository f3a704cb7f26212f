"""A run of `make chaos` that ends early leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.chaos.guard import kill_below, processes_below
from tests.conftest import CHECKOUT
from tests.streams import eventually

LIMIT_S = 240.0
"""After a signal, a run must end within this time. It is long enough for a busy machine."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for temporary files. PostgreSQL may run as another user, who cannot use pytest's folders."""
    made = Path(tempfile.mkdtemp(prefix="rtfm-test-"))
    made.chmod(0o755)
    yield made
    kill_below(made)
    shutil.rmtree(made)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a run with its temporary files in ``folder``."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos", "--seconds", "120", *arguments],
        env={**os.environ, "TMPDIR": str(folder)},
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def await_line(run: subprocess.Popen[str], words: str) -> None:
    """Wait until ``run`` prints ``words``. A thread reads later output, so that a full pipe does not block the run."""
    assert run.stdout is not None
    said = []
    for line in run.stdout:
        said.append(line)
        if words in line:
            threading.Thread(target=run.stdout.read, daemon=True).start()
            return
    raise AssertionError("".join(said))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_by_a_signal_leaves_no_process_and_no_folder(folder: Path, number: signal.Signals) -> None:
    """All dependencies, workers and busy processes end, even if the run is killed with SIGKILL."""
    run = start(folder, "--load", "1")
    await_line(run, "added w2")
    children = psutil.Process(run.pid).children(recursive=True)
    names = {child.name() for child in children}
    assert {"java", "postgres"} <= names
    assert len(processes_below(folder)) >= 7, "four dependencies, two workers, a busy process"

    run.send_signal(number)

    code = run.wait(LIMIT_S)
    assert code == (-signal.SIGKILL if number is signal.SIGKILL else 128 + number)
    eventually(lambda: not any(child.is_running() for child in children), timeout_s=LIMIT_S)
    eventually(lambda: not list(folder.iterdir()), timeout_s=60)
    assert processes_below(folder) == []


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    """The run ends with exit code 2 and an error that names the reason. The folder is unchanged."""
    (tmp_path / "history.jsonl").touch()
    run = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--keep", str(tmp_path)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "one folder holds one run" in run.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "history.jsonl"]
