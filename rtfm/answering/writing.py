"""Turns a model's reply into an answer: cleans the text, checks the citations and builds the list of sources. No I/O.

Whatever the model wrote, the answer cites only passages that the model was given, contains only links from the cited
passages, and pings nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from rtfm.answering import cleaning, extractive
from rtfm.answering.prompt import ModelAnswer, UnusableAnswer, leaks_instructions
from rtfm.events import Citation, SourceKind, is_time, to_datetime
from rtfm.knowledge import Passage, PassageMessage
from rtfm.links import find_links, remove_unknown_links
from rtfm.markup import to_plain_name
from rtfm.scrubbing import scrub

MAX_ANSWER_CHARACTERS = 3_500
"""Largest allowed length of an answer, in characters: about two Discord messages. A longer answer is cut."""

MAX_MODEL_CHARACTERS = 4 * MAX_ANSWER_CHARACTERS
"""Before a model's answer is cleaned, it is cut to this many characters."""


@frozen(kw_only=True)
class WrittenAnswer:
    """The text of an answer and its citations."""

    text: str
    citations: Sequence[Citation]


def write_answer(
    reply: ModelAnswer, passages: Sequence[Passage], *, question: str, channels: frozenset[str]
) -> WrittenAnswer:
    """Return the cleaned answer of ``reply``. In ``reply``, number n cites the n-th of ``passages``, counted from 1.

    In the result, only the cited passages have numbers, counted from 1 again. Mentions of channels that are not in
    ``channels`` become plain words. Raises UnusableAnswer for a reply that cites none of ``passages`` ("uncited"),
    repeats the instructions ("leak"), or has no words left after cleaning ("empty").
    """
    if leaks_instructions(reply.answer):
        raise UnusableAnswer("leak", "the model's answer repeats its instructions")
    cited = dict.fromkeys([*cleaning.cited_numbers(reply.answer), *reply.cited])
    used = [number for number in cited if 1 <= number <= len(passages)]
    if not used:
        raise UnusableAnswer("uncited", "the model's answer cites none of its sources")
    numbers = {old: new for new, old in enumerate(used, start=1)}
    known = set().union(*(find_links(m.content) for number in used for m in passages[number - 1].messages))
    text = cleaning.clean(scrub(reply.answer[:MAX_MODEL_CHARACTERS]), numbers, known, channels)
    text = cleaning.close_code_block(remove_unknown_links(_truncate(text), known))  # a cut link is not in known
    if not cleaning.has_words(text):
        raise UnusableAnswer("empty", "the model's answer has no words left after cleaning")
    citations = [
        build_citation(new, passages[old - 1], extractive.best_message(question, text, passages[old - 1]))
        for old, new in numbers.items()
    ]
    if reply.sources_disagree:
        text = _with_dates(text, citations)
    return WrittenAnswer(text=text, citations=citations)


def build_citation(number: int, passage: Passage, message: PassageMessage) -> Citation:
    """Build the citation of ``message``, which is in ``passage``."""
    return Citation(
        number=number,
        kind=SourceKind.MESSAGE,
        guild_id=message.guild_id,
        channel_id=message.channel_id,
        parent_channel_id=message.parent_channel_id,
        channel_kind=message.channel_kind,
        message_id=message.message_id,
        title=to_plain_name(scrub(message.thread_title)) if message.thread_title else None,
        author_id=message.author_id,
        author_name=to_plain_name(message.author_name),
        # The archive accepts any time of an export, but a response must not contain a time after the year 9999.
        created_at=message.created_at if is_time(message.created_at) else None,
        excerpt=cleaning.excerpt(message.content),
        score=passage.score,
    )


def _with_dates(text: str, citations: Sequence[Citation]) -> str:
    """Return ``text`` followed by the dates of its sources, the newest first.

    If only one source has a date, or if ``text`` contains all the dates, nothing is added.
    """
    dated = sorted((c for c in citations if c.created_at is not None), key=lambda c: -(c.created_at or 0))
    dates = [(c.number, f"{to_datetime(c.created_at):%Y-%m-%d}") for c in dated if c.created_at is not None]
    if len(dates) < 2 or all(date in text for _, date in dates):
        return text
    return f"{text}\n\n≠ " + " · ".join(f"[{number}] {date}" for number, date in dates)


def _truncate(text: str) -> str:
    if len(text) <= MAX_ANSWER_CHARACTERS:
        return text
    return text[: MAX_ANSWER_CHARACTERS - 2].rsplit(maxsplit=1)[0] + " …"
