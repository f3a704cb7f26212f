"""Builds an extract: an answer without a model that quotes the best matching messages. No I/O.

Consecutive messages of one author form a turn, and an extract quotes turns. The turn that matches a question best is
usually the same question, asked before; the answer is in a later turn. Therefore the score of a turn counts the terms
of this turn, and also the terms of an earlier turn that this turn may answer.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from attrs import frozen

from rtfm.answering.cleaning import close_code_block, without_citations
from rtfm.events import to_datetime
from rtfm.knowledge import Passage, PassageMessage
from rtfm.knowledge.words import terms
from rtfm.links import find_links, remove_unknown_links
from rtfm.markup import escape_markup, remove_channel_mentions, remove_pings, to_plain_name

MAX_QUOTES = 3
MAX_QUOTE_CHARACTERS = 450
MAX_CODE_CHARACTERS = 900
"""Largest allowed length of a quote with a code block, in characters.

This length is larger than ``MAX_QUOTE_CHARACTERS``, because half of a code block is useless.
"""

MAX_EXTRACT_CHARACTERS = 1_500
"""Largest allowed length of an extract, in characters.

An extract of this length and the list of its sources fit into one Discord message of 2,000 characters.
"""

MIN_SHARE_OF_BEST = 0.7
"""A passage may be quoted if it has at least this share of the first passage's score.

A second turn of a passage may be quoted if it has at least this share of the score of the passage's best turn.
"""

MIN_SHARE_OTHER_PASSAGE = 0.2
"""A turn of the second or third passage may be quoted if it has at least this share of the highest score of a turn.

A turn with a lower score is usually chatter.
"""

MIN_SHARE_THIRD_QUOTE = 0.5
"""A third quote is added if its score is at least this share of the higher score of the other two quotes.

