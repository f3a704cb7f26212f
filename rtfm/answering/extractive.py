"""Answers without a model: the messages that come closest, quoted, dated and numbered. Pure.

Owns the choice of messages within passages. A question in a channel matches a question best, and the answer stands
after it: so a message counts for its own words and for those of the messages before it that it may answer.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from attrs import frozen

from rtfm.answering.cleaning import balanced, without_numbers
from rtfm.events import to_datetime
from rtfm.knowledge import Passage, PassageMessage
from rtfm.knowledge.words import terms
from rtfm.links import find_links, remove_unknown_links
from rtfm.markup import escape_markup, remove_channel_mentions, remove_pings, to_plain_name

MAX_QUOTES = 3
MAX_QUOTE_CHARACTERS = 450
MAX_CODE_CHARACTERS = 900
"""A quote with a code block may be this long: half of a block is worth nothing."""

MAX_EXTRACT_CHARACTERS = 1_500
"""With the sources below it, one message of Discord's 2,000 characters."""

WORTH_SHOWING = 0.7
"""Share of the best score below which another passage, or another turn of a passage, is not quoted."""

WORTH_BESIDE = 0.2
"""Share of the best turn's score below which a turn of another passage is chatter."""

WORTH_A_THIRD = 0.5
"""Share of the best quote's score below which two are enough: five of six third quotes hold no part of the answer."""

INTRODUCTION = "This was said about it:"

_ONE_THOUGHT_MS = 120_000
_ONE_THOUGHT_MESSAGES = 4  # who talks on is by then somewhere else
_REACH = 6  # turns
_PIECES = 4  # sentences and code blocks of a long message
_NOTE = 25  # characters of a note that stands for a code block
_FRAME = 60  # characters of quotation marks, name, date and number around a quote
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
_COMMAND = re.compile(r"`|https?://|(?:^|\s)(?:sudo|\./|/[\w.]+/|--?\w)|\w\.\w{2,4}\b|[\w-]=\S")
_BLOCK = re.compile(r"```.*?```", re.DOTALL)
# A sentence ends at its mark or at the end of the line, but not inside inline code.
_CODE_OR_END = re.compile(r"`[^`\n]+`|[.!?](?=\s)|\n")
_SAME = 0.85  # share of common terms from which on two quotes say the same


@frozen(kw_only=True)
class Quote:
    """Something worth showing: its words, and the message at which it begins."""

    passage: Passage
    message: PassageMessage
    text: str


@frozen(kw_only=True)
class _Turn:
    """What one author said in one go. ``links`` are the addresses in it, as ``rtfm.links`` gives them."""

    first: PassageMessage
    text: str
    terms: frozenset[str]
    links: frozenset[str]


@frozen(kw_only=True)
class _Candidate:
    """A turn that may be quoted: of the passage at ``rank``, the one at ``place``."""

    rank: int
    place: int
    passage: Passage
    turn: _Turn
    score: float


def quotes(question: str, passages: Sequence[Passage], *, channels: Collection[str] = ()) -> list[Quote]:
    """At most three quotes: of passages in their order, at most two turns of one, in the order they were said.

    None says what another one says already; together they fit into one of Discord's messages with their sources. Of
    the channels that they name by id, only ``channels`` stay.
    """
    if not passages:
        return []
    worth = [p for p in passages if p.messages and p.score >= WORTH_SHOWING * passages[0].score][:MAX_QUOTES]
    rarity = _rarity(question, worth)
    chosen: list[tuple[_Candidate, str]] = []
    left = MAX_EXTRACT_CHARACTERS
    for candidate in _candidates(rarity, worth):
        if len(chosen) == MAX_QUOTES - 1 and candidate.score < WORTH_A_THIRD * max(one.score for one, _ in chosen):
            continue
        if len(chosen) == MAX_QUOTES or any(_same(candidate.turn, other.turn) for other, _ in chosen):
            continue
        text = _shown(_shortened(rarity, candidate.turn.text), candidate.turn.links, channels)
        length = len(text) + 2 * text.count("\n") + _FRAME
        if text and (not chosen or length <= left):
            chosen.append((candidate, text))
            left -= length
    chosen.sort(key=lambda pair: (pair[0].rank, pair[0].place))
    return [Quote(passage=found.passage, message=found.turn.first, text=text) for found, text in chosen]


