"""The providers of language models, and the choice of one of them by the settings.

To add a provider, write an adapter like ``gemini`` and add an entry to ``PROVIDERS``.
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
    """A provider of models. ``name`` appears in metrics and logs. The functions take the settings."""

    name: str
    is_chosen: Callable[[Settings], bool]
    open: Callable[[Settings], LanguageModel]
    describe: Callable[[Settings], str]  # text for operators, without secrets


def chosen_provider(settings: Settings) -> Provider | None:
    """Return the first configured provider. If none is configured, return None; then all answers are extracts."""
    return next((provider for provider in PROVIDERS if provider.is_chosen(settings)), None)


def open_model(settings: Settings) -> GuardedModel | None:
    """Return the configured provider's model, wrapped in ``GuardedModel``; None if no provider is configured."""
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


# An adapter is imported only if its provider is used: Google's packages are optional and take over 0.5 s to import.


def _open_openai(settings: Settings) -> LanguageModel:
    from rtfm.answering.openai import OpenAiModel

    return OpenAiModel(
        base_url=settings.openai_base_url or "", model=settings.openai_model, api_key=settings.openai_api_key
    )


def _open_gemini(settings: Settings) -> LanguageModel:
    if settings.gemini_sdk == "google-genai":
        from rtfm.answering.genai import GenaiModel as Adapter
    else:
        from rtfm.answering.gemini import GeminiModel as Adapter  # type: ignore[assignment]  # takes the same arguments
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
