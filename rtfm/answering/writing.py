"""From a model's reply to an answer that may be shown: words cleaned, numbers checked, sources linked. Pure.

Promises that whatever the model wrote, the answer cites, links and pings nothing that it was not given.
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
"""Two of Discord's messages; a model that writes more was told not to."""

MAX_MODEL_CHARACTERS = 4 * MAX_ANSWER_CHARACTERS
"""Of a model's reply, what is read at all."""


@frozen(kw_only=True)
class Written:
    """An answer's words and the sources that they rest on."""

    text: str
    citations: Sequence[Citation]


def written(reply: ModelAnswer, passages: Sequence[Passage], *, question: str, channels: frozenset[str]) -> Written:
    """The answer that ``reply`` makes with ``passages``, which it knows by their numbers from 1.

    ``channels`` may be named by id in it. Raises UnusableAnswer for a reply that cites nothing that it was given
    ("uncited"), repeats its instructions ("leak"), or of which nothing is left ("empty").
    """
    if leaks_instructions(reply.answer):
        raise UnusableAnswer("leak", "the model's answer repeats its instructions")
    cited = dict.fromkeys([*cleaning.cited_numbers(reply.answer), *reply.cited])
    used = [number for number in cited if 1 <= number <= len(passages)]
    if not used:
        raise UnusableAnswer("uncited", "the model's answer cites nothing that it was given")
    numbers = {old: new for new, old in enumerate(used, start=1)}
    known = set().union(*(find_links(m.content) for number in used for m in passages[number - 1].messages))
    text = cleaning.cleaned(scrub(reply.answer[:MAX_MODEL_CHARACTERS]), numbers, known, channels)
    text = cleaning.balanced(remove_unknown_links(_capped(text), known))  # a link that was cut is another link
    if not cleaning.says_something(text):
        raise UnusableAnswer("empty", "nothing is left of the model's answer")
    citations = [
        citation(new, passages[old - 1], extractive.best_message(question, text, passages[old - 1]))
        for old, new in numbers.items()
    ]
    if reply.sources_disagree:
        text = _with_dates(text, citations)
    return Written(text=text, citations=citations)


def citation(number: int, passage: Passage, message: PassageMessage) -> Citation:
    """``message`` of ``passage`` as a source."""
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
        # The archive takes any time that an export claims, and a response must not hold one beyond year 9999.
        created_at=message.created_at if is_time(message.created_at) else None,
        excerpt=cleaning.excerpt(message.content),
        score=passage.score,
    )


def _with_dates(text: str, citations: Sequence[Citation]) -> str:
    """``text`` with the dates of sources that disagree, the newest first, unless it gives them itself."""
    dated = sorted((c for c in citations if c.created_at is not None), key=lambda c: -(c.created_at or 0))
    dates = [(c.number, f"{to_datetime(c.created_at):%Y-%m-%d}") for c in dated if c.created_at is not None]
    if len(dates) < 2 or all(date in text for _, date in dates):
        return text
    return f"{text}\n\n≠ " + " · ".join(f"[{number}] {date}" for number, date in dates)


def _capped(text: str) -> str:
    if len(text) <= MAX_ANSWER_CHARACTERS:
        return text
    return text[: MAX_ANSWER_CHARACTERS - 2].rsplit(maxsplit=1)[0] + " …"
