"""``GeminiModel``: Google's Gemini over REST, through google-generativeai.

The package's maintenance has ended (last release in December 2025), so nothing outside this file knows it. Owns the
translation of its failures. Does not retry and counts nothing.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

from google.api_core import exceptions as api_errors
from google.auth.exceptions import GoogleAuthError
from google.protobuf.json_format import ParseError

from rtfm.answering.model import Completion
from rtfm.answering.prompt import ANSWER_SCHEMA, Prompt, UnusableAnswer
from rtfm.errors import ConfigError, RtfmError, Throttled, Unavailable

with warnings.catch_warnings():
    # It says at every import that it is no longer maintained; docs/decisions/ says why it is used.
    warnings.simplefilter("ignore", FutureWarning)
    from google.generativeai.client import configure
    from google.generativeai.generative_models import GenerativeModel

MAX_OUTPUT_TOKENS = 8_192
"""Room for the model's own thinking, which is counted in, and an answer of a few hundred words."""

TEMPERATURE = 0.2
DEFAULT_RETRY_AFTER_S = 5.0

_MAX_TOKENS = 2  # finish reasons of the v1beta API, https://ai.google.dev/api/generate-content#FinishReason
_FINISHED_BADLY = {3: "blocked", 4: "blocked", 7: "blocked", 8: "blocked", 9: "blocked"}


class GeminiModel:
    """A Gemini model. Thread-safe. One a process: the package keeps its key and address globally."""

    def __init__(self, *, api_key: str, model: str, timeout_s: float, endpoint: str | None = None) -> None:
        """``endpoint`` replaces the address of Google's API: a proxy or a stub, scheme included."""
        options = {"api_endpoint": endpoint} if endpoint else None
        configure(api_key=api_key, transport="rest", client_options=options)
        self._name = model
        self._timeout_s = timeout_s
        self._config = {
            "temperature": TEMPERATURE,
            "max_output_tokens": MAX_OUTPUT_TOKENS,
            "response_mime_type": "application/json",
            "response_schema": copy.deepcopy(ANSWER_SCHEMA),
        }
        self._models: dict[str, Any] = {}

    def complete(self, prompt: Prompt) -> Completion:
        """See ``LanguageModel.complete``."""
        try:
            response = self._model(prompt.instructions).generate_content(
                prompt.document,
                generation_config=self._config,
                # Without retry=None the package repeats on 503 for ten minutes, whatever the timeout.
                request_options={"timeout": self._timeout_s, "retry": None},
            )
        # OSError is what requests, which carries the calls, derives its errors from.
        except (api_errors.GoogleAPIError, GoogleAuthError, ParseError, OSError, ValueError) as exc:
            raise self._translated(exc) from exc
        text = _text(response)
        usage = response.usage_metadata
        return Completion(
            text=text,
            model=self._name,
            prompt_tokens=usage.prompt_token_count or None,
            output_tokens=(usage.total_token_count - usage.prompt_token_count) or None,
        )

    def _model(self, instructions: str) -> Any:
        if instructions not in self._models:
            self._models[instructions] = GenerativeModel(self._name, system_instruction=instructions)
        return self._models[instructions]

    def _translated(self, error: Exception) -> RtfmError:
        match error:
            case api_errors.TooManyRequests():
                return Throttled("Gemini takes no more requests for now", retry_after_s=_retry_after_s(error))
            case api_errors.Unauthorized() | api_errors.Forbidden():
                return ConfigError("Gemini refused GEMINI_API_KEY", hint="Make a key at https://aistudio.google.com.")
            case api_errors.BadRequest() if "api key" in error.message.lower():
                return ConfigError("Gemini refused GEMINI_API_KEY", hint="Make a key at https://aistudio.google.com.")
            case api_errors.NotFound():
                return ConfigError(f"Gemini has no model {self._name!r}", hint="Set GEMINI_MODEL.")
            case api_errors.ClientError():
                return UnusableAnswer("refused", f"Gemini refused the request: {error.code}")
            case ParseError():
                return UnusableAnswer("malformed", "Gemini's reply is not of its API's form")
            case ValueError() if not isinstance(error, OSError):
                return UnusableAnswer("malformed", "Gemini's reply is not of its API's form")
        return Unavailable("Gemini", f"Gemini does not answer within {self._timeout_s:g} s: {type(error).__name__}")


def _text(response: Any) -> str:
    if not response.candidates:
        if response.prompt_feedback.block_reason:
            raise UnusableAnswer("blocked", "Gemini blocked the question for safety")
        raise UnusableAnswer("empty", "Gemini gave no candidate")
    candidate = response.candidates[0]
    reason = int(candidate.finish_reason)
    if reason == _MAX_TOKENS:
        raise UnusableAnswer("cut_off", f"Gemini's reply was cut off at {MAX_OUTPUT_TOKENS} tokens")
    if reason in _FINISHED_BADLY:
        raise UnusableAnswer(_FINISHED_BADLY[reason], "Gemini stopped its reply for safety")
    text = "".join(part.text for part in candidate.content.parts if not getattr(part, "thought", False))
    if not text.strip():
        raise UnusableAnswer("empty", "Gemini gave an empty reply")
    return text


def _retry_after_s(error: api_errors.TooManyRequests) -> float:
    """What the answer's Retry-After asks for; a date or nonsense counts as the default."""
    headers = getattr(error.response, "headers", None) or {}
    try:
        wanted = float(headers.get("Retry-After", DEFAULT_RETRY_AFTER_S))
    except ValueError:
        return DEFAULT_RETRY_AFTER_S
    return wanted if 0 <= wanted < 86_400 else DEFAULT_RETRY_AFTER_S
