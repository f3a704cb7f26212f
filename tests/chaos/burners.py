"""Busy processes that compete with a chaos run for the CPUs of the machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# A busy process ends when its standard input is closed. Its input is closed when the run ends, even by kill -9.
_BURN = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
while True:
    sum(range(10_000))
"""


@contextmanager
def burning(count: int, folder: Path) -> Iterator[None]:
    """Run ``count`` busy processes in the working folder ``folder`` until the block ends."""
    burners = [subprocess.Popen([sys.executable, "-c", _BURN], stdin=subprocess.PIPE, cwd=folder) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
        for burner in burners:
            burner.communicate()
