"""The history of a run: a file of JSON lines, each with a time and an event.

Events are, for example, a question that was asked, an acknowledgement, an action, or a record that a reader got. The
history is the file ``history.jsonl`` in the run's folder. The folder also contains ``logs/`` and, after the run,
``kafka/``. One folder holds one run. ``tests.judge`` and ``tests.chaos.explain`` read these files.
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
    """Return the current time in milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def _open_new(folder: Path) -> TextIO:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError
    # "x" lets only one of two simultaneous runs create the file.
    return (folder / HISTORY_FILE).open("x", encoding="utf-8", buffering=1)


class History:
    """Writes the history of one run. Each line is flushed to the file at once. Thread-safe."""

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
        """The folder of the logs: a file for each start of a worker and, after the run, logs of the dependencies."""
        return self.folder / "logs"

    @property
    def kafka(self) -> Path:
        """The folder of Kafka's data after the run."""
        return self.folder / "kafka"

    def write(self, event: str, **fields: object) -> None:
        """Add a line with the current time. A line that is written after ``close`` is dropped."""
        with self._lock:
            if not self._file.closed:
                line = {"at_ms": now_ms(), "event": event, **fields}
                self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    def move_to(self, folder: Path) -> None:
        """Move the run's folder to ``folder``, which must not exist."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(self.folder, folder)
        self.folder = folder
