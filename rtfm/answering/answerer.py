"""``Answerer``: one question to one answer.

Owns the order of things: expiry, what may be seen, retrieval, the model, the extract. Promises an answer for every
question as long as the stores answer: a model that fails costs its words, not the answer, and a defect costs one
question, not the service.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import attrs
from attrs import frozen

from rtfm.answering import extractive, follow_up, prompt, sources, writing
from rtfm.answering.attachments import Attached, attached, telling_lines
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
"""Milliseconds since the Unix epoch, UTC."""


class Searches(Protocol):
    """Who finds passages; see ``Retriever.search``."""

    def search(
        self, question: str, *, guild_id: str | None, visible_channel_ids: Collection[str], limit: int
    ) -> SearchResult:
        """At most ``limit`` passages, best first."""
        ...


Standing = Callable[[Collection[str]], Collection[str]]
"""Those of some message ids whose messages can still be read: neither deleted nor erased."""

MODEL_TIMEOUT_S = 20.0
SOURCE_WORDS = 1_200
"""Words of what was found that are looked at: with eight sources, what the model's answer can rest on."""

_SHARE_FOR_REWRITING = 0.4  # of the time for the model; the answer matters more

_NAMED_RULES = 5
"""Broken rules that an answer names at most."""

_RESTS_ON_PASSAGES = (Outcome.ANSWERED, Outcome.EXTRACTED)

_log = get_logger(__name__)


@frozen(kw_only=True)
class _Draft:
    """What an answer consists of, before it is addressed. ``model`` wrote it, ``completions`` were paid for it."""

    outcome: Outcome
    reason: OutcomeReason | None = None
    answer: str = ""
    citations: Sequence[Citation] = ()
    passages: Sequence[Passage] = ()
    completions: Sequence[Completion] = ()
    model: str | None = None


@frozen(kw_only=True)
class _Question:
    """A question as it is searched and asked: on its own, without secrets."""

    text: str
    query: BotQuery
    listed: frozenset[str]
    files: Sequence[Attached]
    deadline: TimestampMillis
    paid: Sequence[Completion] = ()


