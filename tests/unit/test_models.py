"""Each adapter of a model with the fake servers: its requests, and the errors for failures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from rtfm.answering.gemini import GeminiModel
from rtfm.answering.genai import GenaiModel
from rtfm.answering.model import LanguageModel
from rtfm.answering.openai import OpenAiModel
from rtfm.answering.prompt import ANSWER_SCHEMA, Prompt, UnusableAnswer
from rtfm.errors import ConfigError, Throttled, Unavailable
from tests.fakes import gemini as fake
from tests.fakes.gemini import FakeGemini, Fault

DOCUMENT = json.dumps({"question": "how?", "sources": [{"number": 1, "messages": [{"text": "so"}]}]})
PROMPT = Prompt(instructions="Use the sources only.", document=DOCUMENT, schema=ANSWER_SCHEMA)
GONE = "http://127.0.0.1:9"

Maker = Callable[..., LanguageModel]


def by_generativeai(address: str, key: str = fake.KEY, name: str = fake.MODEL) -> LanguageModel:
    return GeminiModel(api_key=key, model=name, endpoint=address)


def by_genai(address: str, key: str = fake.KEY, name: str = fake.MODEL) -> LanguageModel:
    return GenaiModel(api_key=key, model=name, endpoint=address)


def by_openai(address: str, key: str = fake.KEY, name: str = fake.MODEL) -> LanguageModel:
    return OpenAiModel(base_url=f"{address}/v1", model=name, api_key=key)


gemini_only = pytest.mark.parametrize("make", [by_generativeai, by_genai])
every = pytest.mark.parametrize("make", [by_generativeai, by_genai, by_openai])


@pytest.fixture
def server() -> Iterator[FakeGemini]:
    with FakeGemini() as running:
        yield running


def ask(model: LanguageModel, timeout_s: float = 5.0) -> str:
    return model.complete(PROMPT, timeout_s=timeout_s).text


@gemini_only
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (fake.no_candidates(), "empty"),
        (fake.blocked_prompt(), "blocked"),
        (fake.finished("SAFETY"), "blocked"),
        (fake.finished("RECITATION"), "blocked"),
        (fake.finished("PROHIBITED_CONTENT"), "blocked"),
        (fake.finished("MAX_TOKENS", '{"answer": "cut'), "cut_off"),
        (fake.finished("STOP"), "empty"),
        (fake.not_json(), "malformed"),
        (fake.failing(400), "refused"),
    ],
)
def test_an_answer_that_cannot_be_used_says_why(server: FakeGemini, make: Maker, fault: Fault, reason: str) -> None:
    """Blocked, empty, cut-off, malformed and refused answers have different reasons; no request is repeated."""
    server.faults = [fault]
    with pytest.raises(UnusableAnswer) as caught:
        ask(make(server.address))
    assert caught.value.reason == reason
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"choices": []}, "empty"),
        ({"choices": [{"finish_reason": "stop", "message": {"content": None}}]}, "empty"),
        ({"choices": [{"finish_reason": "length", "message": {"content": '{"answer": "cut'}}]}, "cut_off"),
        ({"choices": [{"finish_reason": "content_filter", "message": {"content": ""}}]}, "blocked"),
        ({"choices": [{"finish_reason": "stop"}]}, "malformed"),
        ({"error": "no"}, "malformed"),
        ([], "malformed"),
    ],
)
def test_an_openai_answer_that_cannot_be_used_says_why(server: FakeGemini, body: object, reason: str) -> None:
    """The reasons for unusable answers of an OpenAI server have the same names as those of Gemini."""
    server.faults = [Fault(body=json.dumps(body))]
    with pytest.raises(UnusableAnswer) as caught:
        ask(by_openai(server.address))
    assert caught.value.reason == reason


@every
@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_a_failing_server_is_unavailable_after_one_request(server: FakeGemini, make: Maker, status: int) -> None:
    """A server error raises Unavailable after one request, because only the caller retries.

    By default, Google's packages would retry for minutes.
    """
    server.faults = [fake.failing(status)]
    with pytest.raises(Unavailable):
        ask(make(server.address))
    assert len(server.requests) == 1


@every
def test_a_server_that_answers_late_is_unavailable(server: FakeGemini, make: Maker) -> None:
    """If a server does not respond within the caller's timeout, Unavailable is raised."""
    server.faults = [fake.slow(30)]
    with pytest.raises(Unavailable):
        ask(make(server.address), timeout_s=0.3)


