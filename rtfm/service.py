"""Code that the processor and the bot share: signals, the metrics port, the watchdog, and waiting for dependencies."""

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
"""Exit code of a service that ends because of a second signal, or because a loop hangs."""

POLL_S = 0.1
"""While a service waits, it checks at intervals of this many seconds whether it was asked to stop."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0

_log = get_logger(__name__)

T = TypeVar("T")


class Stop:
    """The request to stop a service. It is made by SIGTERM, by SIGINT or by setting ``event``."""

    def __init__(self, event: threading.Event | None = None) -> None:
        self.event = event or threading.Event()
        self._signals = 0

    def is_set(self) -> bool:
        """Return whether the service was asked to stop."""
        # The signal handler only counts signals. If it set the event itself, it could interrupt this thread while the
        # thread holds the event's lock, and the thread would then wait for itself forever.
        if self._signals:
            self.event.set()
        return self.event.is_set()

    def set(self) -> None:
        """Ask the service to stop."""
        self.event.set()

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handle signals: the first asks the service to stop, and the second ends the process at once.

        Does nothing outside the main thread.
        """
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
            # After a first signal, the signal handler stays installed, so that a second signal still ends the process.
            if not self._signals:
                for number, handler in before.items():
                    signal.signal(number, handler)


@contextmanager
def open_monitoring(settings: Settings, ready: Mapping[str, Callable[[], str | None]]) -> Iterator[Health]:
    """Open the metrics port and start the watchdog. Yield the ``Health`` that both of them read.

    ``ready`` contains the first conditions of readiness, by name. Without them, a service would be reported as ready
    while it is still starting. Raises ConfigError if the port cannot be opened.
    """
    health = Health(max_gap_s=settings.watchdog_s * 2 / 3)
    for name, check in ready.items():
        health.ready_when(name, check)
    try:
        server = MetricsServer(health, settings.metrics_host, settings.metrics_port)
    except OSError as exc:
        raise ConfigError(
            f"METRICS_PORT: {settings.metrics_host}:{settings.metrics_port} cannot be opened: {exc.strerror}",
            hint="Choose another METRICS_PORT, or 0 for any free port.",
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
    """Call ``step`` until it does not raise TransientError, and return its result; None if ``stop`` is set first.

    The first failure is logged. ``note`` is called with every failure.
    """
    backoff, logged = Backoff(_FIRST_WAIT_S, _LONGEST_WAIT_S), False
    while not stop.is_set():
        try:
            return step()
        except TransientError as exc:
            note(exc)
            if not logged:
                _log.warning("waiting to start", reason=str(exc), hint=exc.hint)
            logged = True
        until_s = time.monotonic() + backoff.next_s()
        while time.monotonic() < until_s and not stop.is_set():
            time.sleep(POLL_S)
    return None


class Watchdog:
    """A thread that ends the process if a loop hangs.

    A loop hangs if it has reported no pass to ``health`` for ``limit_s`` seconds. Without the watchdog, a process with
    a hung loop would keep its partitions, and nobody would handle their records. Before the process ends, the stacks of
    all threads are written to standard error.

    The watchdog's thread cannot run while other code, such as a backtracking regular expression or a C extension, holds
    the GIL. A timer of the interpreter, which does not need the GIL, covers this case. The thread arms the timer again
    and again. If the thread does not run for ``limit_s`` seconds, the timer ends the process.

    Use it as ``with Watchdog(health, 45): …``, once per process.
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
        # The timer ends the process unless it is armed again within ``limit_s`` seconds.
        faulthandler.dump_traceback_later(self._limit_s, exit=True, file=sys.stderr)

    def _end_process(self, stalled: dict[str, str]) -> None:
        _log.error("a loop hangs, ending the process", **stalled)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
        os._exit(EXIT_CODE)