class Answerer:
    """Answers questions. Thread-safe."""

    def __init__(
        self,
        retriever: Searches,
        model: LanguageModel | None,
        *,
        clock: Clock,
        passages_per_answer: int = 8,
        model_timeout_s: float = MODEL_TIMEOUT_S,
        standing: Standing | None = None,
    ) -> None:
        """``model`` None answers by extract. At most ``passages_per_answer`` passages are looked at.

        All requests to the model for one question take at most ``model_timeout_s``. ``standing`` is asked about all
        messages that were found once the answer is made: some may be gone by then.
        """
        self._retriever = retriever
        self._model = model
        self._clock = clock
        self._limit = passages_per_answer
        self._model_timeout_ms = round(model_timeout_s * 1000)
        self._standing = standing

    def answer(self, query: BotQuery) -> BotResponse:
        """The answer to ``query``.

        Raises TransientError when a store does not answer, PermanentError for a question that no store takes, and
        ConfigError for what an operator must change. Any other failure is a FAILED answer, logged with where it was.
        """
        read_at = self._clock()
        try:
            draft = self._draft(query, read_at)
        except (TransientError, PermanentError, ConfigError):
            raise
        except Exception as exc:  # whoever asked is to hear that it failed, whatever the defect
            # Without the error's own words, which may be somebody's.
            where = "".join(traceback.format_tb(exc.__traceback__))
            _log.error("answering failed", query_id=query.query_id, error=type(exc).__name__, where=where)
            draft = _Draft(outcome=Outcome.FAILED)
        response = self._addressed(query, draft, read_at=read_at)
        ANSWER_SECONDS.observe(response.elapsed_ms / 1000)
        return response

    def refuse(self, query: BotQuery, broken: Sequence[BrokenRule], *, record_at: TimestampMillis) -> BotResponse:
        """The answer to a ``query`` whose ``broken`` fields break a rule: it names them and the rules, not the values.

        So that the answer keeps the rules itself, ids that break one are "0", and times are those of ``record_at``.
        """
        now = self._clock()
        fields = {one.field for one in broken}
        # A record without a time has one of -1 or 0.
        at = record_at if 0 < record_at <= MAX_TIMESTAMP else now
        fitting: dict[str, Any] = dict.fromkeys(("guild_id", "channel_id", "message_id", "asker_id"), "0")
        fitting["asked_at"] = at
        query = attrs.evolve(query, **{name: value for name, value in fitting.items() if name in fields})
        answer = "; ".join(str(one) for one in broken[:_NAMED_RULES])
        draft = _Draft(outcome=Outcome.REFUSED, reason=OutcomeReason.INVALID_FIELD, answer=answer)
        return self._addressed(query, draft, read_at=now)

    def withdraw(self, query: BotQuery) -> BotResponse:
        """The answer to a ``query`` of somebody who was erased since: nothing is looked for, no model is asked."""
        draft = _Draft(outcome=Outcome.NOT_FOUND, reason=OutcomeReason.SOURCE_REMOVED)
        return self._addressed(query, draft, read_at=self._clock())

    def _addressed(self, query: BotQuery, draft: _Draft, *, read_at: TimestampMillis) -> BotResponse:
        """The answer that ``draft`` makes now, counted."""
        ANSWERS.labels(outcome=draft.outcome.value).inc()
        answered_at = self._clock()
        paid = draft.completions
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
            retrieved=[_retrieved(passage) for passage in draft.passages],
            model=draft.model,
            prompt_tokens=_sum([completion.prompt_tokens for completion in paid]),
            output_tokens=_sum([completion.output_tokens for completion in paid]),
            answered_at=answered_at,
            elapsed_ms=max(answered_at - read_at, 0),
        )

    def _draft(self, query: BotQuery, now: TimestampMillis) -> _Draft:
        if now > query.expires_at:
            return _Draft(outcome=Outcome.EXPIRED)
        if len(query.visible_channel_ids) > MAX_VISIBLE_CHANNELS:
            _log.warning("question refused: too many visible channels", query_id=query.query_id)
            return _Draft(outcome=Outcome.REFUSED, reason=OutcomeReason.TOO_MANY_CHANNELS)
        if not query.visible_channel_ids:
            return _Draft(outcome=Outcome.NOT_FOUND, reason=OutcomeReason.NOTHING_NEAR)
        question = self._standalone(query, now)
        found = self._retriever.search(
            "\n".join([question.text, *telling_lines(question.files)]),
            guild_id=query.guild_id,
            visible_channel_ids=query.visible_channel_ids,
            limit=self._limit,
        )
        passages = sources.usable(found.pack(SOURCE_WORDS)[: self._limit], query)
        if not passages:
            return _Draft(outcome=Outcome.NOT_FOUND, reason=OutcomeReason.NOTHING_NEAR, completions=question.paid)
        return self._checked(question, passages, self._from(question, passages))

    def _standalone(self, query: BotQuery, now: TimestampMillis) -> _Question:
        deadline = TimestampMillis(min(now + self._model_timeout_ms, query.expires_at))
        question = _Question(
            text=scrub(query.question),
            query=query,
            listed=frozenset(query.visible_channel_ids),
            files=attached(query.attachments),
            deadline=deadline,
        )
        if not query.context:
            return question
        if self._model is None:
            return attrs.evolve(question, text=follow_up.joined(question.text, query.context))
        text, completion = follow_up.rewritten(
            question.text,
            query.context,
            self._model,
            timeout_s=(deadline - now) / 1000 * _SHARE_FOR_REWRITING,
        )
        return attrs.evolve(question, text=text, paid=[completion] if completion else [])

    def _from(self, question: _Question, passages: Sequence[Passage]) -> _Draft:
        if self._model is None:
            return _extracted(question, passages, OutcomeReason.NO_MODEL)
        try:
            return self._written(self._model, question, passages)
        except RtfmError as exc:
            MODEL_FAILURES.labels(reason=reason_of(exc)).inc()
            if not isinstance(exc, ModelNotAsked):  # whose causes are logged once, when they begin
                _log.warning("the model gave no answer, quoting instead", reason=reason_of(exc), error=str(exc))
            return _extracted(question, passages, _outcome_reason(exc))

    def _written(self, model: LanguageModel, question: _Question, passages: Sequence[Passage]) -> _Draft:
        """The model's answer. Raises RtfmError when there is none that can be used."""
        asked = prompt.build(question.text, passages, files=question.files, language=question.query.language)
        completion = model.complete(asked, timeout_s=(question.deadline - self._clock()) / 1000)
        paid = [*question.paid, completion]
        reply = prompt.parse(completion.text)
        if not reply.sufficient:
            return _Draft(
                outcome=Outcome.NOT_FOUND,
                reason=OutcomeReason.INSUFFICIENT,
                completions=paid,
                model=completion.model,
            )
        answer = writing.written(reply, passages, question=question.text, channels=question.listed)
        return _Draft(
            outcome=Outcome.ANSWERED,
            answer=answer.text,
            citations=answer.citations,
            completions=paid,
            model=completion.model,
        )

    def _checked(self, question: _Question, passages: Sequence[Passage], draft: _Draft) -> _Draft:
        """``draft`` with ``passages``, if all that it rests on may be read now; else an extract of what may be.

        What it rests on is all that was found: the model has read it, whatever it cites.
        """
        if self._standing is not None:
            # While the model wrote, or kept us waiting, somebody may have deleted what was found.
            ids = {message.message_id for passage in passages for message in passage.messages}
            gone = frozenset(ids - set(self._standing(ids)))
            if gone:
                _log.info("messages were removed while the answer was made", query_id=question.query.query_id)
                passages = sources.without(passages, gone)
                if draft.outcome in _RESTS_ON_PASSAGES:
                    reason = OutcomeReason.UNUSABLE_OUTPUT if draft.model else draft.reason
                    paid = draft.completions
                    draft = attrs.evolve(_extracted(question, passages, reason), completions=paid)
        if not all(sources.visible(c, question.query.guild_id, question.listed) for c in draft.citations):
            raise AssertionError("an answer cites what its readers may not read")
        return attrs.evolve(draft, passages=passages)


def _extracted(question: _Question, passages: Sequence[Passage], reason: OutcomeReason | None) -> _Draft:
    found = extractive.quotes(question.text, passages, channels=question.listed)
    if not found:
        return _Draft(outcome=Outcome.NOT_FOUND, reason=OutcomeReason.NOTHING_NEAR, completions=question.paid)
    citations = [writing.citation(number, quote.passage, quote.message) for number, quote in enumerate(found, start=1)]
    return _Draft(
        outcome=Outcome.EXTRACTED,
        reason=reason,
        answer=extractive.compose(found),
        citations=citations,
        completions=question.paid,
    )


def _retrieved(passage: Passage) -> RetrievedPassage:
    first = passage.messages[0]
    return RetrievedPassage(
        passage_id=passage.passage_id,
        kind=SourceKind.MESSAGE,
        acl_channel_id=acl_channel_id(first.channel_id, first.parent_channel_id, first.channel_kind),
        message_ids=[message.message_id for message in passage.messages],
        score=passage.boosted_score,  # what they are sorted by
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


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
