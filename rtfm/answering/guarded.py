"""``GuardedModel``: a model whose requests are retried, limited by a budget, and stopped by a circuit breaker.

If a request fails transiently, it is retried while time and attempts are left. The wait before a retry is a backoff
with jitter, or the time in the Retry-After header of the provider's reply. If too large a share of the requests fails,
the circuit opens. While the circuit is open, one request per interval is sent as a probe, and all other requests are
refused without being sent.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial

import stamina
from attrs import frozen
from interlock import CircuitBreaker, CircuitOpenError, Config, CoreEventListener, State, WindowType

from rtfm.answering.budget import Budget
from rtfm.answering.model import Completion, LanguageModel, ModelNotAsked
from rtfm.answering.prompt import Prompt, UnusableAnswer
from rtfm.errors import ConfigError, Throttled, TransientError, Unavailable
from rtfm.telemetry import CIRCUIT_STATE, MODEL_REQUESTS, MODEL_SECONDS, MODEL_TOKENS, get_logger

CHARACTERS_PER_TOKEN = 4
"""Number of English characters in a Gemini token, for estimates (https://ai.google.dev/gemini-api/docs/tokens)."""

SHORTEST_ATTEMPT_S = 0.5
"""No retry is planned if this many seconds or less are left until the deadline."""

_STATE_VALUES = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}

_log = get_logger(__name__)


@frozen(kw_only=True)
class GuardPolicy:
    """The settings of retries and of the circuit breaker.

    The circuit opens if at least ``min_requests`` requests were sent within ``window_s`` and at least
    ``failure_share`` of them failed.
    """

    attempts: int = 3
    first_wait_s: float = 0.5
    longest_wait_s: float = 8.0
    failure_share: float = 0.5
    min_requests: int = 5
    window_s: float = 60.0
    probe_interval_s: float = 30.0


@frozen
class _BreakerClock:
    """A clock in the form that the circuit breaker's library requires."""

    monotonic: Callable[[], float]


class GuardedModel:
    """A ``LanguageModel`` that adds retries, a budget and a circuit breaker to another model. Thread-safe."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        name: str,
        policy: GuardPolicy,
        budget: Budget,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Create a guard for ``model``. Metrics and logs show the guarded model as ``name``.

        ``clock`` returns seconds, and ``jitter`` a random number from 0 to 1.
        """
        self.name = name
        self.adapter = model
        self._policy = policy
        self._budget = budget
        self._clock = clock
        self._jitter = jitter
        self._breaker = CircuitBreaker(
            name=name,
            config=Config(
                failure_rate_threshold=policy.failure_share,
                minimum_number_of_calls=policy.min_requests,
                window_type=WindowType.TIME_BASED,
                window_size=max(1, round(policy.window_s)),
                wait_duration_in_open=policy.probe_interval_s,
                permitted_calls_in_half_open=1,
                # A slow request does not count as a failure, unless the timeout ends it.
                slow_call_duration_threshold=float("inf"),
            ),
            clock=_BreakerClock(clock),
            classifier=_FailureClassifier(),
            listener=_BreakerListener(),
        )
        CIRCUIT_STATE.labels(dependency=name).set(_STATE_VALUES[State.CLOSED])

    def complete(self, prompt: Prompt, *, timeout_s: float) -> Completion:
        """Like ``LanguageModel.complete``; ``timeout_s`` is the limit for all attempts together.

        Raises ModelNotAsked ("circuit_open", "over_budget" or "out_of_time") if the first request or a retry is not
        sent.
        """
        if timeout_s <= 0:
            raise ModelNotAsked("out_of_time", "no time is left to ask the model")
        deadline_s = self._clock() + timeout_s
        for attempt in stamina.retry_context(
            on=partial(self.wait_s, deadline_s=deadline_s),
            attempts=self._policy.attempts,
            timeout=timeout_s,
            wait_initial=self._policy.first_wait_s,
            wait_max=self._policy.longest_wait_s,
            wait_jitter=self._policy.first_wait_s,
        ):
            with attempt:
                return self._attempt(prompt, deadline_s - self._clock())
        raise AssertionError("retry_context ends with a result or an error")

    def wait_s(self, error: Exception, deadline_s: float) -> float | bool:
        """Decide whether and when to retry after ``error``.

        Return the seconds until the next attempt, True to wait for the usual backoff, or False to give up.
        """
        left_s = deadline_s - self._clock() - SHORTEST_ATTEMPT_S
        if not isinstance(error, TransientError) or left_s <= 0:
            return False
        if isinstance(error, Throttled):
            wait_s = error.retry_after_s + self._jitter() * self._policy.first_wait_s
            return wait_s if wait_s <= left_s else False
        return True

    def _attempt(self, prompt: Prompt, timeout_s: float) -> Completion:
        estimated_tokens = (len(prompt.instructions) + len(prompt.document)) // CHARACTERS_PER_TOKEN
        with self._budget.reserve(estimated_tokens) as cost:
            try:
                completion = self._breaker.call_sync(self._request, prompt, timeout_s)
            except CircuitOpenError as exc:
                cost.cancel()
                raise ModelNotAsked("circuit_open", f"the circuit to {self.name} is open") from exc
            if completion.prompt_tokens is not None:
                cost.tokens = completion.prompt_tokens + (completion.output_tokens or 0)
        return completion

    def _request(self, prompt: Prompt, timeout_s: float) -> Completion:
        started_s = self._clock()
        result = "failed"
        try:
            completion = self.adapter.complete(prompt, timeout_s=timeout_s)
            result = "answered"
        except (UnusableAnswer, Throttled, Unavailable, ConfigError) as exc:
            result = reason_of(exc)
            raise
        finally:
            MODEL_REQUESTS.labels(result=result).inc()
            MODEL_SECONDS.observe(max(self._clock() - started_s, 0))
        MODEL_TOKENS.labels(kind="prompt").inc(completion.prompt_tokens or 0)
        MODEL_TOKENS.labels(kind="output").inc(completion.output_tokens or 0)
        return completion


class _FailureClassifier:
    """Decides which results the circuit breaker counts as failures of the provider.

    It counts errors with which other requests would probably fail, too: no reply, throttling, a refused key or model
    name, and a reply that is not in the form of the API, for example a proxy's page. Errors that depend on the
    question, for example a blocked or cut-off answer, are not counted.
    """

    def is_failure(self, *, result: object, exception: Exception | None) -> bool:
        if isinstance(exception, UnusableAnswer):
            return exception.reason == "malformed"
        return exception is not None


class _BreakerListener(CoreEventListener):
    """Logs each change of the circuit's state, and sets the metric to the new state."""

    def on_state_change(self, *, name: str, old: State, new: State) -> None:
        CIRCUIT_STATE.labels(dependency=name).set(_STATE_VALUES.get(new, 2))
        if new is State.OPEN:
            _log.warning("circuit open, quoting instead of asking the model", dependency=name, before=str(old))
        elif new is State.HALF_OPEN:
            _log.info("circuit half open, sending one probe", dependency=name)
        else:
            _log.info("circuit closed, the model answers again", dependency=name)


def reason_of(error: Exception) -> str:
    """Return the value of the metric label that says why a model gave no usable answer."""
    match error:
        case UnusableAnswer() | ModelNotAsked():
            return error.reason
        case Throttled():
            return "throttled"
        case Unavailable():
            return "unavailable"
        case ConfigError():
            return "configuration"
    return "other"
