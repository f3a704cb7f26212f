"""Ends the processes of a run and removes its folder if the run itself can no longer do so.

``python -m tests.chaos.guard FOLDER`` waits until its standard input is closed, which happens when the run has ended,
even by ``kill -9``. It then kills every process whose working folder is below FOLDER, as that of every service, worker
and burner is. It has its own session, so that a signal to the run's process group does not reach it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

CHECKOUT = Path(__file__).parents[2]  # as in tests.conftest, which imports too much for here

CLEAR_S = 1.0
"""How long no process must have been found before the folder is removed: one that starts may start another."""

LIMIT_S = 30.0


def processes_below(folder: Path) -> list[psutil.Process]:
    """Return running processes whose working folder is ``folder`` or below, except this one."""
    found = []
    for process in psutil.process_iter(["cwd", "status"]):
        cwd = process.info["cwd"]
        gone = process.info["status"] == psutil.STATUS_ZOMBIE or process.pid == os.getpid()
        if cwd and not gone and Path(cwd.removesuffix(" (deleted)")).is_relative_to(folder):
            found.append(process)
    return found


def kill_below(folder: Path) -> None:
    """Send ``kill -9`` to every process whose working folder is ``folder`` or below."""
    for process in processes_below(folder):
        with suppress(psutil.Error):
            process.kill()


@contextmanager
def guard_folder(folder: Path) -> Iterator[None]:
    """Remove ``folder`` and its processes even if this process is killed."""
    guard = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.guard", str(folder)],
        stdin=subprocess.PIPE,
        cwd=CHECKOUT,
        start_new_session=True,
    )
    try:
        yield
    finally:
        guard.communicate()


def main(folder: Path) -> None:
    """Wait for the end of the run, then kill its processes and remove its folder."""
    sys.stdin.buffer.read()
    until_s = time.monotonic() + LIMIT_S
    clear_at_s = time.monotonic() + CLEAR_S
    while folder.exists() and time.monotonic() < min(until_s, clear_at_s):
        if processes_below(folder):
            clear_at_s = time.monotonic() + CLEAR_S
            kill_below(folder)
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
