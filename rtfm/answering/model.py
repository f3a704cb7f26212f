"""What answering needs of a language model, whichever it is, and what a service's replies mean in our own terms.

Owns the table from HTTP statuses and finish reasons to errors, which the adapters share. No I/O.
"""

from __future__ import annotations

from typing import Protocol

from attrs import frozen

from rtfm.answering.prompt import Prompt, UnusableAnswer
from rtfm.errors import ConfigError, RtfmError, Throttled, Unavailable

MAX_OUTPUT_TOKENS = 8_192
"""Room for the model's own thinking, which is counted in, and an answer of a few hundred words."""

TEMPERATURE = 0.2
DEFAULT_RETRY_AFTER_S = 5.0

# Names of the v1beta API (https://ai.google.dev/api/generate-content#FinishReason) and of OpenAI's.
_BLOCKED = {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "CONTENT_FILTER"}
_CUT_OFF = {"MAX_TOKENS", "LENGTH"}


@frozen(kw_only=True)
class Completion:
    """What a model wrote. Token counts are the model's own; None where it gave none."""

    text: str
    model: str
    prompt_tokens: int | None
    output_tokens: int | None


class LanguageModel(Protocol):
    """A model that writes JSON. Thread-safe."""

    def complete(self, prompt: Prompt, *, timeout_s: float) -> Completion:
        """The reply to ``prompt``, as JSON of its ``schema``, within ``timeout_s``.

        Raises Unavailable and Throttled when trying later can help, ConfigError when the operator must act,
        ModelNotAsked when it was not asked at all, and UnusableAnswer when it answered with nothing that can be used.
        """
        ...


class ModelNotAsked(RtfmError):
    """The model was spared the request. ``reason`` is for counting: circuit_open, over_budget or out_of_time."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@frozen(kw_only=True)
class Service:
    """What a model's service is called, and by which settings an operator mends it."""

    name: str
    model: str
    key_setting: str
    model_setting: str

    def refusal(self, status: int, message: str, retry_after: str | None) -> RtfmError:
        """The error for an answer with an HTTP ``status`` other than 200."""
        wrong_key = status == 400 and "api key" in message.lower()
        if status in (401, 403) or wrong_key:
            return ConfigError(
                f"{self.name} refused {self.key_setting}", hint=f"Set {self.key_setting} to a valid key."
            )
        if status == 404:
            return ConfigError(f"{self.name} has no model {self.model!r}", hint=f"Set {self.model_setting}.")
        if status == 429:
            return Throttled(f"{self.name} takes no more requests for now", retry_after_s=_retry_after_s(retry_after))
        if 400 <= status < 500 and status != 408:
            return UnusableAnswer("refused", f"{self.name} refused the request: {status}")
        if retry_after is not None:
            return Throttled(f"{self.name} answers {status}", retry_after_s=_retry_after_s(retry_after))
        return Unavailable(self.name, f"{self.name} answers {status}")

    def unreachable(self, error: Exception, timeout_s: float) -> Unavailable:
        """The error for no answer at all."""
        return Unavailable(self.name, f"{self.name} does not answer within {timeout_s:.1f} s: {type(error).__name__}")

    def malformed(self) -> UnusableAnswer:
        """The error for an answer that is none of the service's, such as a proxy's page."""
        return UnusableAnswer("malformed", f"{self.name}'s reply is not of its API's form")

    def checked(self, text: str | None, finish_reason: str) -> str:
        """``text``, if it is whole and not blank."""
        reason = finish_reason.upper()
        if reason in _CUT_OFF:
            raise UnusableAnswer("cut_off", f"{self.name}'s reply was cut off at {MAX_OUTPUT_TOKENS} tokens")
        if reason in _BLOCKED:
            raise UnusableAnswer("blocked", f"{self.name} stopped its reply: {reason.lower()}")
        if text is None or not text.strip():
            raise UnusableAnswer("empty", f"{self.name} gave an empty reply")
        return text

    def without_candidate(self, block_reason: str | None) -> UnusableAnswer:
        """The error for an answer without a candidate."""
        if block_reason:
            return UnusableAnswer("blocked", f"{self.name} blocked the question: {block_reason.lower()}")
        return UnusableAnswer("empty", f"{self.name} gave no candidate")


def _retry_after_s(header: str | None) -> float:
    """What Retry-After asks for, in seconds; a date or nonsense counts as the default."""
    try:
        wanted = float(header) if header else DEFAULT_RETRY_AFTER_S
    except ValueError:
        return DEFAULT_RETRY_AFTER_S
    return wanted if 0 <= wanted < 86_400 else DEFAULT_RETRY_AFTER_S
