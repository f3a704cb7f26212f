"""Follow-ups: a question that leans on what was said before it, made to stand alone.

Owns the choice between one extra request to the model and joining the question to the asker's message before it. A
question without context is left as it is and costs nothing.
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


def rewritten(
    question: str, context: Sequence[ContextMessage], model: LanguageModel, *, timeout_s: float
) -> tuple[str, Completion | None]:
    """The question on its own, and what that cost; ``joined`` and None when the model gives none."""
    said = [attrs.evolve(message, content=scrub(message.content)) for message in context]
    try:
        completion = model.complete(prompt.build_standalone(question, said), timeout_s=timeout_s)
        return scrub(prompt.parse_standalone(completion.text)), completion
    except RtfmError as exc:
        MODEL_FAILURES.labels(reason=reason_of(exc)).inc()
        return joined(question, context), None


def joined(question: str, context: Sequence[ContextMessage]) -> str:
    """The question with the asker's message before it, which names what is asked about."""
    before = [message.content for message in context if message.speaker is Speaker.ASKER and message.content.strip()]
    return f"{question}\n{scrub(before[-1])}" if before else question