@every
def test_a_server_that_is_gone_is_unavailable(make: Maker) -> None:
    """A refused connection raises Unavailable, and not an exception of a package."""
    with pytest.raises(Unavailable):
        ask(make(GONE), timeout_s=1.0)


@every
@pytest.mark.parametrize(("header", "expected_s"), [("7", 7.0), ("soon", 5.0), ("-3", 5.0), ("1e12", 5.0), (None, 5.0)])
def test_a_quota_that_is_used_up_says_when_to_come_back(
    server: FakeGemini, make: Maker, header: str | None, expected_s: float
) -> None:
    """The error for a used-up quota gives the wait of Retry-After, or 5 s if this header is missing or invalid."""
    server.faults = [fake.throttled(header)]
    with pytest.raises(Throttled) as caught:
        ask(make(server.address))
    assert caught.value.retry_after_s == expected_s


@every
def test_a_failure_that_says_when_to_come_back_is_waited_for(server: FakeGemini, make: Maker) -> None:
    """A 503 with the header Retry-After raises Throttled with the time in the header."""
    server.faults = [Fault(status=503, body=fake.failing(503).body, headers={"Retry-After": "3"})]
    with pytest.raises(Throttled) as caught:
        ask(make(server.address))
    assert caught.value.retry_after_s == 3.0


@every
def test_a_wrong_key_is_for_the_operator_and_not_shown(server: FakeGemini, make: Maker) -> None:
    """The error for a wrong key names the variable, not the key."""
    with pytest.raises(ConfigError, match="_API_KEY") as caught:
        ask(make(server.address, key="another-key"))
    assert "another-key" not in f"{caught.value} {caught.value.hint}"


@every
@pytest.mark.parametrize("status", [401, 403])
def test_a_forbidden_key_is_for_the_operator(server: FakeGemini, make: Maker, status: int) -> None:
    """If a key is refused, for instance because its project has not enabled the API, ConfigError is raised."""
    server.faults = [fake.failing(status)] * 3  # google-auth repeats the request twice after a 401
    with pytest.raises(ConfigError, match="_API_KEY"):
        ask(make(server.address))


@gemini_only
def test_an_unknown_model_is_for_the_operator(server: FakeGemini, make: Maker) -> None:
    """The error for an unknown model names the model and the variable."""
    with pytest.raises(ConfigError, match="gemini-of-yore") as caught:
        ask(make(server.address, name="gemini-of-yore"))
    assert "GEMINI_MODEL" in str(caught.value.hint)


@gemini_only
def test_a_prompt_arrives_with_its_instructions_apart_and_the_reply_s_form(server: FakeGemini, make: Maker) -> None:
    """A prompt is sent as system instruction, content, and the schema of the reply in the configuration."""
    completion = make(server.address).complete(PROMPT, timeout_s=5)
    (request,) = server.requests
    assert request["systemInstruction"]["parts"][0]["text"] == PROMPT.instructions
    assert request["contents"][0]["parts"][0]["text"] == DOCUMENT
    assert request["generationConfig"]["responseMimeType"] == "application/json"
    assert set(request["generationConfig"]["responseSchema"]["properties"]) == set(ANSWER_SCHEMA["properties"])
    assert server.keys == [fake.KEY]
    assert json.loads(completion.text)["answer"] == "so [1]"
    assert (completion.model, completion.prompt_tokens, completion.output_tokens) == (fake.MODEL, 120, 40)


def test_an_openai_server_gets_the_same_prompt(server: FakeGemini) -> None:
    """An OpenAI server gets a system message, a user message, and the schema of the reply."""
    completion = by_openai(server.address).complete(PROMPT, timeout_s=5)
    (request,) = server.requests
    assert [message["content"] for message in request["messages"]] == [PROMPT.instructions, DOCUMENT]
    assert request["response_format"]["json_schema"]["schema"] == ANSWER_SCHEMA
    assert (completion.model, completion.prompt_tokens, completion.output_tokens) == (fake.MODEL, 120, 40)


@every
def test_a_model_goes_on_after_a_failure(server: FakeGemini, make: Maker) -> None:
    """After a failure, the same model answers the next request."""
    server.faults = [fake.failing(503)]
    model = make(server.address)
    with pytest.raises(Unavailable):
        ask(model)
    assert ask(model)
