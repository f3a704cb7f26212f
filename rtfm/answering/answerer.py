"""``Answerer`` turns a question into an answer.

``Answerer`` decides the order of the steps: expiry, visibility, retrieval, model or extract, check for deletions. If
the model fails, the answer is an extract. If a defect stops the answering of a question, this question gets the outcome
FAILED, and the service continues. A question gets no answer if PostgreSQL or Chroma is unavailable or rejects the
question, or if an operator must act.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import attrs
from attrs import frozen

from rtfm.answering import extractive, follow_up, prompt, sources, writing
from rtfm.answering.attachments import TextFile, find_error_lines, select_text_files
from rtfm.answering.guarded import reason_of
from rtfm.answering.model import Completion, LanguageModel, ModelNotAsked
from rtfm.answering.prompt import UnusableAnswer
from rtfm.errors import ConfigError, PermanentError, RtfmError, TransientError
from rtfm.events import (
    MAX_TIMESTAMP,
    Audience,
    BotQuery,
    BotResponse,
    BrokenRule,
    Citation,
    Outcome,
    OutcomeReason,
    RetrievedPassage,
    SourceKind,
    TimestampMillis,
)
from rtfm.knowledge import Passage, SearchResult
from rtfm.scrubbing import scrub
from rtfm.telemetry import ANSWER_SECONDS, ANSWERS, MODEL_FAILURES, get_logger
from rtfm.visibility import MAX_VISIBLE_CHANNELS, acl_channel_id

Clock = Callable[[], TimestampMillis]
"""A function that returns the present time in milliseconds since the Unix epoch, UTC."""


class PassageSearch(Protocol):
    """The part of ``Retriever`` that the answerer uses."""

    def search(
        self, question: str, *, guild_id: str | None, visible_channel_ids: Collection[str], limit: int
    ) -> SearchResult:
        """Return at most ``limit`` passages, the best first."""
        ...


StillReadable = Callable[[Collection[str]], Collection[str]]
"""A function that takes message ids and returns the ids of the messages that are neither deleted nor erased."""

MODEL_TIMEOUT_S = 20.0
MAX_SOURCE_WORDS = 1_200
"""An answer is written from at most this many words of the found passages."""

_REWRITING_TIME_SHARE = 0.4
"""Rewriting a follow-up may use this share of the time for the model. Answering needs the larger share."""

_MAX_NAMED_RULES = 5
"""A REFUSED answer names at most this many of the rules that its question breaks."""

_OUTCOMES_WITH_ANSWER = (Outcome.ANSWERED, Outcome.EXTRACTED)

_log = get_logger(__name__)


@frozen(kw_only=True)
class _Draft:
    """The content of a response, without the fields that are copied from the query.

    ``model`` is the name of the model that wrote the answer. ``completions`` are the replies that the model gave for
    the question; the response reports the sum of their tokens.
    """

    outcome: Outcome
    reason: OutcomeReason | None = None
    answer: str = ""
    citations: Sequence[Citation] = ()
    passages: Sequence[Passage] = ()
    completions: Sequence[Completion] = ()
    model: str | None = None


@frozen(kw_only=True)
class _PreparedQuestion:
    """A question in the form that retrieval and the model get.

    ``text`` includes what the question needs from earlier messages. Secrets in ``text`` are replaced. ``listed`` are
    the ids of the query's visible channels. ``deadline`` is the time by which the model must have answered.
    """

    text: str
    query: BotQuery
    listed: frozenset[str]
    files: Sequence[TextFile]
    deadline: TimestampMillis
    completions: Sequence[Completion] = ()


class Answerer:
    """Answers questions. Thread-safe."""

    def __init__(
        self,
        retriever: PassageSearch,
        model: LanguageModel | None,
        *,
        clock: Clock,
        passages_per_answer: int = 8,
        model_timeout_s: float = MODEL_TIMEOUT_S,
        still_readable: StillReadable | None = None,
    ) -> None:
        """Create an answerer that uses at most ``passages_per_answer`` passages for each answer.

        If ``model`` is None, all answers are extracts. All requests to the model for one question together take at most
        ``model_timeout_s``. ``still_readable`` is called after an answer is written, because messages that the answer
        uses may have been deleted in the meantime. If ``still_readable`` is None, deletions are not checked.
        """
        self._retriever = retriever
        self._model = model
        self._clock = clock
        self._limit = passages_per_answer
        self._model_timeout_ms = round(model_timeout_s * 1000)
        self._still_readable = still_readable

    def answer(self, query: BotQuery) -> BotResponse:
        """Return the answer to ``query``.

        Raises TransientError if PostgreSQL or Chroma does not answer, PermanentError if one of them rejects the
        question, and ConfigError if an operator must act. After any other error, the answer has the outcome FAILED, and
        the traceback is logged.
        """
        read_at = self._clock()
        try:
            draft = self._draft_answer(query, read_at)
        except (TransientError, PermanentError, ConfigError):
            raise
        except Exception as exc:  # the asker must get an answer despite any defect
            # The error's message is not logged because it may quote what a person wrote.
            where = "".join(traceback.format_tb(exc.__traceback__))
            _log.error("answering failed", query_id=query.query_id, error=type(exc).__name__, where=where)
            draft = _Draft(outcome=Outcome.FAILED)
        response = self._build_response(query, draft, read_at=read_at)
        ANSWER_SECONDS.observe(response.elapsed_ms / 1000)
        return response

    def refuse(self, query: BotQuery, broken: Sequence[BrokenRule], *, record_at: TimestampMillis) -> BotResponse:
        """Return a REFUSED answer to a ``query`` that breaks the rules ``broken``.

        The answer names the fields and their rules, but not the values. The response itself must satisfy the rules.
        Therefore "0" replaces an invalid id. An invalid ``asked_at`` is replaced by ``record_at``, the time of the
        query's record, or by the present time if the record has no valid time.
        """
        now = self._clock()
        fields = {rule.field for rule in broken}
        # librdkafka reports -1 or 0 for a record without a timestamp.
        at = record_at if 0 < record_at <= MAX_TIMESTAMP else now
        valid: dict[str, Any] = dict.fromkeys(("guild_id", "channel_id", "message_id", "asker_id"), "0")
        valid["asked_at"] = at
        query = attrs.evolve(query, **{name: value for name, value in valid.items() if name in fields})
        answer = "; ".join(str(rule) for rule in broken[:_MAX_NAMED_RULES])
        draft = _Draft(outcome=Outcome.REFUSED, reason=OutcomeReason.INVALID_FIELD, answer=answer)
        return self._build_response(query, draft, read_at=now)

    def withdraw(self, query: BotQuery) -> BotResponse:
        """Return the answer to a ``query`` whose asker was erased after asking. No store and no model is asked."""
        draft = _Draft(outcome=Outcome.NOT_FOUND, reason=OutcomeReason.SOURCE_REMOVED)
        return self._build_response(query, draft, read_at=self._clock())

    def _build_response(self, query: BotQuery, draft: _Draft, *, read_at: TimestampMillis) -> BotResponse:
        """Build the response to ``query`` from ``draft``, and count its outcome in a metric."""
        ANSWERS.labels(outcome=draft.outcome.value).inc()
        answered_at = self._clock()
        completions = draft.completions
        return BotResponse(
            query_id=query.query_id,
            guild_id=query.guild_id,
            channel_id=query.channel_id,
            query_message_id=query.message_id,
            asker_id=query.asker_id,
            asked_at=query.asked_at,
            origin=query.origin,
            audience=Audience.ASKER if query.audience is Audience.UNKNOWN else query.audience,
            outcome=draft.outcome,
            reason=draft.reason,
            answer=draft.answer,
            citations=list(draft.citations),
            retrieved=[_to_retrieved_passage(passage) for passage in draft.passages],
            model=draft.model,
            prompt_tokens=_sum_known([completion.prompt_tokens for completion in completions]),
            output_tokens=_sum_known([completion.output_tokens for completion in completions]),
            answered_at=answered_at,
            elapsed_ms=max(answered_at - read_at, 0),
        )

    def _draft_answer(self, query: BotQuery, now: TimestampMillis) -> _Draft:
        if now > query.expires_at:
            return _Draft(outcome=Outcome.EXPIRED)
        if len(query.visible_channel_ids) > MAX_VISIBLE_CHANNELS:
            _log.warning("question refused, too many visible channels", query_id=query.query_id)
            return _Draft(outcome=Outcome.REFUSED, reason=OutcomeReason.TOO_MANY_CHANNELS)
        if not query.visible_channel_ids:
            return _Draft(outcome=Outcome.NOT_FOUND, reason=OutcomeReason.NOTHING_NEAR)
        question = self._prepare_question(query, now)
        found = self._retriever.search(
            "\n".join([question.text, *find_error_lines(question.files)]),
            guild_id=query.guild_id,
            visible_channel_ids=query.visible_channel_ids,
            limit=self._limit,
        )
        passages = sources.select_usable(found.pack(MAX_SOURCE_WORDS)[: self._limit], query)
        if not passages:
            return _Draft(
                outcome=Outcome.NOT_FOUND, reason=OutcomeReason.NOTHING_NEAR, completions=question.completions
            )
        return self._recheck_sources(question, passages, self._write_or_quote(question, passages))

    def _prepare_question(self, query: BotQuery, now: TimestampMillis) -> _PreparedQuestion:
        deadline = TimestampMillis(min(now + self._model_timeout_ms, query.expires_at))
        question = _PreparedQuestion(
            text=scrub(query.question),
            query=query,
            listed=frozenset(query.visible_channel_ids),
            files=select_text_files(query.attachments),
            deadline=deadline,
        )
        if not query.context:
            return question
        if self._model is None:
            return attrs.evolve(question, text=follow_up.join_context(question.text, query.context))
        text, completion = follow_up.rewrite(
            question.text,
            query.context,
            self._model,
            timeout_s=(deadline - now) / 1000 * _REWRITING_TIME_SHARE,
        )
        return attrs.evolve(question, text=text, completions=[completion] if completion else [])

    def _write_or_quote(self, question: _PreparedQuestion, passages: Sequence[Passage]) -> _Draft:
        if self._model is None:
            return _quote_passages(question, passages, OutcomeReason.NO_MODEL)
        try:
            return self._ask_model(self._model, question, passages)
        except RtfmError as exc:
            MODEL_FAILURES.labels(reason=reason_of(exc)).inc()
            if not isinstance(exc, ModelNotAsked):  # a used-up budget and an open circuit are already in the log
                _log.warning("the model gave no usable answer, quoting instead", reason=reason_of(exc), error=str(exc))
            return _quote_passages(question, passages, _outcome_reason(exc))

    def _ask_model(self, model: LanguageModel, question: _PreparedQuestion, passages: Sequence[Passage]) -> _Draft:
        """Return the model's answer. Raises RtfmError if the model gives no usable answer."""
        request = prompt.build(question.text, passages, files=question.files, language=question.query.language)
        completion = model.complete(request, timeout_s=(question.deadline - self._clock()) / 1000)
        completions = [*question.completions, completion]
        reply = prompt.parse(completion.text)
        if not reply.sufficient:
            return _Draft(
                outcome=Outcome.NOT_FOUND,
                reason=OutcomeReason.INSUFFICIENT,
                completions=completions,
                model=completion.model,
            )
        answer = writing.write_answer(reply, passages, question=question.text, channels=question.listed)
        return _Draft(
            outcome=Outcome.ANSWERED,
            answer=answer.text,
            citations=answer.citations,
            completions=completions,
            model=completion.model,
        )

    def _recheck_sources(self, question: _PreparedQuestion, passages: Sequence[Passage], draft: _Draft) -> _Draft:
        """Return ``draft`` with ``passages``, after checking whether messages of the passages were removed.

        If a message was removed, an extract of the remaining messages replaces the answer. This also applies to a
        removed message that the answer does not cite, because the model has read it.
        """
        if self._still_readable is not None:
            ids = {message.message_id for passage in passages for message in passage.messages}
            removed = frozenset(ids - set(self._still_readable(ids)))
            if removed:
                _log.info(
                    "messages were removed while the answer was written, quoting the remaining ones",
                    query_id=question.query.query_id,
                )
                passages = sources.without_messages(passages, removed)
                if draft.outcome in _OUTCOMES_WITH_ANSWER:
                    reason = OutcomeReason.UNUSABLE_OUTPUT if draft.model else draft.reason
                    completions = draft.completions
                    draft = attrs.evolve(_quote_passages(question, passages, reason), completions=completions)
        if not all(sources.is_visible(c, question.query.guild_id, question.listed) for c in draft.citations):
            raise AssertionError("an answer cites a message that its readers may not read")
        return attrs.evolve(draft, passages=passages)


