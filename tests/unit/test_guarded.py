"""The guards around a model: retries, circuit breaker and budgets. This is the test of R21 in docs/requirements.md."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import stamina
from attrs import define, evolve, field
from limits import RateLimitItemPerDay, RateLimitItemPerSecond
from prometheus_client import REGISTRY

from rtfm.answering.budget import Budget, Limit, open_budget
from rtfm.answering.gemini import GeminiModel
from rtfm.answering.guarded import GuardedModel, GuardPolicy
from rtfm.answering.model import Completion, ModelNotAsked
from rtfm.answering.prompt import ANSWER_SCHEMA, Prompt, UnusableAnswer
from rtfm.answering.providers import open_model
from rtfm.errors import ConfigError, Throttled, Unavailable
from rtfm.settings import Settings
from tests.fakes import gemini as fake
from tests.fakes.gemini import Behaviour, FakeGemini

PROMPT = Prompt(instructions="i" * 40, document='{"question": "how?", "sources": []}', schema=ANSWER_SCHEMA)
DONE = Completion(text="{}", model="m", prompt_tokens=90, output_tokens=10)
DOWN = Unavailable("Gemini", "Gemini answers 503")


@define
class Script:
    """A model that follows a script, whose last step is repeated."""

    steps: list[Exception | Completion | Callable[[], Completion]]
    asked: int = 0
    timeouts: list[float] = field(factory=list)
    _lock: threading.Lock = field(factory=threading.Lock)

    def complete(self, prompt: Prompt, *, timeout_s: float) -> Completion:
        with self._lock:
            self.asked += 1
            self.timeouts.append(timeout_s)
            step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, Completion) else step()


@define
class Time:
    """A clock that a test moves."""

    now_s: float = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Let retries not sleep, so that the test controls the time."""
    stamina.set_testing(True, attempts=3)
    yield
    stamina.set_testing(False)


def guarded(
    model: Script, *, policy: GuardPolicy | None = None, budget: Budget | None = None, time: Time | None = None
) -> GuardedModel:
    return GuardedModel(
        model,
        name="gemini",
        policy=policy or GuardPolicy(attempts=1),
        budget=budget or Budget([]),
        clock=time or Time(),
        jitter=lambda: 0.0,
    )


def outcomes(model: GuardedModel, count: int) -> list[str]:
    """Return the results of ``count`` questions, one after another."""
    found = []
    for _ in range(count):
        try:
            model.complete(PROMPT, timeout_s=20)
            found.append("answered")
        except ModelNotAsked as exc:
            found.append(exc.reason)
        except (Unavailable, Throttled, UnusableAnswer, ConfigError) as exc:
            found.append(type(exc).__name__)
    return found


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("error", [DOWN, Throttled("busy", retry_after_s=1.0)])
def test_temporary_failures_are_retried(error: Exception) -> None:
    """After 429 or 5xx, the request is repeated, and the third attempt's answer is returned."""
    script = Script([error, error, DONE])
    assert guarded(script, policy=GuardPolicy(attempts=3)).complete(PROMPT, timeout_s=20) == DONE
    assert script.asked == 3


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("error", [ConfigError("the key is wrong"), UnusableAnswer("blocked", "no")])
def test_permanent_failures_are_not_retried(error: Exception) -> None:
    """A wrong key and a blocked answer are not retried."""
    script = Script([error, DONE])
    with pytest.raises(type(error)):
        guarded(script, policy=GuardPolicy(attempts=3)).complete(PROMPT, timeout_s=20)
    assert script.asked == 1


def test_retry_after_that_exceeds_the_time_left_is_not_waited_for() -> None:
    """If Retry-After is longer than the time left, nothing is waited for, so that the asker gets an extract at once."""
    script = Script([Throttled("busy", retry_after_s=60.0), DONE])
    with pytest.raises(Throttled):
        guarded(script, policy=GuardPolicy(attempts=3)).complete(PROMPT, timeout_s=20)
    assert script.asked == 1


def test_retry_after_and_jitter_make_the_wait() -> None:
    """A wait is the Retry-After plus jitter, so that clients do not all return at the same moment."""
    model = GuardedModel(
        Script([DONE]),
        name="gemini",
        policy=GuardPolicy(first_wait_s=0.5),
        budget=Budget([]),
        clock=Time(),
        jitter=lambda: 0.8,
    )
    assert model.wait_s(Throttled("busy", retry_after_s=3.0), deadline_s=1_020.0) == pytest.approx(3.4)
    assert model.wait_s(DOWN, deadline_s=1_020.0) is True
    assert model.wait_s(DOWN, deadline_s=1_000.2) is False
    assert model.wait_s(ModelNotAsked("circuit_open", "open"), deadline_s=1_020.0) is False


@pytest.mark.usefixtures("no_waiting")
def test_all_attempts_share_the_time() -> None:
    """Each attempt has the time that earlier attempts left."""
    time = Time()

    def hang() -> Completion:
        time.now_s += 8
        raise DOWN

    script = Script([hang])
    with pytest.raises(Unavailable):
        guarded(script, policy=GuardPolicy(attempts=3), time=time).complete(PROMPT, timeout_s=20)
    assert script.timeouts == [20, 12, 4]


