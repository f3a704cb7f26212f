"""Evaluation: measures retrieval with questions whose relevant messages are known.

The metrics of a question are:

- hit@5 and MRR@10, which depend on the rank of the first passage that contains a relevant message,
- coverage: the share of the relevant messages that are in the first 300 words of the result.

``Retriever`` does the searches, so the floor and visibility apply.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from rtfm.errors import ConfigError
from rtfm.knowledge.retrieval import Retriever

MAX_WORDS = 300
"""Coverage counts the relevant messages in this many words at the start of the result."""

MAX_PASSAGES = 20
"""Maximum number of passages that a search returns. So many passages usually contain more than 300 words."""


@frozen(kw_only=True)
class LabelledQuestion:
    """A question with the ids of the messages that answer it. ``message_id`` is the id of the question's message."""

    message_id: str
    question: str
    guild_id: str
    relevant: frozenset[str]


@frozen(kw_only=True)
class QuestionResult:
    """The result of the search for one question.

    ``retrieved`` are the ids of the messages in the first 300 words of the result. ``hit_rank`` is the rank, from 1, of
    the first passage that contains a relevant message, or None if none does. ``coverage`` is a share, 0..1.
    """

    message_id: str
    retrieved: list[str]
    hit_rank: int | None
    coverage: float
    mode: str


@frozen(kw_only=True)
class Summary:
    """The metrics over all questions. ``questions`` and ``nothing_found`` are counts; the rest are means, 0..1."""

    questions: int
    nothing_found: int
    hit_at_5: float
    mrr_at_10: float
    coverage: float


def read_questions(path: Path) -> list[LabelledQuestion]:
    """Read a file of questions, one JSON object per line. Raises ConfigError for an invalid file or line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
    questions = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            questions.append(
                LabelledQuestion(
                    message_id=str(row["message_id"]),
                    question=str(row["question"]),
                    guild_id=str(row["guild_id"]),
                    relevant=frozenset(map(str, row["relevant_message_ids"])),
                )
            )
        except (ValueError, KeyError, TypeError) as exc:
            raise ConfigError(
                f"{path}, line {number}: invalid question: {type(exc).__name__} {exc}",
                hint="Each line needs question, message_id, guild_id and relevant_message_ids.",
            ) from exc
        if not questions[-1].relevant:
            raise ConfigError(f"{path}, line {number}: relevant_message_ids is empty")
    if not questions:
        raise ConfigError(f"{path} contains no questions")
    return questions


def measure(retriever: Retriever, question: LabelledQuestion, visible_channel_ids: Sequence[str]) -> QuestionResult:
    """Search for one question, and compare the result with the relevant messages of the question."""
    found = retriever.search(
        question.question, guild_id=question.guild_id, visible_channel_ids=visible_channel_ids, limit=MAX_PASSAGES
    )
    hit = next(
        (
            rank
            for rank, passage in enumerate(found.passages, start=1)
            if any(message.message_id in question.relevant for message in passage.messages)
        ),
        None,
    )
    retrieved = [message.message_id for passage in found.pack(MAX_WORDS) for message in passage.messages]
    return QuestionResult(
        message_id=question.message_id,
        retrieved=retrieved,
        hit_rank=hit,
        coverage=len(question.relevant.intersection(retrieved)) / len(question.relevant),
        mode=found.mode,
    )


def summarise(results: Sequence[QuestionResult]) -> Summary:
    """Return the metrics over all ``results``, which must not be empty."""
    count = len(results)
    ranks = [result.hit_rank for result in results if result.hit_rank is not None]
    return Summary(
        questions=count,
        nothing_found=sum(not result.retrieved for result in results),
        hit_at_5=sum(rank <= 5 for rank in ranks) / count,
        mrr_at_10=sum(1 / rank for rank in ranks if rank <= 10) / count,
        coverage=sum(result.coverage for result in results) / count,
    )
