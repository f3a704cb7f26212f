"""``Budget`` limits how many requests and tokens the model may use in a minute and in a day.

``Budget`` counts in fixed windows of the ``limits`` library, by default in this process's memory. While a request is in
flight, an estimate of its tokens is counted, because concurrent requests must not exceed the budget together. Cost in
money is not counted.
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
    """A limit of ``window.amount`` requests or tokens in each window of time."""

    kind: Kind
    window: RateLimitItem

    def __str__(self) -> str:
        return f"{self.window.amount} {self.kind} a {self.window.GRANULARITY.name}"


@define
class RequestCost:
    """What the budget counts for one call to the model.

    ``requests`` is 1, or 0 if no request was sent. ``tokens`` is an estimate, unless the provider reports the actual
    number.
    """

    tokens: int
    requests: int = 1

    def cancel(self) -> None:
        """Set the cost to zero, for a request that was not sent."""
        self.tokens = self.requests = 0


class Budget:
    """A set of limits on requests and tokens. Thread-safe."""

    def __init__(self, limits: Sequence[Limit], storage: Storage | None = None) -> None:
        """Create a budget. Without ``limits`` it refuses no request; without ``storage`` it counts in memory."""
        self._limits = list(limits)
        self._counter = FixedWindowRateLimiter(storage or MemoryStorage())
        self._reserved: Counter[Kind] = Counter()
        self._used_up_limit: Limit | None = None
        self._lock = threading.Lock()

    @contextmanager
    def reserve(self, tokens: int) -> Iterator[RequestCost]:
        """Reserve one request of about ``tokens`` tokens while the ``with`` block runs.

        The block gets a RequestCost, and may set its ``tokens`` to the actual number. If the block raises, one request
        without tokens is counted, or no request if the block cancelled the cost. Raises ModelNotAsked ("over_budget")
        if a limit has less left than this request costs. If the same limit refuses several requests in a row, only the
        first refusal is logged; the metric counts every refusal.
        """
        self._add_reservation(tokens)
        cost = RequestCost(tokens=tokens)
        try:
            yield cost
        except BaseException:
            cost.tokens = 0
            raise
        finally:
            self._record_cost(tokens, cost)

    def _add_reservation(self, tokens: int) -> None:
        costs: dict[Kind, int] = {"requests": 1, "tokens": tokens}
        with self._lock:
            for limit in self._limits:
                left = self._counter.get_window_stats(limit.window, limit.kind).remaining
                if left - self._reserved[limit.kind] < costs[limit.kind]:
                    self._refuse(limit)
            self._used_up_limit = None
            self._reserved.update(costs)

    def _refuse(self, limit: Limit) -> None:
        MODEL_BUDGET_REFUSALS.labels(budget=f"{limit.kind}_per_{limit.window.GRANULARITY.name}").inc()
        if self._used_up_limit is not limit:
            _log.warning("model budget used up, quoting instead of asking the model", budget=str(limit))
        self._used_up_limit = limit
        raise ModelNotAsked("over_budget", f"the model budget of {limit} is used up")

    def _record_cost(self, reserved: int, cost: RequestCost) -> None:
        with self._lock:
            self._reserved.subtract({"requests": 1, "tokens": reserved})
            used: dict[Kind, int] = {"requests": cost.requests, "tokens": cost.tokens}
            for limit in self._limits:
                if amount := used[limit.kind]:
                    self._counter.hit(limit.window, limit.kind, cost=amount)


def open_budget(settings: Settings) -> Budget:
    """Return a budget with the limits in ``settings`` that counts in memory."""
    configured: list[tuple[Kind, type[RateLimitItem], int | None]] = [
        ("requests", RateLimitItemPerMinute, settings.model_requests_per_minute),
        ("requests", RateLimitItemPerDay, settings.model_requests_per_day),
        ("tokens", RateLimitItemPerMinute, settings.model_tokens_per_minute),
        ("tokens", RateLimitItemPerDay, settings.model_tokens_per_day),
    ]
    return Budget([Limit(kind, window(amount)) for kind, window, amount in configured if amount is not None])
