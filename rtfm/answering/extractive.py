"""Answers without a model: the messages that come closest, quoted, dated and numbered. Pure.

Owns the choice of messages within passages. A question in a channel matches a question best, and the answer stands
after it: so a message counts for its own words and for those of the messages before it that it may answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from attrs import frozen

from rtfm.answering.cleaning import links, plain, without_foreign_links, without_pings
from rtfm.events import to_datetime
from rtfm.knowledge.retrieval import Passage, PassageMessage
from rtfm.knowledge.words import terms

MAX_QUOTES = 3
MAX_QUOTE_CHARACTERS = 450
WORTH_SHOWING = 0.7
"""Share of the best passage's score below which another passage is not quoted."""

INTRODUCTION = "This was said about it:"

_CARRY = 0.6  # how much of the words of an earlier message counts for one that may answer it
_REACH = 8  # messages
_QUESTION = re.compile(
    r"\?\s*$|^\s*(?:hi\W+|hello\W+)?"
    r"(?:how|what|where|why|who|when|which|does|do|is|are|can|could|any ?one|any ?body)\b",
    re.IGNORECASE,
)
_CONCRETE = re.compile(r"`|https?://|(?:^|\s)(?:sudo|\./|/[\w.]+/|--?\w)|\w+\.\w{2,4}\b|[\w-]+=\S")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_FENCE = "```"


@frozen(kw_only=True)
class Quote:
    """A message worth showing, with what is shown of it."""

    passage: Passage
    message: PassageMessage
    text: str


def quotes(question: str, passages: Sequence[Passage]) -> list[Quote]:
    """At most three quotes, one a passage, the best first."""
    if not passages:
        return []
    rarity = _rarity(question, passages)
    worth = [p for p in passages if p.messages and p.score >= WORTH_SHOWING * passages[0].score][:MAX_QUOTES]
    return [_quote(rarity, passage) for passage in worth]


def best_message(text: str, passage: Passage) -> PassageMessage:
    """The message of ``passage`` that ``text`` (a question with its answer) most likely rests on."""
    rarity = _rarity(text, [passage])
    return max(passage.messages, key=lambda message: _overlap(rarity, terms(message.content)))


def compose(found: Sequence[Quote]) -> str:
    """The answer that shows ``found``, numbered from 1, in Discord's markup."""
    blocks = [
        "\n".join(f"> {line}" for line in quote.text.split("\n"))
        + f"\n{plain(quote.message.author_name)}, {to_datetime(quote.message.created_at):%Y-%m-%d} [{number}]"
        for number, quote in enumerate(found, start=1)
    ]
    return "\n\n".join([INTRODUCTION, *blocks])


def _quote(rarity: Mapping[str, float], passage: Passage) -> Quote:
    scores = _scores(rarity, passage.messages)
    at = max(range(len(scores)), key=lambda i: scores[i])
    message = passage.messages[at]
    text = _shortened(rarity, _quotable(message.content))
    # People spread one thought over several lines; what its author said next belongs to it.
    for following in passage.messages[at + 1 : at + 3]:
        more = _quotable(following.content)
        if following.author_name != message.author_name or len(text) + len(more) >= MAX_QUOTE_CHARACTERS:
            break
        text = f"{text}\n{more}"
    return Quote(passage=passage, message=message, text=text)


def _quotable(content: str) -> str:
    """``content`` without pings, and with the addresses of its links in sight."""
    text = without_pings(content).strip()
    return without_foreign_links(text, links(text))


def _scores(rarity: Mapping[str, float], messages: Sequence[PassageMessage]) -> list[float]:
    words = [terms(message.content) for message in messages]
    overlaps = [_overlap(rarity, found) for found in words]
    scores = []
    for i, message in enumerate(messages):
        carried = max(
            (
                overlaps[j] * _CARRY * (1 - (i - j - 1) / _REACH)
                for j in range(max(0, i - _REACH), i)
                if messages[j].author_name != message.author_name
            ),
            default=0.0,
        )
        score = overlaps[i] + carried
        if _QUESTION.search(message.content):
            score *= 0.4
        if len(words[i]) < 3:
            score *= 0.5
        if _CONCRETE.search(message.content):
            score *= 1.25
        scores.append(score)
    return scores


def _shortened(rarity: Mapping[str, float], text: str) -> str:
    """``text``, or its best matching sentences in their order where it is long."""
    if len(text) <= MAX_QUOTE_CHARACTERS:
        return text
    if _FENCE in text:
        cut = text[: MAX_QUOTE_CHARACTERS - len(_FENCE) - 2].rstrip()
        return f"{cut}…\n{_FENCE}" if cut.count(_FENCE) % 2 else f"{cut}…"
    sentences = [sentence for sentence in _SENTENCE_END.split(text) if sentence.strip()]
    best = sorted(range(len(sentences)), key=lambda i: (-_overlap(rarity, terms(sentences[i])), i))
    chosen: list[int] = []
    length = 0
    for i in best:
        if chosen and length + len(sentences[i]) > MAX_QUOTE_CHARACTERS:
            break
        chosen.append(i)
        length += len(sentences[i]) + 3
    parts: list[str] = []
    for previous, i in zip([-1, *sorted(chosen)], sorted(chosen), strict=False):
        parts.append(sentences[i] if i == previous + 1 else f"… {sentences[i]}")
    shown = " ".join(parts)
    return shown if len(shown) <= MAX_QUOTE_CHARACTERS + 20 else shown[:MAX_QUOTE_CHARACTERS].rstrip() + "…"


def _rarity(text: str, passages: Sequence[Passage]) -> dict[str, float]:
    """How telling each term of ``text`` is among the messages of ``passages``: 0..1."""
    spread: Counter[str] = Counter()
    for passage in passages:
        for message in passage.messages:
            spread.update(set(terms(message.content)))
    return {term: 1 / (1 + spread[term] ** 0.5) for term in set(terms(text))}


def _overlap(rarity: Mapping[str, float], words: Collection[str]) -> float:
    """The share of the telling terms that ``words`` hold: 0..1."""
    total = sum(rarity.values())
    return sum(rarity[word] for word in rarity.keys() & set(words)) / total if total else 0.0
