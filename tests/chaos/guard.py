"""Ends the processes of a run and removes its folder, even if the run was killed and cannot do this itself.

``python -m tests.chaos.guard FOLDER`` waits until its standard input is closed. The input is closed when the run ends,
even by ``kill -9``. Then the guard kills every process whose working folder is FOLDER or below: the workers, their
dependencies and the busy processes. At last, it removes FOLDER. The guard has its own session, so that a signal to the
run's process group does not reach the guard.
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

CHECKOUT = Path(__file__).parents[2]  # the same as in tests.conftest, which takes long to import

CLEAR_S = 1.0
"""The folder is removed when the guard has found no process for this many seconds.

A process may start another process just before it is killed. The guard finds the new process during this time.
"""

LIMIT_S = 30.0
"""After this time, the folder is removed even if processes are still found."""


def processes_below(folder: Path) -> list[psutil.Process]:
    """Return all running processes whose working folder is ``folder`` or below, except this process."""
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
    """When the block or this process ends, kill the processes below ``folder`` and remove the folder."""
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
    """Wait until the run ends, then kill its processes and remove its folder."""
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