Of the third quotes with a lower score, five of six contain no part of the answer.
"""

INTRODUCTION = "This was said about it:"

_MAX_TURN_GAP_MS = 120_000
_MAX_TURN_MESSAGES = 4  # an author who writes more has usually moved to another subject
_MAX_CARRY_TURNS = 6  # a turn may answer any of the turns directly before it, up to this many
_MAX_PIECES = 4  # at most this many sentences and code blocks of a long turn are quoted
_CODE_NOTE_CHARACTERS = 25  # approximate length of a note that replaces a code block
_QUOTE_OVERHEAD_CHARACTERS = 60  # approximate length of the quotation marks, name, date and number of a quote
# Factors for a turn's score, set by eye on the sample chat and on public help channels.
_CARRY_FACTOR = 0.6  # for the terms of an earlier turn that the turn may answer
_OPENER_FACTOR = 0.5  # for turns of the first author, who usually describes the problem and not the solution
_QUESTION_FACTOR = 0.5  # for a turn that asks a question
_BRIEF_FACTOR = 0.5  # for a turn of fewer than three terms
_COMMAND_FACTOR = 1.25  # for a turn that contains a command, a path or a link

_QUESTION = re.compile(
    r"\?\s*$|^\s*(?:hi\W+|hello\W+)?"
    r"(?:how|what|where|why|who|when|which|does|do|is|are|can|could|any ?one|any ?body)\b",
    re.IGNORECASE,
)
_COMMAND = re.compile(r"`|https?://|(?:^|\s)(?:sudo|\./|/[\w.]+/|--?\w)|\w\.\w{2,4}\b|[\w-]=\S")
_BLOCK = re.compile(r"```.*?```", re.DOTALL)
# A sentence ends at a punctuation mark or at the end of a line, but not inside inline code.
_CODE_OR_END = re.compile(r"`[^`\n]+`|[.!?](?=\s)|\n")
_SAME_TERMS_SHARE = 0.85  # two turns with at least this share of common terms count as the same


@frozen(kw_only=True)
class Quote:
    """A quoted turn: the text that is shown, and the first message of the turn."""

    passage: Passage
    message: PassageMessage
    text: str


@frozen(kw_only=True)
class _Turn:
    """Consecutive messages of one author. ``links`` are the addresses in ``text``, as ``find_links`` returns them."""

    first: PassageMessage
    text: str
    terms: frozenset[str]
    links: frozenset[str]


@frozen(kw_only=True)
class _QuotableTurn:
    """A turn that may be quoted.

    ``rank`` is the index of its passage among the passages, and ``place`` the index of the turn in the passage.
    """

    rank: int
    place: int
    passage: Passage
    turn: _Turn
    score: float


def quotes(question: str, passages: Sequence[Passage], *, channels: Collection[str] = ()) -> list[Quote]:
    """Return at most three quotes, in the order of the passages and of the turns within a passage.

    At most two quotes are from the same passage. Of two turns with nearly the same terms, only one is quoted. The
    quotes and the list of their sources fit into one Discord message. Mentions of channels that are not in ``channels``
    become plain words.
    """
    if not passages:
        return []
    close = [p for p in passages if p.messages and p.score >= MIN_SHARE_OF_BEST * passages[0].score][:MAX_QUOTES]
    rarity = _rarity_of_terms(question, close)
    chosen: list[tuple[_QuotableTurn, str]] = []
    left = MAX_EXTRACT_CHARACTERS
    for candidate in _rank_turns(rarity, close):
        if len(chosen) == MAX_QUOTES - 1 and candidate.score < MIN_SHARE_THIRD_QUOTE * max(
            other.score for other, _ in chosen
        ):
            continue
        if len(chosen) == MAX_QUOTES or any(_is_same(candidate.turn, other.turn) for other, _ in chosen):
            continue
        text = _clean_quote(_shorten(rarity, candidate.turn.text), candidate.turn.links, channels)
        length = len(text) + 2 * text.count("\n") + _QUOTE_OVERHEAD_CHARACTERS
        if text and (not chosen or length <= left):
            chosen.append((candidate, text))
            left -= length
    chosen.sort(key=lambda pair: (pair[0].rank, pair[0].place))
    return [Quote(passage=quoted.passage, message=quoted.turn.first, text=text) for quoted, text in chosen]


def _rank_turns(rarity: Mapping[str, float], passages: Sequence[Passage]) -> list[_QuotableTurn]:
    """Return the best turn of each passage, followed by the second-best turns that may be quoted.

    Turns whose score is too low for a quote are left out.
    """
    firsts: list[_QuotableTurn] = []
    seconds: list[_QuotableTurn] = []
    for rank, passage in enumerate(passages):
        turns = _group_turns(passage)
        if not turns:
            continue
        scores = _score_turns(rarity, turns)
        order = sorted(range(len(turns)), key=lambda place: (-scores[place], place))
        best, *others = (
            _QuotableTurn(rank=rank, place=place, passage=passage, turn=turns[place], score=scores[place])
            for place in order
        )
        firsts.append(best)
        seconds += [other for other in others[:1] if other.score >= MIN_SHARE_OF_BEST * best.score > 0]
    floor = MIN_SHARE_OTHER_PASSAGE * max((candidate.score for candidate in firsts), default=0.0)
    return [candidate for candidate in firsts + seconds if candidate.rank == 0 or candidate.score >= floor]


def _is_same(turn: _Turn, other: _Turn) -> bool:
    if not turn.terms and not other.terms:
        return turn.text.strip().lower() == other.text.strip().lower()
    return len(turn.terms & other.terms) >= _SAME_TERMS_SHARE * len(turn.terms | other.terms)


def best_message(question: str, answer: str, passage: Passage) -> PassageMessage:
    """Return the message of ``passage`` from which ``answer`` was most likely written.

    If no message shares a term with ``answer``, return the message that an extract would quote.
    """
    rarity = _rarity_of_terms(answer, [passage])
    overlaps = [_overlap(rarity, terms(message.content)) for message in passage.messages]
    if not any(overlaps):
        found = quotes(question, [passage])
        return found[0].message if found else passage.messages[0]
    return passage.messages[overlaps.index(max(overlaps))]


def compose(found: Sequence[Quote]) -> str:
    """Return an answer in Discord's markup that shows the quotes in ``found``, numbered from 1."""
    return "\n\n".join([INTRODUCTION, *(_format_quote(number, quote) for number, quote in enumerate(found, start=1))])


def _format_quote(number: int, quote: Quote) -> str:
    quoted = "\n".join(f"> {line}" for line in quote.text.split("\n"))
    author = escape_markup(to_plain_name(quote.message.author_name))
    return f"{quoted}\n{author}, {to_datetime(quote.message.created_at):%Y-%m-%d} [{number}]"


def _group_turns(passage: Passage) -> list[_Turn]:
    runs: list[list[PassageMessage]] = []
    for message in passage.messages:
        last = runs[-1][-1] if runs else None
        if (
            last is not None
            and _author(last) == _author(message)
            and message.created_at - last.created_at <= _MAX_TURN_GAP_MS
            and len(runs[-1]) < _MAX_TURN_MESSAGES
        ):
            runs[-1].append(message)
        else:
            runs.append([message])
    names = tuple(f"@{message.author_name}" for message in passage.messages)
    texts = ["\n".join(_without_addressee(message.content, names) for message in run) for run in runs]
    return [
        _Turn(first=run[0], text=text, terms=frozenset(terms(text)), links=frozenset(find_links(text)))
        for run, text in zip(runs, texts, strict=True)
        if text.strip()
    ]


def _author(message: PassageMessage) -> str:
    """Return the author's id, because two people can have the same name. Without an id, return the name."""
    return message.author_id or message.author_name


def _without_addressee(content: str, names: tuple[str, ...]) -> str:
    """Return ``content`` without pings, and without the name of an addressed person at its start."""
    text = remove_pings(content).strip()
    if text.startswith(names):
        name, _, rest = text.partition(" ")
        text = rest.lstrip() if name.rstrip(",:") in names and rest.strip() else text
    return text


