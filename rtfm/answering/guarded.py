"""``GuardedModel``: a model's service as answering may lean on it.

Owns the order of guards around one request: retries within the time that is left, the budget, the circuit breaker.
Every failure that is worth it is tried again with jitter, or when the service asks for it (Retry-After). When too large
a share of requests fails, the circuit opens: the service is left alone, but for one probe an interval. Does not know
what is asked.
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
"""About what Gemini's tokens hold in English (https://ai.google.dev/gemini-api/docs/tokens); only for estimates."""

SHORTEST_ATTEMPT_S = 0.5
"""With less time left than this, no other request is begun."""

_STATES = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}

_log = get_logger(__name__)


@frozen(kw_only=True)
class GuardPolicy:
    """How hard to try, and when to stop trying."""

    attempts: int = 3
    first_wait_s: float = 0.5
    longest_wait_s: float = 8.0
    failure_share: float = 0.5
    min_requests: int = 5
    window_s: float = 60.0
    probe_interval_s: float = 30.0


@frozen
class _Clock:
    """The breaker's library wants an object."""

    monotonic: Callable[[], float]


class GuardedModel:
    """A ``LanguageModel`` behind retries, a budget and a circuit breaker. Thread-safe."""

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
        """``clock`` gives seconds, ``jitter`` a number between 0 and 1. ``name`` stands in metrics and logs."""
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
                # Slowness is the timeout's business.
                slow_call_duration_threshold=float("inf"),
            ),
            clock=_Clock(clock),
            classifier=_Failures(),
            listener=_Listener(),
        )
        CIRCUIT_STATE.labels(dependency=name).set(_STATES[State.CLOSED])

    def complete(self, prompt: Prompt, *, timeout_s: float) -> Completion:
        """See ``LanguageModel.complete``; ``timeout_s`` holds for all attempts together.

        Raises ModelNotAsked ("circuit_open", "over_budget", "out_of_time") without a request.
        """
        if timeout_s <= 0:
            raise ModelNotAsked("out_of_time", "the question's time is up")
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
        """Seconds to wait before the next attempt, True for the usual backoff, False for none."""
        left_s = deadline_s - self._clock() - SHORTEST_ATTEMPT_S
        if not isinstance(error, TransientError) or left_s <= 0:
            return False
        if isinstance(error, Throttled):
            wait_s = error.retry_after_s + self._jitter() * self._policy.first_wait_s
            return wait_s if wait_s <= left_s else False
        return True

    def _attempt(self, prompt: Prompt, timeout_s: float) -> Completion:
        asked = (len(prompt.instructions) + len(prompt.document)) // CHARACTERS_PER_TOKEN
        with self._budget.spending(asked) as spent:
            try:
                completion = self._breaker.call_sync(self._request, prompt, timeout_s)
            except CircuitOpenError as exc:
                spent.nothing()
                raise ModelNotAsked("circuit_open", f"the circuit to {self.name} is open") from exc
            if completion.prompt_tokens is not None:
                spent.tokens = completion.prompt_tokens + (completion.output_tokens or 0)
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


class _Failures:
    """What speaks against the service: no answer, a refusal that holds for every request, a page that is not its own.

    An answer that was blocked or cut off is the question's fault.
    """

    def is_failure(self, *, result: object, exception: Exception | None) -> bool:
        if isinstance(exception, UnusableAnswer):
            return exception.reason == "malformed"
        return exception is not None


class _Listener(CoreEventListener):
    """Tells people and metrics when the circuit opens and closes."""

    def on_state_change(self, *, name: str, old: State, new: State) -> None:
        CIRCUIT_STATE.labels(dependency=name).set(_STATES.get(new, 2))
        if new is State.OPEN:
            _log.warning("circuit open, quoting instead of asking the model", dependency=name, before=str(old))
        elif new is State.HALF_OPEN:
            _log.info("circuit half open, one probe", dependency=name)
        else:
            _log.info("circuit closed, the model answers again", dependency=name)


def reason_of(error: Exception) -> str:
    """One word for why a model gave no answer, for counting."""
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
