"""The model providers: which there are, which one the settings choose, and how it is opened.

A new provider is an adapter beside ``gemini`` and an entry in ``PROVIDERS``.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from rtfm.addresses import redact_address
from rtfm.answering.budget import open_budget
from rtfm.answering.guarded import GuardedModel, GuardPolicy
from rtfm.answering.model import LanguageModel
from rtfm.settings import Settings


@frozen(kw_only=True)
class Provider:
    """A provider of models. ``name`` is what metrics and the shared breaker call it."""

    name: str
    is_chosen: Callable[[Settings], bool]
    open: Callable[[Settings], LanguageModel]
    describe: Callable[[Settings], str]  # for operators; holds no secret


def chosen_provider(settings: Settings) -> Provider | None:
    """The first provider that is configured; None means that answers are extracts."""
    return next((provider for provider in PROVIDERS if provider.is_chosen(settings)), None)


def open_model(settings: Settings) -> GuardedModel | None:
    """The model of the chosen provider behind its guards; None where no provider is configured."""
    provider = chosen_provider(settings)
    if provider is None:
        return None
    policy = GuardPolicy(
        attempts=settings.model_attempts,
        failure_share=settings.breaker_failure_share,
        min_requests=settings.breaker_min_requests,
        window_s=settings.breaker_window_s,
        probe_interval_s=settings.breaker_probe_interval_s,
    )
    return GuardedModel(provider.open(settings), name=provider.name, policy=policy, budget=open_budget(settings))


# The adapters are imported when they are opened: Google's packages take half a second and more, and are not installed
# everywhere.


def _open_openai(settings: Settings) -> LanguageModel:
    from rtfm.answering.openai import OpenAiModel

    return OpenAiModel(
        base_url=settings.openai_base_url or "", model=settings.openai_model, api_key=settings.openai_api_key
    )


def _open_gemini(settings: Settings) -> LanguageModel:
    if settings.gemini_sdk == "google-genai":
        from rtfm.answering.genai import GenaiModel as Adapter
    else:
        from rtfm.answering.gemini import GeminiModel as Adapter  # type: ignore[assignment]  # made of the same arguments
    return Adapter(
        api_key=settings.gemini_api_key or "", model=settings.gemini_model, endpoint=settings.gemini_api_endpoint
    )


PROVIDERS = (
    Provider(
        name="openai",
        is_chosen=lambda settings: settings.openai_base_url is not None,
        open=_open_openai,
        describe=lambda settings: f"{settings.openai_model} at {redact_address(settings.openai_base_url or '')}",
    ),
    Provider(
        name="gemini",
        is_chosen=lambda settings: settings.gemini_api_key is not None,
        open=_open_gemini,
        describe=lambda settings: f"a key is set; {settings.gemini_model} by {settings.gemini_sdk}",
    ),
)
