"""`rtfm-cli` in a child process that is forked after all imports are done.

A command spends most of its time on imports, and the tests run hundreds of commands, so the fork saves much time. A
forked command should behave like the installed one. The installed command has tests of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rtfm_cli.main import COMMANDS

_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload([module for module, _, _ in COMMANDS.values()])


def run_forked(
    arguments: list[str], environment: dict[str, str], *, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run `rtfm-cli` without a terminal and outside the checkout.

    After ``timeout_s``, kill the process and raise TimeoutExpired.
    """
    with tempfile.TemporaryDirectory(prefix="rtfm-cli-") as folder:
        outputs = Path(folder, "stdout"), Path(folder, "stderr")
        process = _FORKSERVER.Process(target=_command, args=(arguments, environment, *outputs))
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(
                ["rtfm-cli", *arguments], timeout_s, *(path.read_text() for path in outputs)
            )
        code, (stdout, stderr) = process.exitcode, (path.read_text("utf-8") for path in outputs)
    return subprocess.CompletedProcess(["rtfm-cli", *arguments], code, stdout, stderr)


def _command(arguments: list[str], environment: dict[str, str], stdout: Path, stderr: Path) -> None:
    """Run the command in the forked process."""
    from rtfm_cli import main

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(tempfile.gettempdir())  # this folder has no .env file
    for path, number in ((stdout, 1), (stderr, 2)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.exit(main.run(arguments))
