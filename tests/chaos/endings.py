"""Ends a run early by an exception in the main thread, after a signal or at the time limit of the run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tests.chaos.guard import kill_below

INTERRUPTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked the run to end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


class OutOfTime(BaseException):
    """The run's time limit has passed."""


def end_limit() -> None:
    """Cancel the time limit of the run."""
    signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def endings(folder: Path, limit_s: float) -> Iterator[None]:
    """While the block runs, raise Interrupted at the first signal of INTERRUPTS, and OutOfTime after ``limit_s``.

    Before the exception, all processes whose working folder is ``folder`` or below are killed, so that the run does not
    wait for them. Later signals of INTERRUPTS are ignored: `make` and `timeout` send a signal to a process and to its
    group, so the process gets the signal twice.
    """
    received: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        if number in received or (number in INTERRUPTS and any(earlier in INTERRUPTS for earlier in received)):
            return
        received.append(number)
        kill_below(folder)
        raise OutOfTime if number == signal.SIGALRM else Interrupted(number)

    before = {number: signal.signal(number, end) for number in (*INTERRUPTS, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        end_limit()
        for number, handler in before.items():
            signal.signal(number, handler)
