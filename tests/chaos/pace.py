"""Adapts the rates of a run's load, and the time limit for settling, to the speed of the machine.

Without this adaptation, a run would fail on a slow machine. The rates and the time limit follow from the backlog
of each group. The backlog consists of the records that are produced and not committed, and is measured in the seconds
that the group needs for these records.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress

from attrs import frozen

from rtfm.errors import RtfmError
from rtfm.settings import Settings
from rtfm.streams.progress import GroupProgress
from tests.chaos.history import History
from tests.chaos.load import FIRST_MESSAGES, Load
from tests.chaos.ticker import Ticker

PARTITIONS = 3

WINDOW_S = 30.0
"""The rate of commits is the average over this time."""

EASY_S, FULL_S = 10.0, 40.0
"""Up to a backlog of EASY_S, the load has its full rates. From a backlog of FULL_S on, it has its lowest rates."""

LEAST_SHARE = 0.05
"""The load never has less than this share of its full rates."""

SETTLE_S = 60.0
"""If there is no backlog, this is the time limit for settling.

On a slow machine, restarts, rebalances and the timeouts of killed workers' transactions can take this long.
"""

NOTE_EVERY_S = 10.0
"""The history gets a line with the rates and the lag about once in this time."""

SETTLE_FACTOR = 3.0
"""The time limit for settling grows by this factor times the backlog."""

SETTLE_MOST_S = 240.0
"""The longest time limit for settling."""


@frozen(kw_only=True)
class BacklogReading:
    """A measurement of one topic: how many records are produced and committed, and the recent rate of commits.

    The rate ``per_s`` is 0 if the group has committed nothing yet, or nothing during ``WINDOW_S``.
    """

    produced: int
    committed: int
    per_s: float

    @property
    def backlog_s(self) -> float:
        """Seconds until the backlog is committed, at the recent rate of commits.

        Without a backlog, the value is 0. With a backlog and a rate of 0, it is FULL_S.
        """
        left = self.produced - self.committed
        return left / self.per_s if left > 0 and self.per_s > 0 else float(left > 0) * FULL_S


class Follower:
    """Measures how many records of a topic a group has committed, and how fast."""

    def __init__(self, settings: Settings, topic: str, group: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = GroupProgress(settings, group)
        self._clock = clock
        self.topic = topic
        self._seen: deque[tuple[float, int]] = deque()

    def committed(self) -> int:
        """Return how many records the group has committed. Raises RtfmError if Kafka does not respond."""
        return sum(self._progress.committed_offsets(self.topic, range(PARTITIONS)).values())

    def read(self, produced: int) -> BacklogReading:
        """Measure the topic, to which ``produced`` records were sent. Raises RtfmError if Kafka does not respond."""
        committed, now_s = self.committed(), self._clock()
        if not committed:
            self._seen.clear()  # the time until the workers have started does not count
        self._seen.append((now_s, committed))
        while len(self._seen) > 2 and self._seen[0][0] < now_s - WINDOW_S:
            self._seen.popleft()
        since_s, before = self._seen[0]
        per_s = (committed - before) / (now_s - since_s) if now_s > since_s else 0.0
        return BacklogReading(produced=produced, committed=committed, per_s=per_s)


def share_for(backlog_s: float) -> float:
    """Return the share of a topic's full rate at which records are sent if the topic has a backlog of ``backlog_s``."""
    return max(LEAST_SHARE, min(1.0, 1 - (backlog_s - EASY_S) / (FULL_S - EASY_S)))


def settle_limit_s(readings: Mapping[str, BacklogReading]) -> float:
    """Return the time limit for settling that follows from the backlogs in ``readings``."""
    longest_s = max((reading.backlog_s for reading in readings.values()), default=0.0)
    return min(SETTLE_MOST_S, SETTLE_S + SETTLE_FACTOR * longest_s)


class Pace:
    """Sets the load's rates once a second, in its own thread, until ``stop`` is called."""

    def __init__(self, load: Load, ingest: Follower, answer: Follower, history: History) -> None:
        self._load = load
        self._ingest = ingest
        self.followers = (ingest, answer)
        self._history = history
        self._ticker = Ticker(1, self._set_rates)
        self._noted_s = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._shares: list[float] = []
        self.readings: dict[str, BacklogReading] = {}
        """The last reading of each topic."""
        self.measured_per_s: float | None = None
        """How many of the first messages were archived per second. None until all of them are archived."""

    def start(self) -> None:
        """Start the thread."""
        self._ticker.start()

    @property
    def share(self) -> float:
        """The average share of the full rates so far. Of the shares of questions and messages, the lower one counts."""
        return sum(self._shares) / len(self._shares) if self._shares else 1.0

    def stop(self) -> None:
        """Stop the thread, and take a last reading if Kafka responds."""
        self._ticker.stop()
        with suppress(RtfmError):
            self._read()

    def _read(self) -> None:
        for follower in self.followers:
            self.readings[follower.topic] = follower.read(self._load.sent[follower.topic])

    def _set_rates(self) -> None:
        try:
            self._read()
        except RtfmError:  # Kafka is down; all records that are sent now would arrive at once when Kafka is back
            shares = {follower.topic: LEAST_SHARE for follower in self.followers}
        else:
            self._measure(self.readings[self._ingest.topic].committed)
            shares = {topic: share_for(reading.backlog_s) for topic, reading in self.readings.items()}
        for topic, share in shares.items():
            self._load.set_share(topic, share)
        self._shares.append(min(shares.values()))
        if time.monotonic() - self._noted_s >= NOTE_EVERY_S:
            self._noted_s = time.monotonic()
            rates = {f"{topic}_per_s": round(reading.per_s, 1) for topic, reading in self.readings.items()}
            lag = {f"{topic}_lag": reading.produced - reading.committed for topic, reading in self.readings.items()}
            self._history.write("measured", share=round(min(shares.values()), 2), **rates, **lag)

    def _measure(self, committed: int) -> None:
        """Once all of the first messages are archived, note how many were archived per second."""
        if self.measured_per_s is not None or not committed:
            return
        now_s = time.monotonic()
        since_s, before = self._first = self._first or (now_s - 1, 0)
        if committed >= FIRST_MESSAGES:
            self.measured_per_s = round((committed - before) / (now_s - since_s), 1)
            self._history.write("measured", messages_per_s=self.measured_per_s)
