"""What both services share: signals, the metrics port, the watchdog, and waiting for what is down at the start."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from rtfm import __version__
from rtfm.backoff import Backoff
from rtfm.errors import ConfigError, TransientError
from rtfm.settings import Settings
from rtfm.telemetry import BUILD_INFO, Health, MetricsServer, get_logger

EXIT_CODE = 1
POLL_S = 0.1
"""How soon a service notices that it is asked to end."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0

_log = get_logger(__name__)

T = TypeVar("T")


class Stop:
    """Whether a service was asked to end: by SIGTERM, by SIGINT, or by ``event``."""

    def __init__(self, event: threading.Event | None = None) -> None:
        self.event = event or threading.Event()
        self._signals = 0

    def is_set(self) -> bool:
        """Whether it was."""
        # A signal's handler may interrupt whoever holds the event's lock, so it only counts.
        if self._signals:
            self.event.set()
        return self.event.is_set()

    def set(self) -> None:
        """Ask for the end."""
        self.event.set()

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """A first signal asks for the end, a second one does not wait for it. Nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def receive(*_: object) -> None:
            if self._signals:
                os._exit(EXIT_CODE)
            self._signals += 1

        before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            # Once asked to end, the process ends: until it has, a second signal must find who listens.
            if not self._signals:
                for number, handler in before.items():
                    signal.signal(number, handler)


@contextmanager
def open_monitoring(settings: Settings, ready: Mapping[str, Callable[[], str | None]]) -> Iterator[Health]:
    """A service's health, shown on its metrics port; the process ends when a loop that reports to it hangs.

    ``ready`` are the first conditions of readiness: without one the port would call a service ready that has only
    begun to start. Raises ConfigError when the port cannot be had.
    """
    health = Health(max_gap_s=settings.watchdog_s * 2 / 3)
    for name, check in ready.items():
        health.ready_when(name, check)
    try:
        server = MetricsServer(health, settings.metrics_host, settings.metrics_port)
    except OSError as exc:
        raise ConfigError(
            f"METRICS_PORT: {settings.metrics_host}:{settings.metrics_port} cannot be opened: {exc.strerror}",
            hint="Choose another METRICS_PORT; 0 takes a free one.",
        ) from exc
    BUILD_INFO.labels(__version__).set(1)
    server.start()
    _log.info("metrics and health", address=f"http://{settings.metrics_host}:{server.port}")
    try:
        with Watchdog(health, settings.watchdog_s):
            yield health
    finally:
        server.stop()


def retry_until_available(
    step: Callable[[], T], stop: Stop, note: Callable[[TransientError], object] = lambda _: None
) -> T | None:
    """The result of ``step``, however long what it needs is down; None when ``stop`` came first.

    The first failure is logged, ``note`` is given each.
    """
    backoff, said = Backoff(_FIRST_WAIT_S, _LONGEST_WAIT_S), False
    while not stop.is_set():
        try:
            return step()
        except TransientError as exc:
            note(exc)
            if not said:
                _log.warning("waiting to start", reason=str(exc), mend=exc.hint)
            said = True
        until_s = time.monotonic() + backoff.next_s()
        while time.monotonic() < until_s and not stop.is_set():
            time.sleep(POLL_S)
    return None


class Watchdog:
    """Ends the process ``limit_s`` after the last pass of any loop that reports to ``health``.

    A process that hangs keeps its partitions from everybody else for as long as the group believes in it. Two things
    watch: a thread, and under it a timer of the interpreter that needs no lock of Python's, for what holds that lock
    for ever (a regular expression that backtracks, an extension in C). The stacks of all threads go to standard error
    first. ``with Watchdog(health, 45): …``; one a process.
    """

    def __init__(self, health: Health, limit_s: float) -> None:
        self._health = health
        self._limit_s = limit_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._rearm_timer()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            while not self._done.wait(min(1.0, self._limit_s / 10)):
                self._rearm_timer()
                if stalled := self._health.find_stalled(self._limit_s):
                    self._end_process(stalled)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _rearm_timer(self) -> None:
        # It fires when not even our thread gets to wind it up again.
        faulthandler.dump_traceback_later(self._limit_s, exit=True, file=sys.stderr)

    def _end_process(self, stalled: dict[str, str]) -> None:
        _log.error("a loop hangs, the process ends", **stalled)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
        os._exit(EXIT_CODE)
