"""The one backoff: how long to wait before something that failed is tried again. Pure: its callers do the waiting.

Waits double up to a limit, and each is shortened by chance to between half and all of it, so that many processes that
lost the same service do not return to it at the same moment.
"""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """The waits of one thing that is tried again and again. Not thread-safe."""

    def __init__(self, first_s: float, longest_s: float, *, chance: Callable[[], float] = random.random) -> None:
        """``first_s`` and ``longest_s`` are seconds before chance shortens them; ``chance`` gives 0.0 to 1.0."""
        self._first_s, self._longest_s, self._chance = first_s, longest_s, chance
        self._wait_s = first_s

    def next_s(self) -> float:
        """Seconds to wait before the next attempt."""
        wait_s = self._wait_s * (0.5 + 0.5 * self._chance())
        self._wait_s = min(self._longest_s, self._wait_s * 2)
        return wait_s

    def reset(self) -> None:
        """Begin with the first wait again, after a success."""
        self._wait_s = self._first_s
