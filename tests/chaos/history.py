"""The history of a run: what was asked, said, acknowledged, done and seen, as JSON lines with times.

Owns the folder of a run: ``history.jsonl`` and ``logs/`` while it runs, and ``kafka/`` once it has ended. One folder
holds one run. ``tests.judge`` and ``tests.chaos.explain`` read these files.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import TextIO

from rtfm.errors import ConfigError

FORMAT = 1
HISTORY_FILE = "history.jsonl"


def now_ms() -> int:
    """Return milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def _open_new(folder: Path) -> TextIO:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError
    # "x" lets only one of two simultaneous runs create the file.
    return (folder / HISTORY_FILE).open("x", encoding="utf-8", buffering=1)


class History:
    """Writes one run's history. Thread-safe; each line is flushed to the file before the next is written."""

    def __init__(self, folder: Path) -> None:
        """Create ``folder``. Raises ConfigError if it is not empty."""
        self.folder = folder
        try:
            self._file = _open_new(folder)
        except FileExistsError:
            raise ConfigError(
                f"{folder} is not empty: one folder holds one run", hint="choose another folder"
            ) from None
        self.logs.mkdir()
        self._lock = threading.Lock()

    @property
    def logs(self) -> Path:
        """Folder of the logs: one file for each worker start and each service."""
        return self.folder / "logs"

    @property
    def kafka(self) -> Path:
        """Folder of Kafka's data once the run has ended."""
        return self.folder / "kafka"

    def write(self, event: str, **fields: object) -> None:
        """Add a line, unless the history is closed."""
        with self._lock:
            if not self._file.closed:
                line = {"at_ms": now_ms(), "event": event, **fields}
                self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Close the file; lines that other threads write later are dropped."""
        with self._lock:
            self._file.close()

    def move_to(self, folder: Path) -> None:
        """Move the whole run to ``folder``, which must not exist yet."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(self.folder, folder)
        self.folder = folder
