"""Exponential backoff with jitter. Pure: this module computes waits, and its callers wait.

Before jitter, each wait is twice as long as the previous wait, up to a limit. Jitter multiplies a wait by a random
factor between 0.5 and 1. Without jitter, all processes that lost a dependency would connect to it again at the same
moment.
"""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """The waits between attempts of one operation. Not thread-safe."""

    def __init__(self, first_s: float, longest_s: float, *, chance: Callable[[], float] = random.random) -> None:
        """Set the first and the longest wait, in seconds before jitter.

        ``chance`` returns a random number between 0.0 and 1.0.
        """
        self._first_s, self._longest_s, self._chance = first_s, longest_s, chance
        self._wait_s = first_s

    def next_s(self) -> float:
        """Return the seconds to wait before the next attempt, and double the next wait."""
        wait_s = self._wait_s * (0.5 + 0.5 * self._chance())
        self._wait_s = min(self._longest_s, self._wait_s * 2)
        return wait_s

    def reset(self) -> None:
        """Begin again with the first wait. Call this after a success."""
        self._wait_s = self._first_s
