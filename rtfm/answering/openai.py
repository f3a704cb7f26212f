"""``OpenAiModel``: a model of any server with OpenAI's chat completions, such as Ollama, vLLM or a gateway.

The API is https://platform.openai.com/docs/api-reference/chat/create, used with structured output. ``OpenAiModel``
neither retries requests nor records metrics; ``GuardedModel`` does both.
"""

from __future__ import annotations

import httpx

from rtfm.answering.model import MAX_OUTPUT_TOKENS, TEMPERATURE, Completion, ModelService
from rtfm.answering.prompt import Prompt


class OpenAiModel:
    """A model behind an OpenAI-compatible endpoint. Thread-safe."""

    def __init__(self, *, base_url: str, model: str, api_key: str | None = None) -> None:
        """Create a client. ``base_url`` includes the version of the API, for example http://localhost:11434/v1."""
        self._service = ModelService(
            name="The model's server", model=model, key_setting="OPENAI_API_KEY", model_setting="OPENAI_MODEL"
        )
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(headers=headers)
        self._address = f"{base_url}/chat/completions"

    def complete(self, prompt: Prompt, *, timeout_s: float) -> Completion:
        """See ``LanguageModel.complete``."""
        body = {
            "model": self._service.model,
            "messages": [
                {"role": "system", "content": prompt.instructions},
                {"role": "user", "content": prompt.document},
            ],
            "temperature": TEMPERATURE,
            "max_tokens": MAX_OUTPUT_TOKENS,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "reply", "schema": dict(prompt.schema)},
            },
        }
        try:
            response = self._client.post(self._address, json=body, timeout=timeout_s)
        except httpx.HTTPError as exc:
            raise self._service.unreachable_error(exc, timeout_s) from exc
        if response.status_code != httpx.codes.OK:
            raise self._service.refusal_error(response.status_code, response.text, response.headers.get("Retry-After"))
        try:
            reply = response.json()
            choices, usage = reply["choices"], reply.get("usage") or {}
            if not choices:
                raise self._service.no_candidate_error(None)
            text, finish_reason = choices[0]["message"]["content"], choices[0].get("finish_reason") or ""
            prompt_tokens, output_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise self._service.malformed_error() from exc
        return Completion(
            text=self._service.require_text(text, finish_reason),
            model=self._service.model,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
        )