def _quote_passages(question: _PreparedQuestion, passages: Sequence[Passage], reason: OutcomeReason | None) -> _Draft:
    found = extractive.quotes(question.text, passages, channels=question.listed)
    if not found:
        return _Draft(outcome=Outcome.NOT_FOUND, reason=OutcomeReason.NOTHING_NEAR, completions=question.completions)
    citations = [
        writing.build_citation(number, quote.passage, quote.message) for number, quote in enumerate(found, start=1)
    ]
    return _Draft(
        outcome=Outcome.EXTRACTED,
        reason=reason,
        answer=extractive.compose(found),
        citations=citations,
        completions=question.completions,
    )


def _to_retrieved_passage(passage: Passage) -> RetrievedPassage:
    first = passage.messages[0]
    return RetrievedPassage(
        passage_id=passage.passage_id,
        kind=SourceKind.MESSAGE,
        acl_channel_id=acl_channel_id(first.channel_id, first.parent_channel_id, first.channel_kind),
        message_ids=[message.message_id for message in passage.messages],
        score=passage.boosted_score,  # the score by which passages are ordered
    )


def _outcome_reason(error: RtfmError) -> OutcomeReason:
    match error:
        case ModelNotAsked(reason="over_budget"):
            return OutcomeReason.OVER_BUDGET
        case UnusableAnswer(reason="blocked"):
            return OutcomeReason.BLOCKED
        case UnusableAnswer():
            return OutcomeReason.UNUSABLE_OUTPUT
    return OutcomeReason.MODEL_UNAVAILABLE


def _sum_known(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
