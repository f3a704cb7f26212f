"""``Answerer``: one question to one answer.

Owns the order of things: expiry, what may be seen, retrieval, the model, the extract, and what is taken out of either.
Promises an answer for every question as long as the stores answer: a model that fails costs its words, not the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
from attrs import frozen

from rtfm.answering import cleaning, extractive, prompt
from rtfm.answering.model import Completion, LanguageModel
from rtfm.answering.prompt import Source, SourceMessage, UnusableAnswer
from rtfm.errors import ConfigError, RtfmError, Throttled, Unavailable
from rtfm.events import (
    Audience,
    BotQuery,
    BotResponse,
    ChannelKind,
    Citation,
    Outcome,
    OutcomeReason,
    RetrievedPassage,
    SourceKind,
    Speaker,
    TimestampMillis,
)
from rtfm.knowledge import Passage, PassageMessage, Retriever
from rtfm.knowledge.retrieval import MAX_VISIBLE_CHANNELS
from rtfm.scrubbing import scrub
from rtfm.telemetry import ANSWER_SECONDS, ANSWERS, MODEL_FAILURES, get_logger

Clock = Callable[[], TimestampMillis]
"""Milliseconds since the Unix epoch, UTC."""

MAX_ANSWER_CHARACTERS = 3_500
"""Two of Discord's messages; a model that writes more was told not to."""

_PARENT_DECIDES = (ChannelKind.PUBLIC_THREAD, ChannelKind.FORUM_POST)

_log = get_logger(__name__)


@frozen(kw_only=True)
class _Draft:
    """What an answer consists of, before it is addressed."""

    outcome: Outcome
    reason: OutcomeReason | None = None
    answer: str = ""
    citations: Sequence[Citation] = ()
    passages: Sequence[Passage] = ()
    completion: Completion | None = None


class Answerer:
    """Answers questions. Thread-safe."""

    def __init__(
        self, retriever: Retriever, model: LanguageModel | None, *, clock: Clock, passages_per_answer: int = 8
    ) -> None:
        """``model`` None answers by extract. At most ``passages_per_answer`` passages are looked at."""
        self._retriever = retriever
        self._model = model
        self._clock = clock
        self._limit = passages_per_answer

    def answer(self, query: BotQuery) -> BotResponse:
        """The answer to ``query``. Raises Unavailable when a store does not answer."""
        read_at = self._clock()
        draft = self._draft(query, read_at)
        answered_at = self._clock()
        completion = draft.completion
        ANSWERS.labels(outcome=draft.outcome.value).inc()
        ANSWER_SECONDS.observe(max(answered_at - read_at, 0) / 1000)
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
            model=completion.model if completion else None,
            prompt_tokens=completion.prompt_tokens if completion else None,
            output_tokens=completion.output_tokens if completion else None,
            answered_at=answered_at,
            elapsed_ms=max(answered_at - read_at, 0),
        )

    def _draft(self, query: BotQuery, now: TimestampMillis) -> _Draft:
        if now > query.expires_at:
            return _Draft(outcome=Outcome.EXPIRED)
        if len(query.visible_channel_ids) > MAX_VISIBLE_CHANNELS:
            return _Draft(outcome=Outcome.REFUSED, reason=OutcomeReason.TOO_MANY_CHANNELS)
        found = self._retriever.search(
            _standalone(query),
            guild_id=query.guild_id,
            visible_channel_ids=query.visible_channel_ids,
            limit=self._limit,
        )
        passages = [_scrubbed(passage) for passage in visible(found.passages, query)]
        if not passages:
            return _Draft(outcome=Outcome.NOT_FOUND, reason=OutcomeReason.NOTHING_NEAR)
        return attrs.evolve(self._from(query, passages), passages=passages)

    def _from(self, query: BotQuery, passages: Sequence[Passage]) -> _Draft:
        if self._model is None:
            return _extracted(query, passages, OutcomeReason.NO_MODEL)
        try:
            return self._written(self._model, query, passages)
        except RtfmError as exc:
            MODEL_FAILURES.labels(reason=_reason(exc)).inc()
            _log.warning("the model gave no answer, quoting instead", reason=_reason(exc), error=str(exc))
            return _extracted(query, passages, _outcome_reason(exc))

    def _written(self, model: LanguageModel, query: BotQuery, passages: Sequence[Passage]) -> _Draft:
        """The model's answer. Raises RtfmError when there is none that can be used."""
        sources = [
            Source(number=number, messages=[_source_message(message) for message in passage.messages])
            for number, passage in enumerate(passages, start=1)
        ]
        context = [attrs.evolve(message, content=scrub(message.content)) for message in query.context]
        completion = model.complete(prompt.build(scrub(query.question), sources, context))
        reply = prompt.parse(completion.text)
        if not reply.sufficient:
            return _Draft(outcome=Outcome.NOT_FOUND, reason=OutcomeReason.INSUFFICIENT, completion=completion)
        used = [
            number
            for number in dict.fromkeys([*cleaning.cited_numbers(reply.answer), *reply.cited])
            if 1 <= number <= len(passages)
        ]
        if not used:
            raise UnusableAnswer("uncited", "the model's answer cites nothing that it was given")
        known = set().union(*(cleaning.links(m.content) for number in used for m in passages[number - 1].messages))
        text = cleaning.cleaned(scrub(reply.answer), {old: new for new, old in enumerate(used, start=1)}, known)
        if not text:
            raise UnusableAnswer("empty", "nothing is left of the model's answer")
        citations = [
            _citation(number, passages[old - 1], extractive.best_message(query.question, text, passages[old - 1]))
            for number, old in enumerate(used, start=1)
        ]
        return _Draft(outcome=Outcome.ANSWERED, answer=_capped(text), citations=citations, completion=completion)


