"""Measures retrieval on questions whose answers are known.

Owns the metrics: hit@5 and MRR@10 (the first passage that holds a relevant message) and coverage (the share of a
question's relevant messages inside the first 300 words of what is found). Reads the archive through retrieval, so that
the floor and visibility count, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from rtfm.errors import ConfigError
from rtfm.knowledge.retrieval import Retriever

WORDS = 300
PASSAGES = 20
"""Passages that are asked for: more than 300 words hold."""


@frozen(kw_only=True)
class Question:
    """A question and the messages that answer it."""

    message_id: str
    question: str
    guild_id: str
    relevant: frozenset[str]


@frozen(kw_only=True)
class Result:
    """What was found for one question. ``hit_rank`` counts passages from 1; None if none holds a relevant message."""

    message_id: str
    retrieved: list[str]
    hit_rank: int | None
    coverage: float
    mode: str


@frozen(kw_only=True)
class Summary:
    """All questions together; every figure but ``questions`` and ``nothing_found`` is between 0 and 1."""

    questions: int
    nothing_found: int
    hit_at_5: float
    mrr_at_10: float
    coverage: float


def read_questions(path: Path) -> list[Question]:
    """Read a file of questions, one JSON object a line. Raises ConfigError with the line that is wrong."""
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
                Question(
                    message_id=str(row["message_id"]),
                    question=str(row["question"]),
                    guild_id=str(row["guild_id"]),
                    relevant=frozenset(map(str, row["relevant_message_ids"])),
                )
            )
        except (ValueError, KeyError, TypeError) as exc:
            raise ConfigError(
                f"{path}, line {number}: no question: {type(exc).__name__} {exc}",
                hint="A line holds question, message_id, guild_id and relevant_message_ids.",
            ) from exc
        if not questions[-1].relevant:
            raise ConfigError(f"{path}, line {number}: relevant_message_ids is empty")
    if not questions:
        raise ConfigError(f"{path} holds no questions")
    return questions


def measure(retriever: Retriever, question: Question, visible_channel_ids: Sequence[str]) -> Result:
    """Ask one question."""
    found = retriever.search(
        question.question, guild_id=question.guild_id, visible_channel_ids=visible_channel_ids, limit=PASSAGES
    )
    hit = next(
        (
            rank
            for rank, passage in enumerate(found.passages, start=1)
            if any(message.message_id in question.relevant for message in passage.messages)
        ),
        None,
    )
    retrieved = [message.message_id for passage in found.packed(WORDS) for message in passage.messages]
    return Result(
        message_id=question.message_id,
        retrieved=retrieved,
        hit_rank=hit,
        coverage=len(question.relevant.intersection(retrieved)) / len(question.relevant),
        mode=found.mode,
    )


def summarise(results: Sequence[Result]) -> Summary:
    """The figures of all ``results``, at least one."""
    count = len(results)
    ranks = [result.hit_rank for result in results if result.hit_rank is not None]
    return Summary(
        questions=count,
        nothing_found=sum(not result.retrieved for result in results),
        hit_at_5=sum(rank <= 5 for rank in ranks) / count,
        mrr_at_10=sum(1 / rank for rank in ranks if rank <= 10) / count,
        coverage=sum(result.coverage for result in results) / count,
    )