def test_no_time_left_is_no_request() -> None:
    """A question without time left is not sent to the model."""
    script = Script([DONE])
    with pytest.raises(ModelNotAsked) as caught:
        guarded(script).complete(PROMPT, timeout_s=0)
    assert (caught.value.reason, script.asked) == ("out_of_time", 0)


def test_an_open_circuit_lets_one_probe_through_an_interval() -> None:
    """R21: An open circuit lets one request through in each interval, and closes after a request that succeeds."""
    time, script = Time(), Script([DOWN])
    model = guarded(script, policy=GuardPolicy(attempts=1, min_requests=4, probe_interval_s=10), time=time)
    assert outcomes(model, 6) == ["Unavailable"] * 4 + ["circuit_open"] * 2
    for interval in range(1, 7):
        time.now_s += 10
        assert outcomes(model, 20) == ["Unavailable"] + ["circuit_open"] * 19
        assert script.asked == 4 + interval
    time.now_s += 10
    script.steps = [DONE]
    assert outcomes(model, 20) == ["answered"] * 20


def test_a_probe_that_hangs_is_the_only_one() -> None:
    """R21: While one of 16 threads waits for the model's response, the requests of the other threads fail at once."""
    time, entered, release = Time(), threading.Event(), threading.Event()

    def hang() -> Completion:
        entered.set()
        release.wait(30)
        return DONE

    script = Script([DOWN])
    model = guarded(script, policy=GuardPolicy(attempts=1, min_requests=2, probe_interval_s=10), time=time)
    outcomes(model, 2)
    script.steps = [hang]
    time.now_s += 10
    with ThreadPoolExecutor(16) as pool:
        probe = pool.submit(outcomes, model, 1)
        assert entered.wait(30)
        others = [pool.submit(outcomes, model, 1) for _ in range(15)]
        assert [other.result(30) for other in others] == [["circuit_open"]] * 15
        release.set()
        assert probe.result(30) == ["answered"]
    assert script.asked == 3


def test_a_circuit_opens_after_a_share_of_failures() -> None:
    """One failure in three does not open the circuit; four failures in a row do, even after many old successes."""
    time = Time()
    script = Script([DONE, DONE, DOWN] * 10)
    model = guarded(script, policy=GuardPolicy(attempts=1, failure_share=0.5, min_requests=4), time=time)
    assert "circuit_open" not in outcomes(model, 30)
    script.steps = [DOWN]
    time.now_s += 600
    assert outcomes(model, 5) == ["Unavailable"] * 4 + ["circuit_open"]


def test_questions_that_are_blocked_do_not_open_the_circuit() -> None:
    """A blocked, cut-off or empty answer does not open the circuit; a page of a proxy or a wrong key opens it."""
    policy = GuardPolicy(attempts=1, min_requests=3)
    for reason in ("blocked", "cut_off", "empty", "refused"):
        assert "circuit_open" not in outcomes(guarded(Script([UnusableAnswer(reason, "no")]), policy=policy), 20)
    for error in (UnusableAnswer("malformed", "a page"), ConfigError("the key is wrong")):
        assert outcomes(guarded(Script([error]), policy=policy), 20)[3:] == ["circuit_open"] * 17


def test_calls_do_not_wait_for_one_another() -> None:
    """16 questions at a time make 16 requests at the same time."""
    together = threading.Barrier(16, timeout=30)

    def meet() -> Completion:
        together.wait()
        return DONE

    model = guarded(Script([meet]))
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda _: outcomes(model, 1), range(16))) == [["answered"]] * 16


def test_the_circuit_s_state_is_a_metric() -> None:
    """The metric of the circuit is 0 if the circuit is closed, and 2 if it is open."""
    model = guarded(Script([DOWN]), policy=GuardPolicy(attempts=1, min_requests=2))
    assert REGISTRY.get_sample_value("rtfm_circuit_state", {"dependency": "gemini"}) == 0
    outcomes(model, 2)
    assert REGISTRY.get_sample_value("rtfm_circuit_state", {"dependency": "gemini"}) == 2


def per_day(kind: str, amount: int) -> Limit:
    assert kind in ("requests", "tokens")
    return Limit("requests" if kind == "requests" else "tokens", RateLimitItemPerDay(amount))


def test_a_used_up_budget_of_requests_spares_the_model() -> None:
    """A budget of three requests a day allows three requests, and further questions do not reach the model."""
    script = Script([DONE])
    model = guarded(script, budget=Budget([per_day("requests", 3)]))
    assert outcomes(model, 5) == ["answered"] * 3 + ["over_budget"] * 2
    assert script.asked == 3


def test_tokens_are_counted_as_the_model_counts_them() -> None:
    """Tokens are counted as the model reports them: if a question takes 100, a budget of 250 is used up after three."""
    model = guarded(Script([DONE]), budget=Budget([per_day("tokens", 250)]))
    assert outcomes(model, 4) == ["answered"] * 3 + ["over_budget"]