def visible(passages: Sequence[Passage], query: BotQuery) -> list[Passage]:
    """What of ``passages`` the readers of the answer may read, by the query alone, whatever retrieval did.

    Messages without words are left out, too: there is nothing to quote.
    """
    listed = set(query.visible_channel_ids)

    def may_be_seen(message: PassageMessage) -> bool:
        if message.guild_id != query.guild_id or not message.content.strip():
            return False
        parent = message.parent_channel_id if message.channel_kind in _PARENT_DECIDES else None
        return message.channel_id in listed or parent in listed

    checked = [
        attrs.evolve(p, messages=[m for m in p.messages if may_be_seen(m) and m.content.strip()]) for p in passages
    ]
    return [passage for passage in checked if passage.messages]


def _standalone(query: BotQuery) -> str:
    """What to search for: a follow-up alone often lacks its subject, which stands in the asker's message before."""
    before = [message.content for message in query.context if message.speaker is Speaker.ASKER]
    return f"{query.question}\n{before[-1]}" if before else query.question


def _extracted(query: BotQuery, passages: Sequence[Passage], reason: OutcomeReason) -> _Draft:
    found = extractive.quotes(_standalone(query), passages)
    citations = [_citation(number, quote.passage, quote.message) for number, quote in enumerate(found, start=1)]
    return _Draft(outcome=Outcome.EXTRACTED, reason=reason, answer=extractive.compose(found), citations=citations)


def _retrieved(passage: Passage) -> RetrievedPassage:
    first = passage.messages[0]
    return RetrievedPassage(
        passage_id=passage.passage_id,
        kind=SourceKind.MESSAGE,
        acl_channel_id=first.parent_channel_id if first.channel_kind in _PARENT_DECIDES else first.channel_id,
        message_ids=[message.message_id for message in passage.messages],
        score=passage.score,
    )


def _citation(number: int, passage: Passage, message: PassageMessage) -> Citation:
    return Citation(
        number=number,
        kind=SourceKind.MESSAGE,
        guild_id=message.guild_id,
        channel_id=message.channel_id,
        parent_channel_id=message.parent_channel_id,
        channel_kind=message.channel_kind,
        message_id=message.message_id,
        author_name=" ".join(cleaning.without_pings(message.author_name).split()),
        created_at=message.created_at,
        excerpt=cleaning.excerpt(message.content),
        score=passage.score,
    )


def _scrubbed(passage: Passage) -> Passage:
    return attrs.evolve(passage, messages=[attrs.evolve(m, content=scrub(m.content)) for m in passage.messages])


def _source_message(message: PassageMessage) -> SourceMessage:
    return SourceMessage(author_name=message.author_name, created_at=message.created_at, content=message.content)


def _capped(text: str) -> str:
    if len(text) <= MAX_ANSWER_CHARACTERS:
        return text
    cut = text[: MAX_ANSWER_CHARACTERS - 5].rsplit(maxsplit=1)[0] + "…"
    return f"{cut}\n```" if cut.count("```") % 2 else cut


def _outcome_reason(error: RtfmError) -> OutcomeReason:
    match error:
        case UnusableAnswer(reason="blocked"):
            return OutcomeReason.BLOCKED
        case UnusableAnswer():
            return OutcomeReason.UNUSABLE_OUTPUT
    return OutcomeReason.MODEL_UNAVAILABLE


def _reason(error: RtfmError) -> str:
    match error:
        case UnusableAnswer():
            return error.reason
        case Throttled():
            return "throttled"
        case Unavailable():
            return "unavailable"
        case ConfigError():
            return "configuration"
    return "other"
