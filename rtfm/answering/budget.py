"""``Budget``: how many requests and tokens the model may cost in a minute and in a day.

Counts in fixed windows of the ``limits`` library, in this process's memory unless it is given another storage. What is
under way is counted with an estimate, so that many questions at once do not overrun a budget together. Does not know
money.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from attrs import define, frozen
from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute
from limits.storage import MemoryStorage, Storage
from limits.strategies import FixedWindowRateLimiter

from rtfm.answering.model import ModelNotAsked
from rtfm.settings import Settings
from rtfm.telemetry import MODEL_BUDGET_REFUSALS, get_logger

Kind = Literal["requests", "tokens"]

_log = get_logger(__name__)


@frozen
class Limit:
    """At most ``window.amount`` of a kind in a window."""

    kind: Kind
    window: RateLimitItem

    def __str__(self) -> str:
        return f"{self.window.amount} {self.kind} a {self.window.GRANULARITY.name}"


@define
class Spending:
    """What one request costs: an estimate before it, what it came to after."""

    tokens: int
    requests: int = 1

    def nothing(self) -> None:
        """No request was made after all."""
        self.tokens = self.requests = 0


class Budget:
    """Limits on requests and tokens. Thread-safe."""

    def __init__(self, limits: Sequence[Limit], storage: Storage | None = None) -> None:
        """No ``limits`` allow everything."""
        self._limits = list(limits)
        self._counter = FixedWindowRateLimiter(storage or MemoryStorage())
        self._under_way: Counter[Kind] = Counter()
        self._over: Limit | None = None
        self._lock = threading.Lock()

    @contextmanager
    def spending(self, tokens: int) -> Iterator[Spending]:
        """Room for one request of about ``tokens``; the block notes in the Spending what it really cost.

        A block that raises counts as a request without tokens, unless it said that there was none. Raises ModelNotAsked
        ("over_budget") when there is no room; the limit that is used up is logged once and counted every time.
        """
        self._reserve(tokens)
        spent = Spending(tokens=tokens)
        try:
            yield spent
        except BaseException:
            spent.tokens = 0
            raise
        finally:
            self._settle(tokens, spent)

    def _reserve(self, tokens: int) -> None:
        costs: dict[Kind, int] = {"requests": 1, "tokens": tokens}
        with self._lock:
            for limit in self._limits:
                left = self._counter.get_window_stats(limit.window, limit.kind).remaining
                if left - self._under_way[limit.kind] < costs[limit.kind]:
                    self._refuse(limit)
            self._over = None
            self._under_way.update(costs)

    def _refuse(self, limit: Limit) -> None:
        MODEL_BUDGET_REFUSALS.labels(budget=f"{limit.kind}_per_{limit.window.GRANULARITY.name}").inc()
        if self._over is not limit:
            _log.warning("the model's budget is used up, quoting instead", budget=str(limit))
        self._over = limit
        raise ModelNotAsked("over_budget", f"the budget of {limit} is used up")

    def _settle(self, reserved: int, spent: Spending) -> None:
        with self._lock:
            self._under_way.subtract({"requests": 1, "tokens": reserved})
            costs: dict[Kind, int] = {"requests": spent.requests, "tokens": spent.tokens}
            for limit in self._limits:
                if cost := costs[limit.kind]:
                    self._counter.hit(limit.window, limit.kind, cost=cost)


def open_budget(settings: Settings) -> Budget:
    """The budget of the settings, counted in memory."""
    wanted: list[tuple[Kind, type[RateLimitItem], int | None]] = [
        ("requests", RateLimitItemPerMinute, settings.model_requests_per_minute),
        ("requests", RateLimitItemPerDay, settings.model_requests_per_day),
        ("tokens", RateLimitItemPerMinute, settings.model_tokens_per_minute),
        ("tokens", RateLimitItemPerDay, settings.model_tokens_per_day),
    ]
    return Budget([Limit(kind, window(amount)) for kind, window, amount in wanted if amount is not None])
