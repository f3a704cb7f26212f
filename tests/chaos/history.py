"""The history of a run: what was asked, said, acknowledged, done and seen, as lines of JSON with times.

Owns the folder of a run: ``history.jsonl`` and ``logs/`` while it runs, and ``kafka/`` once it has ended. One folder
holds one run. ``tests.judge`` and ``tests.chaos.explain`` read what is written here.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

from rtfm.errors import ConfigError

FORMAT = 1
HISTORY_FILE = "history.jsonl"


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class History:
    """Writes one run's history. Safe to use from several threads; each line is on the disk before the next."""

    def __init__(self, folder: Path) -> None:
        """Make ``folder``; ConfigError where it holds a run already, or anything else."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise FileExistsError
            # "x" decides between two runs that start at the same moment.
            self._file = (folder / HISTORY_FILE).open("x", encoding="utf-8", buffering=1)
        except FileExistsError:
            raise ConfigError(f"{folder} is not empty: one folder holds one run", hint="name another folder") from None
        self.logs.mkdir()
        self._lock = threading.Lock()

    @property
    def logs(self) -> Path:
        """Where each worker start and each service has its log."""
        return self.folder / "logs"

    @property
    def kafka(self) -> Path:
        """Where Kafka's data is when the run has ended."""
        return self.folder / "kafka"

    def write(self, event: str, **fields: object) -> None:
        """Add a line, unless the history is closed."""
        with self._lock:
            if not self._file.closed:
                line = {"at_ms": now_ms(), "event": event, **fields}
                self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """End; what still comes from other threads is left out."""
        with self._lock:
            self._file.close()

    def move_to(self, folder: Path) -> None:
        """Move the whole run to ``folder``, which does not exist yet."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(self.folder, folder)
        self.folder = folder
