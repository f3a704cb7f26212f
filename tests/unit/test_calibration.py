"""The queue of guilds whose floors are calibrated while ingest runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

from rtfm.errors import Unavailable
from rtfm.processor.calibration import Calibration

WAIT_S = 30.0


class BusyFloors:
    """The archive's floors while another processor holds every guild's lock; the first ``failures`` calls fail."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.asked: list[str] = []
        self.done = threading.Semaphore(0)
        self.free = threading.Event()

    @contextmanager
    def try_lock(self, guild_id: str) -> Iterator[bool]:
        self.asked.append(guild_id)
        self.done.release()
        self.free.wait(WAIT_S)
        if len(self.asked) <= self.failures:
            raise Unavailable("PostgreSQL", "no answer")
        yield False


def calibration_of(floors: BusyFloors) -> Calibration:
    knowledge = SimpleNamespace(archive=SimpleNamespace(floors=floors), retriever=None)
    return Calibration(cast("Any", knowledge), retry_s=0.01)


def test_ingest_does_not_wait_for_a_calibration() -> None:
    """Ingest does not wait for a calibration, and guilds that are queued meanwhile are calibrated afterwards."""
    floors = BusyFloors()
    with calibration_of(floors) as calibration:
        calibration.enqueue(["1"])
        assert floors.done.acquire(timeout=WAIT_S)
        calibration.enqueue(["3", "2"])
        floors.free.set()
        assert all(floors.done.acquire(timeout=WAIT_S) for _ in range(2))
    assert floors.asked == ["1", "2", "3"]


def test_a_guild_is_kept_while_a_store_does_not_answer() -> None:
    """A guild stays in the queue while a store does not respond, and the thread continues."""
    floors = BusyFloors(failures=2)
    floors.free.set()
    with calibration_of(floors) as calibration:
        calibration.enqueue(["1"])
        assert all(floors.done.acquire(timeout=WAIT_S) for _ in range(3))
    assert floors.asked == ["1", "1", "1"]


def test_the_end_of_the_service_ends_the_thread() -> None:
    """The thread ends with the service, whether the queue of guilds is empty or not."""
    floors = BusyFloors(failures=1_000_000)
    floors.free.set()
    with calibration_of(floors):
        pass
    with calibration_of(floors) as calibration:
        calibration.enqueue(["1"])
    assert not [thread for thread in threading.enumerate() if thread.name == "calibration"]