def _candidates(rarity: Mapping[str, float], passages: Sequence[Passage]) -> list[_Candidate]:
    """The best turn of each passage, then the second best where it is nearly as good."""
    firsts: list[_Candidate] = []
    seconds: list[_Candidate] = []
    for rank, passage in enumerate(passages):
        turns = _turns(passage)
        if not turns:
            continue
        scores = _scores(rarity, turns)
        order = sorted(range(len(turns)), key=lambda place: (-scores[place], place))
        best, *others = (
            _Candidate(rank=rank, place=place, passage=passage, turn=turns[place], score=scores[place])
            for place in order
        )
        firsts.append(best)
        seconds += [other for other in others[:1] if other.score >= WORTH_SHOWING * best.score > 0]
    floor = WORTH_BESIDE * max((candidate.score for candidate in firsts), default=0.0)
    return [candidate for candidate in firsts + seconds if candidate.rank == 0 or candidate.score >= floor]


def _same(turn: _Turn, other: _Turn) -> bool:
    if not turn.terms and not other.terms:
        return turn.text.strip().lower() == other.text.strip().lower()
    return len(turn.terms & other.terms) >= _SAME * len(turn.terms | other.terms)


def best_message(question: str, answer: str, passage: Passage) -> PassageMessage:
    """The message of ``passage`` that ``answer`` most likely rests on; without a word in common, the one to quote."""
    rarity = _rarity(answer, [passage])
    overlaps = [_overlap(rarity, terms(message.content)) for message in passage.messages]
    if not any(overlaps):
        found = quotes(question, [passage])
        return found[0].message if found else passage.messages[0]
    return passage.messages[overlaps.index(max(overlaps))]


def compose(found: Sequence[Quote]) -> str:
    """The answer that shows ``found``, numbered from 1, in Discord's markup."""
    return "\n\n".join([INTRODUCTION, *(_block(number, quote) for number, quote in enumerate(found, start=1))])


def _block(number: int, quote: Quote) -> str:
    said = "\n".join(f"> {line}" for line in quote.text.split("\n"))
    author = escape_markup(to_plain_name(quote.message.author_name))
    return f"{said}\n{author}, {to_datetime(quote.message.created_at):%Y-%m-%d} [{number}]"


def _turns(passage: Passage) -> list[_Turn]:
    runs: list[list[PassageMessage]] = []
    for message in passage.messages:
        last = runs[-1][-1] if runs else None
        if (
            last is not None
            and _author(last) == _author(message)
            and message.created_at - last.created_at <= _ONE_THOUGHT_MS
            and len(runs[-1]) < _ONE_THOUGHT_MESSAGES
        ):
            runs[-1].append(message)
        else:
            runs.append([message])
    names = tuple(f"@{message.author_name}" for message in passage.messages)
    texts = ["\n".join(_quotable(message.content, names) for message in run) for run in runs]
    return [
        _Turn(first=run[0], text=text, terms=frozenset(terms(text)), links=frozenset(find_links(text)))
        for run, text in zip(runs, texts, strict=True)
        if text.strip()
    ]


def _author(message: PassageMessage) -> str:
    """Who said it. Two people may bear one name."""
    return message.author_id or message.author_name


def _quotable(content: str, names: tuple[str, ...]) -> str:
    """``content`` without pings and without whom it speaks to."""
    text = remove_pings(content).strip()
    if text.startswith(names):
        name, _, rest = text.partition(" ")
        text = rest.lstrip() if name.rstrip(",:") in names and rest.strip() else text
    return text


def _shown(text: str, known: Collection[str], channels: Collection[str]) -> str:
    """``text`` as it is quoted: code blocks closed, the addresses of links in sight, no numbers that look like ours.

    A link that was cut, or that only two messages together make, is none that anybody wrote.
    """
    text = remove_unknown_links(remove_channel_mentions(remove_pings(text), channels), known)
    return balanced(without_numbers(text))