def _clean_quote(text: str, known: Collection[str], channels: Collection[str]) -> str:
    """Return ``text`` in a form that is harmless as a quote.

    Pings become plain words, code blocks are closed, no link hides its address, and no number looks like a citation.
    Links that are not in ``known`` are removed. Nobody wrote these links: they result from cutting or joining texts.
    """
    text = remove_unknown_links(remove_channel_mentions(remove_pings(text), channels), known)
    return close_code_block(without_citations(text))


def _score_turns(rarity: Mapping[str, float], turns: Sequence[_Turn]) -> list[float]:
    overlaps = [_overlap(rarity, turn.terms) for turn in turns]
    authors = [_author(turn.first) for turn in turns]
    alone = len(set(authors)) == 1
    scores = []
    for i, turn in enumerate(turns):
        carried = max(
            (
                overlaps[j] * _CARRY_FACTOR * (1 - (i - j - 1) / _MAX_CARRY_TURNS)
                for j in range(max(0, i - _MAX_CARRY_TURNS), i)
                if authors[j] != authors[i]
            ),
            default=0.0,
        )
        score = overlaps[i] + carried
        if authors[i] == authors[0] and not alone:
            score *= _OPENER_FACTOR
        if _QUESTION.search(turn.text):
            score *= _QUESTION_FACTOR
        if len(turn.terms) < 3:
            score *= _BRIEF_FACTOR
        if _COMMAND.search(turn.text):
            score *= _COMMAND_FACTOR
        scores.append(score)
    return scores


def _shorten(rarity: Mapping[str, float], text: str) -> str:
    """Return ``text`` if it is short enough, otherwise its best matching sentences in their original order.

    Each code block is kept whole, replaced by a note, or left out.
    """
    limit = MAX_CODE_CHARACTERS if _BLOCK.search(text) else MAX_QUOTE_CHARACTERS
    if len(text) <= limit:
        return text
    pieces = _pieces(text)
    scores = [_overlap(rarity, terms(piece)) for piece in pieces]
    for i in range(1, len(pieces)):
        if _BLOCK.fullmatch(pieces[i]):  # usually the sentence before a code block explains it
            scores[i] = max(scores[i], scores[i - 1])
    chosen: set[int] = set()
    left = limit
    for i in sorted(range(len(pieces)), key=lambda i: (-scores[i], i)):
        if len(pieces[i]) <= left and len(chosen) < _MAX_PIECES and (scores[i] > 0 or not chosen):
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
        elif block and left >= _CODE_NOTE_CHARACTERS:
            shown.append(f"({piece.count(chr(10)) + 1} lines of code)")
            left -= _CODE_NOTE_CHARACTERS
        else:
            skipped = True
    return " ".join(shown).strip() or text[: limit - 1].rstrip() + "…"


def _pieces(text: str) -> list[str]:
    """Return the sentences and code blocks of ``text``, in order."""
    found: list[str] = []
    end = 0
    for block in _BLOCK.finditer(text):
        found += _sentences(text[end : block.start()])
        found.append(block.group())
        end = block.end()
    found += _sentences(text[end:])
    return [cut for piece in found if piece.strip() for cut in _wrap_long(piece.strip())]


def _sentences(text: str) -> Iterator[str]:
    begin = 0
    for match in _CODE_OR_END.finditer(text):
        if not match.group().startswith("`"):
            yield text[begin : match.end()]
            begin = match.end()
    yield text[begin:]


def _wrap_long(piece: str) -> list[str]:
    """Return a list of ``piece`` alone. If a sentence is too long for a quote, return runs of its words."""
    if len(piece) <= MAX_QUOTE_CHARACTERS or _BLOCK.fullmatch(piece):
        return [piece]
    return textwrap.wrap(" ".join(piece.split()), MAX_QUOTE_CHARACTERS // 3, break_on_hyphens=False)


def _rarity_of_terms(text: str, passages: Sequence[Passage]) -> dict[str, float]:
    """Return a weight for each term of ``text``. Terms that are rarer in ``passages`` weigh more; the sum is 1."""
    message_counts: Counter[str] = Counter()
    for passage in passages:
        for message in passage.messages:
            message_counts.update(set(terms(message.content)))
    weights = {term: 1 / (1 + message_counts[term] ** 0.5) for term in dict.fromkeys(terms(text))}
    total = math.fsum(weights.values())
    return {term: weight / total for term, weight in weights.items()}


def _overlap(rarity: Mapping[str, float], words: Collection[str]) -> float:
    """Return the sum of the weights of the terms that are in ``words``, from 0 to 1."""
    # The order of a set differs between processes. A plain sum of floats depends on the order; fsum does not.
    return math.fsum(rarity[word] for word in rarity.keys() & set(words))
