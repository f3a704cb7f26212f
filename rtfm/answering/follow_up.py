"""Turns a follow-up into a question that can be understood on its own.

The model rewrites the question with one additional request. Without a model, or if the request fails, the asker's
previous message is appended to the question.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from rtfm.answering import prompt
from rtfm.answering.guarded import reason_of
from rtfm.answering.model import Completion, LanguageModel
from rtfm.errors import RtfmError
from rtfm.events import ContextMessage, Speaker
from rtfm.scrubbing import scrub
from rtfm.telemetry import MODEL_FAILURES


def rewrite(
    question: str, context: Sequence[ContextMessage], model: LanguageModel, *, timeout_s: float
) -> tuple[str, Completion | None]:
    """Return the question rewritten by the model, and the completion.

    If the model fails, return the result of ``join_context``, and None.
    """
    scrubbed = [attrs.evolve(message, content=scrub(message.content)) for message in context]
    try:
        completion = model.complete(prompt.build_standalone(question, scrubbed), timeout_s=timeout_s)
        return scrub(prompt.parse_standalone(completion.text)), completion
    except RtfmError as exc:
        MODEL_FAILURES.labels(reason=reason_of(exc)).inc()
        return join_context(question, context), None


def join_context(question: str, context: Sequence[ContextMessage]) -> str:
    """Return the question followed by the asker's previous message, which usually names the subject."""
    before = [message.content for message in context if message.speaker is Speaker.ASKER and message.content.strip()]
    return f"{question}\n{scrub(before[-1])}" if before else question
