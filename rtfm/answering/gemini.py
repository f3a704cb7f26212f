"""``GeminiModel``: Google's Gemini over REST, through google-generativeai.

The package is no longer maintained (last release in December 2025), so only this module uses it. ``GeminiModel``
neither retries requests nor records metrics; ``GuardedModel`` does both.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

from google.api_core import exceptions as api_errors
from google.auth.exceptions import GoogleAuthError
from google.protobuf.json_format import ParseError

from rtfm.answering.model import MAX_OUTPUT_TOKENS, TEMPERATURE, Completion, ModelService
from rtfm.answering.prompt import Prompt
from rtfm.errors import RtfmError

with warnings.catch_warnings():
    # The package warns at import that it is no longer maintained. docs/decisions/ gives the reason for using it.
    warnings.simplefilter("ignore", FutureWarning)
    from google.generativeai.client import configure
    from google.generativeai.generative_models import GenerativeModel


class GeminiModel:
    """A Gemini model. Thread-safe.

    A process can use only one ``GeminiModel``, because the package stores one key and one address for the process.
    """

    def __init__(self, *, api_key: str, model: str, endpoint: str | None = None) -> None:
        """Configure the package. ``endpoint`` is the address of a proxy or stub, with its scheme; default: Google's."""
        options = {"api_endpoint": endpoint} if endpoint else None
        configure(api_key=api_key, transport="rest", client_options=options)
        self._service = ModelService(
            name="Gemini", model=model, key_setting="GEMINI_API_KEY", model_setting="GEMINI_MODEL"
        )
        self._models: dict[str, Any] = {}

    def complete(self, prompt: Prompt, *, timeout_s: float) -> Completion:
        """See ``LanguageModel.complete``."""
        try:
            response = self._model_for(prompt.instructions).generate_content(
                prompt.document,
                generation_config={
                    "temperature": TEMPERATURE,
                    "max_output_tokens": MAX_OUTPUT_TOKENS,
                    "response_mime_type": "application/json",
                    # The package modifies its argument.
                    "response_schema": copy.deepcopy(dict(prompt.schema)),
                },
                # Without retry=None the package retries for ten minutes after status 503, despite the timeout.
                request_options={"timeout": timeout_s, "retry": None},
            )
        # The package uses the library requests, whose errors are OSErrors.
        except (api_errors.GoogleAPIError, GoogleAuthError, ParseError, OSError, ValueError) as exc:
            raise self._to_rtfm_error(exc, timeout_s) from exc
        usage = response.usage_metadata
        return Completion(
            text=self._read_text(response),
            model=self._service.model,
            prompt_tokens=usage.prompt_token_count or None,
            output_tokens=(usage.total_token_count - usage.prompt_token_count) or None,
        )

    def _model_for(self, instructions: str) -> Any:
        if instructions not in self._models:
            self._models[instructions] = GenerativeModel(self._service.model, system_instruction=instructions)
        return self._models[instructions]

    def _to_rtfm_error(self, error: Exception, timeout_s: float) -> RtfmError:
        if isinstance(error, api_errors.GoogleAPICallError) and error.code is not None:
            headers = getattr(error.response, "headers", None) or {}
            return self._service.refusal_error(int(error.code), error.message, headers.get("Retry-After"))
        if isinstance(error, ParseError) or (isinstance(error, ValueError) and not isinstance(error, OSError)):
            return self._service.malformed_error()
        return self._service.unreachable_error(error, timeout_s)

    def _read_text(self, response: Any) -> str:
        if not response.candidates:
            reason = response.prompt_feedback.block_reason
            raise self._service.no_candidate_error(reason.name if reason else None)
        candidate = response.candidates[0]
        text = "".join(part.text for part in candidate.content.parts if not getattr(part, "thought", False))
        # A finish reason that the package does not know is a plain number without a name.
        return self._service.require_text(text, getattr(candidate.finish_reason, "name", ""))