def test_a_failed_request_costs_no_tokens() -> None:
    """A failed request costs no tokens, but counts as a request."""
    model = guarded(Script([DOWN]), budget=Budget([per_day("requests", 3), per_day("tokens", 20)]))
    assert outcomes(model, 5) == ["Unavailable"] * 3 + ["over_budget"] * 2


def test_an_open_circuit_costs_nothing() -> None:
    """Questions that an open circuit refuses use neither requests nor tokens of the budget."""
    time, script = Time(), Script([DOWN])
    policy = GuardPolicy(attempts=1, min_requests=2, probe_interval_s=10)
    model = guarded(script, policy=policy, budget=Budget([per_day("requests", 4)]), time=time)
    assert outcomes(model, 50)[2:] == ["circuit_open"] * 48
    script.steps = [DONE]
    time.now_s += 10
    assert outcomes(model, 3) == ["answered"] * 2 + ["over_budget"]


def test_questions_under_way_count_against_the_budget() -> None:
    """Requests that have not ended count against the budget: 16 simultaneous questions do not exceed a budget of 5."""
    release = threading.Event()

    def wait() -> Completion:
        release.wait(30)
        return DONE

    script = Script([wait])
    model = guarded(script, budget=Budget([per_day("requests", 5)]))
    with ThreadPoolExecutor(16) as pool:
        running = [pool.submit(outcomes, model, 1) for _ in range(16)]
        threading.Timer(0.2, release.set).start()
        found = [outcome for one in running for outcome in one.result(30)]
    assert (found.count("answered"), found.count("over_budget"), script.asked) == (5, 11, 5)


def test_a_budget_is_restored_in_the_next_window() -> None:
    """A budget for a second is full again after a second."""
    budget = Budget([Limit("requests", RateLimitItemPerSecond(1))])
    model = guarded(Script([DONE]), budget=budget)
    assert outcomes(model, 2) == ["answered", "over_budget"]
    pause = threading.Event()
    assert any(pause.wait(0.1) or outcomes(model, 1) == ["answered"] for _ in range(100))


def test_a_refusal_by_the_budget_is_counted() -> None:
    """If the budget refuses a question, the refusal is counted under the name of the limit."""
    labels = {"budget": "requests_per_day"}
    before = REGISTRY.get_sample_value("rtfm_model_budget_refusals_total", labels) or 0
    outcomes(guarded(Script([DONE]), budget=Budget([per_day("requests", 1)])), 3)
    assert REGISTRY.get_sample_value("rtfm_model_budget_refusals_total", labels) == before + 2


def test_budgets_come_from_the_settings() -> None:
    """Each of the four settings of the budget sets a limit, and a missing setting sets no limit."""
    with open_budget(Settings()).reserve(10**9):
        pass
    for name in ("model_requests_per_minute", "model_requests_per_day"):
        budget = open_budget(Settings().with_flags(**{name: 1}))
        with budget.reserve(1), pytest.raises(ModelNotAsked), budget.reserve(1):
            pass
    for name in ("model_tokens_per_minute", "model_tokens_per_day"):
        with pytest.raises(ModelNotAsked), open_budget(Settings().with_flags(**{name: 9})).reserve(10):
            pass


@pytest.mark.parametrize("sdk", ["google-generativeai", "google-genai"])
def test_the_model_of_the_settings_retries_against_the_real_form_of_the_api(sdk: str) -> None:
    """With each value of GEMINI_SDK, a 429 with Retry-After and a 503 are retried."""
    with FakeGemini() as server:
        server.faults = [fake.throttled("0"), fake.failing(503)]
        settings = evolve(
            Settings(), gemini_api_key=fake.KEY, gemini_sdk=sdk, gemini_api_endpoint=server.address, model_attempts=3
        )
        model = open_model(settings)
        assert model is not None
        assert isinstance(model.adapter, GeminiModel) is (sdk == "google-generativeai")
        assert model.complete(PROMPT, timeout_s=20).model == fake.MODEL
        assert len(server.requests) == 3


def test_a_service_that_is_down_is_left_alone() -> None:
    """R21 over HTTP: Of 50 questions, only the first five reach a server that is down."""
    with FakeGemini(behaviour=Behaviour(fail_share=1.0, status=503)) as server:
        settings = evolve(Settings(), gemini_api_key=fake.KEY, gemini_api_endpoint=server.address, model_attempts=1)
        model = open_model(settings)
        assert model is not None
        assert outcomes(model, 50) == ["Unavailable"] * 5 + ["circuit_open"] * 45
        assert len(server.requests) == 5


def test_an_openai_server_goes_before_gemini() -> None:
    """If an OpenAI server and a Gemini key are configured, the OpenAI server is used."""
    with FakeGemini() as server:
        settings = evolve(
            Settings(),
            gemini_api_key="unused",
            openai_base_url=f"{server.address}/v1",
            openai_api_key=fake.KEY,
            openai_model=fake.MODEL,
        )
        model = open_model(settings)
        assert model is not None
        assert (model.name, model.complete(PROMPT, timeout_s=20).model) == ("openai", fake.MODEL)


def test_without_a_key_there_is_no_model() -> None:
    """Without settings for a model, there is no model."""
    assert open_model(Settings()) is None
