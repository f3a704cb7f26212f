"""GeminiModel against the fake REST API: what it sends, and what becomes of each way to fail."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from rtfm.answering.gemini import GeminiModel
from rtfm.answering.prompt import ANSWER_SCHEMA, Prompt, UnusableAnswer
from rtfm.errors import ConfigError, Throttled, Unavailable
from tests.fakes import gemini as fake
from tests.fakes.gemini import FakeGemini, Fault

DOCUMENT = json.dumps({"question": "how?", "context": [], "sources": [{"number": 1, "messages": [{"text": "so"}]}]})
PROMPT = Prompt(instructions="Use the sources only.", document=DOCUMENT)


@pytest.fixture
def server() -> Iterator[FakeGemini]:
    with FakeGemini() as running:
        yield running


def model(server: FakeGemini, *, key: str = fake.KEY, name: str = fake.MODEL, timeout_s: float = 5.0) -> GeminiModel:
    return GeminiModel(api_key=key, model=name, timeout_s=timeout_s, endpoint=server.address)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (fake.no_candidates(), "empty"),
        (fake.blocked_prompt(), "blocked"),
        (fake.finished("SAFETY"), "blocked"),
        (fake.finished("RECITATION"), "blocked"),
        (fake.finished("MAX_TOKENS", '{"answer": "cut'), "cut_off"),
        (fake.finished("STOP"), "empty"),
        (fake.not_json(), "malformed"),
        (fake.failing(400), "refused"),
    ],
)
def test_an_answer_that_cannot_be_used_says_why(server: FakeGemini, fault: Fault, reason: str) -> None:
    """Blocks, empty, cut-off and malformed answers are told apart, each after one request."""
    server.faults = [fault]
    with pytest.raises(UnusableAnswer) as caught:
        model(server).complete(PROMPT)
    assert caught.value.reason == reason
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_failing_server_is_unavailable_after_one_request(server: FakeGemini, status: int) -> None:
    """The package would repeat for ten minutes; here the caller decides."""
    server.faults = [fake.failing(status)]
    with pytest.raises(Unavailable) as caught:
        model(server).complete(PROMPT)
    assert caught.value.dependency == "Gemini"
    assert len(server.requests) == 1


def test_a_server_that_answers_late_is_unavailable(server: FakeGemini) -> None:
    """The timeout of the settings holds."""
    server.faults = [fake.slow(30)]
    with pytest.raises(Unavailable):
        model(server, timeout_s=0.3).complete(PROMPT)


def test_a_server_that_is_gone_is_unavailable(server: FakeGemini) -> None:
    """A refused connection is no vendor's exception."""
    gone = GeminiModel(api_key=fake.KEY, model=fake.MODEL, timeout_s=1, endpoint="http://127.0.0.1:9")
    with pytest.raises(Unavailable):
        gone.complete(PROMPT)
    assert server.requests == []


@pytest.mark.parametrize(("header", "expected_s"), [("7", 7.0), ("soon", 5.0), ("-3", 5.0), ("1e12", 5.0)])
def test_a_quota_that_is_used_up_says_when_to_come_back(server: FakeGemini, header: str, expected_s: float) -> None:
    """Retry-After is honoured; nonsense in it counts as five seconds."""
    server.faults = [fake.throttled(header)]
    with pytest.raises(Throttled) as caught:
        model(server).complete(PROMPT)
    assert caught.value.retry_after_s == expected_s


def test_a_wrong_key_is_for_the_operator_and_not_shown(server: FakeGemini) -> None:
    """The error names the variable, not its value."""
    with pytest.raises(ConfigError, match="GEMINI_API_KEY") as caught:
        model(server, key="another-key").complete(PROMPT)
    assert "another-key" not in f"{caught.value} {caught.value.hint}"


def test_a_forbidden_key_is_for_the_operator(server: FakeGemini) -> None:
    """403, as for a key of a project without the API."""
    server.faults = [fake.failing(403)]
    with pytest.raises(ConfigError, match="GEMINI_API_KEY"):
        model(server).complete(PROMPT)


def test_an_unknown_model_is_for_the_operator(server: FakeGemini) -> None:
    """The error names the model and the variable."""
    with pytest.raises(ConfigError, match="gemini-of-yore") as caught:
        model(server, name="gemini-of-yore").complete(PROMPT)
    assert "GEMINI_MODEL" in str(caught.value.hint)


def test_a_prompt_arrives_with_its_instructions_apart_and_the_reply_s_form(server: FakeGemini) -> None:
    """Instructions go into the system instruction, data into the content, the schema into the configuration."""
    completion = model(server).complete(PROMPT)
    (request,) = server.requests
    assert request["systemInstruction"]["parts"][0]["text"] == PROMPT.instructions
    assert request["contents"][0]["parts"][0]["text"] == DOCUMENT
    assert request["generationConfig"]["responseMimeType"] == "application/json"
    assert set(request["generationConfig"]["responseSchema"]["properties"]) == set(ANSWER_SCHEMA["properties"])
    assert server.keys == [fake.KEY]
    assert json.loads(completion.text)["answer"] == "so [1]"
    assert (completion.model, completion.prompt_tokens, completion.output_tokens) == (fake.MODEL, 120, 40)


def test_a_model_goes_on_after_a_failure(server: FakeGemini) -> None:
    """One failure leaves nothing behind."""
    server.faults = [fake.failing(503)]
    gemini = model(server)
    with pytest.raises(Unavailable):
        gemini.complete(PROMPT)
    assert gemini.complete(PROMPT).text