def _scores(rarity: Mapping[str, float], turns: Sequence[_Turn]) -> list[float]:
    overlaps = [_overlap(rarity, turn.terms) for turn in turns]
    authors = [_author(turn.first) for turn in turns]
    alone = len(set(authors)) == 1
    scores = []
    for i, turn in enumerate(turns):
        carried = max(
            (
                overlaps[j] * _CARRY * (1 - (i - j - 1) / _REACH)
                for j in range(max(0, i - _REACH), i)
                if authors[j] != authors[i]
            ),
            default=0.0,
        )
        score = overlaps[i] + carried
        if authors[i] == authors[0] and not alone:
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
    """``text``, or of a long one the best matching sentences in their order; code blocks whole, or a note instead."""
    limit = MAX_CODE_CHARACTERS if _BLOCK.search(text) else MAX_QUOTE_CHARACTERS
    if len(text) <= limit:
        return text
    pieces = _pieces(text)
    scores = [_overlap(rarity, terms(piece)) for piece in pieces]
    for i in range(1, len(pieces)):
        if _BLOCK.fullmatch(pieces[i]):  # which the sentence before it explains
            scores[i] = max(scores[i], scores[i - 1])
    chosen: set[int] = set()
    left = limit
    for i in sorted(range(len(pieces)), key=lambda i: (-scores[i], i)):
        if len(pieces[i]) <= left and len(chosen) < _PIECES and (scores[i] > 0 or not chosen):
            chosen.add(i)
            left -= len(pieces[i]) + 3
    shown: list[str] = []
    skipped = False
    for i, piece in enumerate(pieces):
        block = _BLOCK.fullmatch(piece) is not None
        if i in chosen:
            before = "\n" if block and shown else "… " if skipped else ""
            shown.append(before + piece + ("\n" if block else ""))
            skipped = False
        elif block and left >= _NOTE:
            shown.append(f"({piece.count(chr(10)) + 1} lines of code)")
            left -= _NOTE
        else:
            skipped = True
    return " ".join(shown).strip() or text[: limit - 1].rstrip() + "…"


def _pieces(text: str) -> list[str]:
    """The sentences and code blocks of ``text``, in order."""
    found: list[str] = []
    end = 0
    for block in _BLOCK.finditer(text):
        found += _sentences(text[end : block.start()])
        found.append(block.group())
        end = block.end()
    found += _sentences(text[end:])
    return [cut for piece in found if piece.strip() for cut in _cut(piece.strip())]


def _sentences(text: str) -> Iterator[str]:
    begin = 0
    for match in _CODE_OR_END.finditer(text):
        if not match.group().startswith("`"):
            yield text[begin : match.end()]
            begin = match.end()
    yield text[begin:]


def _cut(piece: str) -> list[str]:
    """``piece``, or runs of its words where it is longer than a quote: the match may stand anywhere."""
    if len(piece) <= MAX_QUOTE_CHARACTERS or _BLOCK.fullmatch(piece):
        return [piece]
    return textwrap.wrap(" ".join(piece.split()), MAX_QUOTE_CHARACTERS // 3, break_on_hyphens=False)


def _rarity(text: str, passages: Sequence[Passage]) -> dict[str, float]:
    """How telling each term of ``text`` is among the messages of ``passages``: shares, which add up to 1."""
    spread: Counter[str] = Counter()
    for passage in passages:
        for message in passage.messages:
            spread.update(set(terms(message.content)))
    weights = {term: 1 / (1 + spread[term] ** 0.5) for term in dict.fromkeys(terms(text))}
    total = math.fsum(weights.values())
    return {term: weight / total for term, weight in weights.items()}


def _overlap(rarity: Mapping[str, float], words: Collection[str]) -> float:
    """The share of the telling terms that ``words`` hold: 0..1."""
    # An exact sum: a set's order depends on the process, and a plain sum of floats on the order.
    return math.fsum(rarity[word] for word in rarity.keys() & set(words))
