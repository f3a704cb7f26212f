"""The interface of a language model, and the translation of a provider's failures into errors. No I/O.

All providers' clients use the same translation of HTTP statuses and finish reasons.
"""

from __future__ import annotations

from typing import Protocol

from attrs import frozen

from rtfm.answering.prompt import Prompt, UnusableAnswer
from rtfm.errors import ConfigError, RtfmError, Throttled, Unavailable

MAX_OUTPUT_TOKENS = 8_192
"""Largest allowed length of a reply, in tokens.

This is enough for an answer of a few hundred words and for the model's thinking, which counts as output.
"""

TEMPERATURE = 0.2
DEFAULT_RETRY_AFTER_S = 5.0
"""Seconds until a retry if the provider throttles requests and does not say how long to wait."""

# Finish reasons of Gemini's v1beta API (https://ai.google.dev/api/generate-content#FinishReason) and of OpenAI's API.
_BLOCKED = {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "CONTENT_FILTER"}
_CUT_OFF = {"MAX_TOKENS", "LENGTH"}


@frozen(kw_only=True)
class Completion:
    """The reply of a model. The token counts are those that the provider reported, or None if it reported none."""

    text: str
    model: str
    prompt_tokens: int | None
    output_tokens: int | None


class LanguageModel(Protocol):
    """A model that replies in JSON. Thread-safe."""

    def complete(self, prompt: Prompt, *, timeout_s: float) -> Completion:
        """Return the reply to ``prompt``, which should be JSON in the form of the prompt's ``schema``.

        The form is not checked. Raises Unavailable or Throttled if a retry can help, for example if there is no reply
        within ``timeout_s`` seconds. Raises ConfigError if the operator must act, ModelNotAsked if no request was sent,
        and UnusableAnswer if the reply cannot be used.
        """
        ...


class ModelNotAsked(RtfmError):
    """A request was not sent to the model. ``reason`` is circuit_open, over_budget or out_of_time, as in metrics."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@frozen(kw_only=True)
class ModelService:
    """Translates a provider's failures into errors that name the settings to change.

    ``key_setting`` and ``model_setting`` are the names of the settings that hold the key and the model's name.
    """

    name: str
    model: str
    key_setting: str
    model_setting: str

    def refusal_error(self, status: int, message: str, retry_after: str | None) -> RtfmError:
        """Return the error for an HTTP ``status`` other than 200."""
        wrong_key = status == 400 and "api key" in message.lower()
        if status in (401, 403) or wrong_key:
            return ConfigError(
                f"{self.name} refused the key in {self.key_setting}", hint=f"Set {self.key_setting} to a valid key."
            )
        if status == 404:
            return ConfigError(
                f"{self.name} has no model {self.model!r}", hint=f"Set {self.model_setting} to one of its models."
            )
        if status == 429:
            return Throttled(
                f"{self.name} throttles requests: HTTP status 429", retry_after_s=_retry_after_s(retry_after)
            )
        if 400 <= status < 500 and status != 408:
            return UnusableAnswer("refused", f"{self.name} refused the request: HTTP status {status}")
        if retry_after is not None:
            return Throttled(
                f"{self.name} answered with HTTP status {status}", retry_after_s=_retry_after_s(retry_after)
            )
        return Unavailable(self.name, f"{self.name} answered with HTTP status {status}")

    def unreachable_error(self, error: Exception, timeout_s: float) -> Unavailable:
        """Return the error for a request that got no reply."""
        return Unavailable(self.name, f"{self.name} did not answer within {timeout_s:.1f} s: {type(error).__name__}")

    def malformed_error(self) -> UnusableAnswer:
        """Return the error for a reply that is not in the form of the API, for example a proxy's page."""
        return UnusableAnswer("malformed", f"{self.name}'s reply is not in the form of its API")

    def require_text(self, text: str | None, finish_reason: str) -> str:
        """Return ``text``. Raises UnusableAnswer if the reply was cut off or blocked, or if ``text`` is blank."""
        reason = finish_reason.upper()
        if reason in _CUT_OFF:
            raise UnusableAnswer("cut_off", f"{self.name}'s reply was cut off at {MAX_OUTPUT_TOKENS} tokens")
        if reason in _BLOCKED:
            raise UnusableAnswer("blocked", f"{self.name} stopped its reply: {reason.lower()}")
        if text is None or not text.strip():
            raise UnusableAnswer("empty", f"{self.name} returned an empty reply")
        return text

    def no_candidate_error(self, block_reason: str | None) -> UnusableAnswer:
        """Return the error for a reply that contains no answer (in Gemini's terms, no candidate)."""
        if block_reason:
            return UnusableAnswer("blocked", f"{self.name} blocked the question: {block_reason.lower()}")
        return UnusableAnswer("empty", f"{self.name} returned no candidate")


def _retry_after_s(header: str | None) -> float:
    """Return the seconds in a Retry-After header, or the default if the header has no number from 0 up to a day."""
    try:
        seconds = float(header) if header else DEFAULT_RETRY_AFTER_S
    except ValueError:
        return DEFAULT_RETRY_AFTER_S
    return seconds if 0 <= seconds < 86_400 else DEFAULT_RETRY_AFTER_S
