"""Busy processes alongside a run, which make the machine as slow as one with other work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Ends when its standard input is closed, which happens however its parent ends.
_BURN = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
while True:
    sum(range(10_000))
"""


@contextmanager
def burning(count: int, folder: Path) -> Iterator[None]:
    """Run ``count`` busy processes with ``folder`` as their working folder."""
    burners = [subprocess.Popen([sys.executable, "-c", _BURN], stdin=subprocess.PIPE, cwd=folder) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
        for burner in burners:
            burner.communicate()
