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
"""Share of the best score below which another passage, or another turn of a passage, is not quoted."""

INTRODUCTION = "This was said about it:"

_ONE_THOUGHT_MS = 120_000
_ONE_THOUGHT_MESSAGES = 4  # who talks on is by then somewhere else
_REACH = 6  # turns
# Factors for a turn's score, set by eye on the sample chat and on public help channels.
_CARRY = 0.6  # the words of an earlier turn, for one that may answer it
_OPENER = 0.5  # who opens a conversation says what is wrong, the others what to do
_ASKING = 0.5
_BRIEF = 0.5
_CONCRETE = 1.25

_QUESTION = re.compile(
    r"\?\s*$|^\s*(?:hi\W+|hello\W+)?"
    r"(?:how|what|where|why|who|when|which|does|do|is|are|can|could|any ?one|any ?body)\b",
    re.IGNORECASE,
)
_COMMAND = re.compile(r"`|https?://|(?:^|\s)(?:sudo|\./|/[\w.]+/|--?\w)|\w+\.\w{2,4}\b|[\w-]+=\S")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_FENCE = "```"


@frozen(kw_only=True)
class Quote:
    """Something worth showing: its words, and the message at which it begins."""

    passage: Passage
    message: PassageMessage
    text: str


@frozen(kw_only=True)
class _Turn:
    """What one author said in one go."""

    first: PassageMessage
    text: str
    terms: frozenset[str]


def quotes(question: str, passages: Sequence[Passage]) -> list[Quote]:
    """At most three quotes: of passages in their order, at most two turns of one, in the order they were said."""
    if not passages:
        return []
    rarity = _rarity(question, passages)
    worth = [p for p in passages if p.messages and p.score >= WORTH_SHOWING * passages[0].score][:MAX_QUOTES]
    chosen: list[tuple[int, int]] = []
    seconds: list[tuple[int, int]] = []
    turns = [_turns(passage) for passage in worth]
    for rank in range(len(worth)):
        scores = _scores(rarity, turns[rank])
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        chosen.append((rank, order[0]))
        if len(order) > 1 and scores[order[1]] >= WORTH_SHOWING * scores[order[0]] > 0:
            seconds.append((rank, order[1]))
    chosen += seconds[: MAX_QUOTES - len(chosen)]
    return [
        Quote(passage=worth[rank], message=turns[rank][at].first, text=_shortened(rarity, turns[rank][at].text))
        for rank, at in sorted(chosen)
    ]


def best_message(question: str, answer: str, passage: Passage) -> PassageMessage:
    """The message of ``passage`` that ``answer`` most likely rests on; without a word in common, the one to quote."""
    rarity = _rarity(answer, [passage])
    overlaps = [_overlap(rarity, terms(message.content)) for message in passage.messages]
    if not any(overlaps):
        return quotes(question, [passage])[0].message
    return passage.messages[overlaps.index(max(overlaps))]


def compose(found: Sequence[Quote]) -> str:
    """The answer that shows ``found``, numbered from 1, in Discord's markup."""
    blocks = [
        "\n".join(f"> {line}" for line in quote.text.split("\n"))
        + f"\n{plain(quote.message.author_name)}, {to_datetime(quote.message.created_at):%Y-%m-%d} [{number}]"
        for number, quote in enumerate(found, start=1)
    ]
    return "\n\n".join([INTRODUCTION, *blocks])


def _turns(passage: Passage) -> list[_Turn]:
    runs: list[list[PassageMessage]] = []
    for message in passage.messages:
        last = runs[-1][-1] if runs else None
        if (
            last is not None
            and last.author_name == message.author_name
            and message.created_at - last.created_at <= _ONE_THOUGHT_MS
            and len(runs[-1]) < _ONE_THOUGHT_MESSAGES
        ):
            runs[-1].append(message)
        else:
            runs.append([message])
    texts = ["\n".join(_quotable(message.content) for message in run) for run in runs]
    return [_Turn(first=run[0], text=text, terms=frozenset(terms(text))) for run, text in zip(runs, texts, strict=True)]


def _quotable(content: str) -> str:
    """``content`` without pings, and with the addresses of its links in sight."""
    text = without_pings(content).strip()
    return without_foreign_links(text, links(text))


def _scores(rarity: Mapping[str, float], turns: Sequence[_Turn]) -> list[float]:
    overlaps = [_overlap(rarity, turn.terms) for turn in turns]
    opener = turns[0].first.author_name
    alone = all(turn.first.author_name == opener for turn in turns)
    scores = []
    for i, turn in enumerate(turns):
        carried = max(
            (
                overlaps[j] * _CARRY * (1 - (i - j - 1) / _REACH)
                for j in range(max(0, i - _REACH), i)
                if turns[j].first.author_name != turn.first.author_name
            ),
            default=0.0,
        )
        score = overlaps[i] + carried
        if turn.first.author_name == opener and not alone:
            score *= _OPENER
        if _QUESTION.search(turn.text):
            score *= _ASKING
        if len(turn.terms) < 3:
            score *= _BRIEF
        if _COMMAND.search(turn.text):
            score *= _CONCRETE
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
