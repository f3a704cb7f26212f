"""Calls a function repeatedly while a run lasts."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable


class Ticker:
    """Calls ``do`` every ``period_s`` in its own thread until ``stop``. Errors of ``do`` are printed and ignored."""

    def __init__(self, period_s: float, do: Callable[[], None]) -> None:
        self._period_s = period_s
        self._do = do
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Start the thread. The first call comes after one period."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread. If a call is running, wait until it has returned."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._period_s):
            try:
                self._do()
            except Exception:  # the next call may succeed, and the run must continue
                traceback.print_exc()
