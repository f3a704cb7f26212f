"""The watchdog: a process whose loop hangs says where, and ends, so that whoever started it starts it again.

A process that hangs keeps its partitions from everybody else for as long as the group believes in it. Two things
watch: a thread, and under it a timer of the interpreter that needs no lock of Python's, for what holds that lock for
ever (a regular expression that backtracks, an extension in C).
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading

from rtfm.telemetry import Health, get_logger

_log = get_logger(__name__)

EXIT_CODE = 1


class Watchdog:
    """Ends the process ``limit_s`` after the last pass of any loop that reports to ``health``.

    The stacks of all threads go to standard error first. ``with Watchdog(health, 45): …``; one a process.
    """

    def __init__(self, health: Health, limit_s: float) -> None:
        self._health = health
        self._limit_s = limit_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._wind_up()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            while not self._done.wait(min(1.0, self._limit_s / 10)):
                self._wind_up()
                if stalled := self._health.stalled(self._limit_s):
                    self._end(stalled)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _wind_up(self) -> None:
        # It fires when not even our thread gets to wind it up again.
        faulthandler.dump_traceback_later(self._limit_s, exit=True, file=sys.stderr)

    def _end(self, stalled: dict[str, str]) -> None:
        _log.error("a loop hangs, the process ends", **stalled)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
        os._exit(EXIT_CODE)
