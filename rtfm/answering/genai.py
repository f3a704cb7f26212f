"""``GenaiModel``: Google's Gemini over REST, through google-genai, the successor of google-generativeai.

Only this module uses the package. ``GenaiModel`` neither retries requests nor records metrics; ``GuardedModel`` does
both.
"""

from __future__ import annotations

from typing import Any

from google import genai
from google.genai import errors, types
from httpx2 import HTTPError

from rtfm.answering.model import MAX_OUTPUT_TOKENS, TEMPERATURE, Completion, ModelService
from rtfm.answering.prompt import Prompt


class GenaiModel:
    """A Gemini model. Thread-safe."""

    def __init__(self, *, api_key: str, model: str, endpoint: str | None = None) -> None:
        """Create a client. ``endpoint`` is the address of a proxy or stub, with its scheme; default: Google's."""
        self._service = ModelService(
            name="Gemini", model=model, key_setting="GEMINI_API_KEY", model_setting="GEMINI_MODEL"
        )
        # If an option is not set here, the package reads it from an environment variable.
        self._client = genai.Client(
            enterprise=False,
            api_key=api_key,
            http_options=types.HttpOptions(
                base_url=endpoint, api_version="v1beta", retry_options=types.HttpRetryOptions(attempts=1)
            ),
        )

    def complete(self, prompt: Prompt, *, timeout_s: float) -> Completion:
        """See ``LanguageModel.complete``."""
        try:
            response = self._client.models.generate_content(
                model=self._service.model,
                contents=prompt.document,
                config=types.GenerateContentConfig(
                    system_instruction=prompt.instructions,
                    temperature=TEMPERATURE,
                    max_output_tokens=MAX_OUTPUT_TOKENS,
                    response_mime_type="application/json",
                    response_schema=dict(prompt.schema),
                    http_options=types.HttpOptions(timeout=max(1, int(timeout_s * 1000))),
                ),
            )
        except errors.APIError as exc:
            headers = getattr(exc.response, "headers", None) or {}
            raise self._service.refusal_error(exc.code, exc.message or "", headers.get("Retry-After")) from exc
        except ValueError as exc:
            raise self._service.malformed_error() from exc
        except (HTTPError, OSError) as exc:
            raise self._service.unreachable_error(exc, timeout_s) from exc
        usage = response.usage_metadata
        prompt_tokens = usage.prompt_token_count if usage else None
        total = usage.total_token_count if usage else None
        return Completion(
            text=self._read_text(response),
            model=self._service.model,
            prompt_tokens=prompt_tokens,
            output_tokens=total - prompt_tokens if total and prompt_tokens else None,
        )

    def _read_text(self, response: types.GenerateContentResponse) -> str:
        if not response.candidates:
            feedback = response.prompt_feedback
            raise self._service.no_candidate_error(_enum_name(feedback.block_reason) if feedback else None)
        candidate = response.candidates[0]
        parts = (candidate.content.parts if candidate.content else None) or []
        text = "".join(part.text or "" for part in parts if not part.thought)
        return self._service.require_text(text, _enum_name(candidate.finish_reason) or "")


def _enum_name(reason: Any) -> str | None:
    return None if reason is None else str(getattr(reason, "name", reason))
