"""What answering needs of a language model, whichever it is."""

from __future__ import annotations

from typing import Protocol

from attrs import frozen

from rtfm.answering.prompt import Prompt
from rtfm.settings import Settings


@frozen(kw_only=True)
class Completion:
    """What a model wrote. Token counts are the model's own; None where it gave none."""

    text: str
    model: str
    prompt_tokens: int | None
    output_tokens: int | None


class LanguageModel(Protocol):
    """A model that writes answers. Thread-safe."""

    def complete(self, prompt: Prompt) -> Completion:
        """The answer to ``prompt``, as JSON of ``prompt.ANSWER_SCHEMA``.

        Raises Unavailable and Throttled when trying later can help, ConfigError when the operator must act, and
        UnusableAnswer when the model answered with nothing that can be used.
        """
        ...


def open_model(settings: Settings) -> LanguageModel | None:
    """The model of the settings; None without GEMINI_API_KEY."""
    if not settings.gemini_api_key:
        return None
    # Its import takes half a second and 40 MB, which only those pay who have a key.
    from rtfm.answering.gemini import GeminiModel

    return GeminiModel(
        api_key=settings.gemini_api_key,
        model=settings.gemini_model,
        timeout_s=settings.gemini_timeout_s,
        endpoint=settings.gemini_api_endpoint,
    )
