"""Calibrates the floors of guilds that have grown, in a thread beside ingest.

This module owns the thread and its queue. A guild is calibrated by only one processor at a time. Ingest does not wait
for a calibration. When the process ends, the contents of the queue are lost, but a guild is queued again when its next
message is ingested.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection

from rtfm.errors import RtfmError, TransientError
from rtfm.knowledge import Knowledge
from rtfm.knowledge.floor import calibrate
from rtfm.telemetry import get_logger

RETRY_S = 15.0
"""If a calibration fails because a store does not respond, it is retried after this many seconds."""

STOP_TIMEOUT_S = 5.0
"""Maximum number of seconds that the shutdown waits for the thread to finish its current search and end."""

_log = get_logger(__name__)


class Calibration:
    """The calibration thread, which runs inside a ``with`` block. ``enqueue`` is thread-safe."""

    def __init__(self, knowledge: Knowledge, *, retry_s: float = RETRY_S) -> None:
        self._knowledge = knowledge
        self._retry_s = retry_s
        # A None in the queue ends the thread. If a guild is in the queue twice, its floor is calibrated when the guild
        # is taken first. After that, the floor is not due any more, so the second time nothing is calibrated.
        self._guild_ids: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="calibration", daemon=True)

    def __enter__(self) -> Calibration:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._guild_ids.put(None)
        self._thread.join(STOP_TIMEOUT_S)

    def enqueue(self, guild_ids: Collection[str]) -> None:
        """Queue guilds for calibration, and return at once. A guild is calibrated only if its floor is due."""
        for guild_id in sorted(guild_ids):
            self._guild_ids.put(guild_id)

    def _work(self) -> None:
        while (guild_id := self._guild_ids.get()) is not None and not self._stopping.is_set():
            try:
                with self._knowledge.archive.floors.try_lock(guild_id) as is_ours:
                    if is_ours:
                        calibrate(
                            self._knowledge.archive,
                            self._knowledge.retriever,
                            guild_id,
                            is_stopped=self._stopping.is_set,
                        )
            except TransientError as exc:
                _log.warning("calibrating a floor failed, retrying", guild_id=guild_id, reason=str(exc), hint=exc.hint)
                self.enqueue([guild_id])
                self._stopping.wait(self._retry_s)
            except RtfmError as exc:
                _log.warning("calibrating a floor failed", guild_id=guild_id, reason=str(exc), hint=exc.hint)
