"""Exponential backoff with jitter. Pure: callers do the waiting.

Waits double up to a limit. Each is multiplied by a random factor between 0.5 and 1, so that processes that lost the
same service do not all return to it at the same moment.
"""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """The waits between attempts of one operation. Not thread-safe."""

    def __init__(self, first_s: float, longest_s: float, *, chance: Callable[[], float] = random.random) -> None:
        """Take the first and the longest wait in seconds, before jitter; ``chance`` returns 0.0 to 1.0."""
        self._first_s, self._longest_s, self._chance = first_s, longest_s, chance
        self._wait_s = first_s

    def next_s(self) -> float:
        """Return the seconds to wait before the next attempt, and double the wait after it."""
        wait_s = self._wait_s * (0.5 + 0.5 * self._chance())
        self._wait_s = min(self._longest_s, self._wait_s * 2)
        return wait_s

    def reset(self) -> None:
        """Return to the first wait, after a success."""
        self._wait_s = self._first_s
