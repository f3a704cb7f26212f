"""The dependencies of a test run (Kafka, the schema registry, Chroma, PostgreSQL), which its xdist workers share.

The first xdist worker that needs the dependencies starts them. The same xdist worker stops them as soon as no other
xdist worker uses them. Their addresses are in a file of the run's folder. File locks show which xdist workers are
alive, so that no xdist worker waits for a crashed one.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO

Start = Callable[[ExitStack, str], tuple[dict[str, str], str]]
"""A function that starts the dependencies, and returns (addresses by name, description).

Its first argument is an ExitStack, to which the function adds what stops the dependencies. Its second argument is the
demanded kind: "local", "docker", or "" for any.
"""


class SharedStack:
    """The use that one process makes of the run's dependencies; the processes share files in ``folder``."""

    def __init__(self, folder: Path, start: Start) -> None:
        self._note = folder / "stack.json"
        self._changes = folder / "stack.changes"
        self._users = folder / "stack.users"
        self._start = start
        self._mine: ExitStack | None = None
        self._presence: IO[str] | None = None

    def join(self, wanted: str) -> tuple[dict[str, str], str]:
        """Return (addresses by name, description) of the dependencies, and start them if they do not run."""
        with self._changes.open("w") as changes:
            fcntl.flock(changes, fcntl.LOCK_EX)
            if not self._note.exists():
                with ExitStack() as exits:
                    self._note.write_text(json.dumps(self._start(exits, wanted)))
                    self._mine = exits.pop_all()
            self._presence = self._users.open("w")
            fcntl.flock(self._presence, fcntl.LOCK_SH)
            addresses, what = json.loads(self._note.read_text())
        return addresses, what

    def leave(self) -> None:
        """Release the dependencies.

        The process that started the dependencies waits until all other processes have released them, and then stops
        them.
        """
        if self._presence is None:
            return
        self._presence.close()
        while self._mine is not None:
            with self._changes.open("w") as changes, self._users.open("w") as users:
                fcntl.flock(changes, fcntl.LOCK_EX)
                try:
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    pass
                else:
                    self._note.unlink()
                    self._mine.close()
                    self._mine = None
            time.sleep(0.2)
