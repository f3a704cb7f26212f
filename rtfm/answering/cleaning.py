"""Removes pings, unknown links and unknown citations from text before people read it. No I/O.

Cleaned text pings nobody, contains only the links that the caller allows, and cites only existing sources. This
module does not check whether an answer is true.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from rtfm.characters import to_one_line
from rtfm.links import CLOSE, LINK_REMOVED, OPEN, find_links, remove_unknown_links
from rtfm.markup import remove_channel_mentions, remove_pings

MAX_EXCERPT_CHARACTERS = 300
_MAX_EXCERPT_INPUT = 2_000  # an excerpt is made from at most this many characters of the text
FENCE = "```"

_CODE = re.compile(r"(```.*?(?:```|\Z)|(?<!\\)`[^`\n]+`)", re.DOTALL)
# Without the lookbehind, the search would read a run of spaces again from each of the spaces in the run.
_CITATION = re.compile(r"(?<![ \t])[ \t]*\[\s*+(\d++(?:\s*+[,;]\s*+\d++)*+)\s*+\]")
_NUMBER = re.compile(r"(?<!\d)\d{1,9}(?!\d)")  # no source number has more digits
_WORD = re.compile(r"\w")
_HEADING = re.compile(r"^[\s*_#:>~|-]{0,20}sources?[\s*_#:>~|-]{0,20}$", re.IGNORECASE)
# While text is cleaned, marks replace the brackets of known citations. ``_LINKED_MARK`` finds a citation that stands
# directly before a parenthesis. A space is put between the two, because Discord would show "[1](…)" as a link.
_MARKS = re.compile(f"[{OPEN}{CLOSE}]")
_MARKED = re.compile(f"{OPEN}(\\d+){CLOSE}")
_LINKED_MARK = re.compile(f"{CLOSE}(?=\\()")
_MAX_ROUNDS = 10


def clean(
    text: str, numbers: Mapping[int, int], known_links: Collection[str], known_channels: Collection[str] = ()
) -> str:
    """Return a model's ``text`` without pings, unknown links and unknown citations.

    ``numbers`` maps the numbers of known citations to their new numbers. Links that are not in ``known_links`` are
    replaced by a note. Mentions of channels that are not in ``known_channels`` become plain words. A line that reads
    like the heading of a list of sources is removed, because only the bot adds such a list.

    If a part of the text is removed, the text before it and after it can form a new ping, link or citation. Therefore
    the steps repeat until they change nothing. If they still change the text in round ``_MAX_ROUNDS``, the result is
    empty.
    """
    text = renumber_citations(_MARKS.sub("", remove_pings(text)), numbers, form=f"{OPEN}{{}}{CLOSE}")
    for _ in range(_MAX_ROUNDS):
        before = text
        text = remove_unknown_links(renumber_citations(_without_headings(text), {}), known_links)
        text = remove_channel_mentions(remove_pings(text), known_channels)
        if text == before:
            return _MARKED.sub(r"[\1]", _LINKED_MARK.sub(f"{CLOSE} ", text)).strip()
    return ""


def cited_numbers(text: str) -> list[int]:
    """Return the numbers that ``text`` cites outside code, without duplicates, in the order of their first use."""
    prose = [part for part in _CODE.split(text) if not _CODE.fullmatch(part)]
    cited = [match[1] for part in prose for match in _CITATION.finditer(part)]
    return list(dict.fromkeys(int(number) for numbers in cited for number in _NUMBER.findall(numbers)))


def renumber_citations(text: str, numbers: Mapping[int, int], *, form: str = "[{}]") -> str:
    """Return ``text`` with its citations renumbered by ``numbers``, which maps old numbers to new numbers.

    Citations of numbers that are not in ``numbers`` are removed. Code is unchanged. ``form`` is the format string of a
    new citation.
    """

    def replace(match: re.Match[str]) -> str:
        new = sorted({numbers[old] for old in map(int, _NUMBER.findall(match[1])) if old in numbers})
        space = match.group()[: match.group().index("[")]
        return space + "".join(form.format(number) for number in new) if new else ""

    return "".join(part if _CODE.fullmatch(part) else _CITATION.sub(replace, part) for part in _CODE.split(text))


def without_citations(text: str) -> str:
    """Return a quote's ``text`` with parentheses in place of the brackets around numbers. Code is unchanged.

    A reader would take a number in brackets for a citation of the answer.
    """

    def replace(match: re.Match[str]) -> str:
        return f"{match.group()[: match.group().index('[')]}({match[1]})"

    return "".join(part if _CODE.fullmatch(part) else _CITATION.sub(replace, part) for part in _CODE.split(text))


def has_words(text: str) -> bool:
    """Return whether ``text`` contains any word besides citations and notes of removed links."""
    return _WORD.search(_CITATION.sub("", text.replace(LINK_REMOVED, ""))) is not None


def close_code_block(text: str) -> str:
    """Return ``text`` with its last code block closed, so that appended text is not code."""
    return f"{text}\n{FENCE}" if text.count(FENCE) % 2 else text


def excerpt(text: str) -> str:
    """Return the beginning of ``text`` as one line of at most ``MAX_EXCERPT_CHARACTERS``.

    Pings and mentions of channels become plain words, and no link hides its address.
    """
    begin = remove_channel_mentions(remove_pings(text.strip()[:_MAX_EXCERPT_INPUT]))
    line = to_one_line(remove_unknown_links(begin, find_links(begin)))
    return line if len(line) <= MAX_EXCERPT_CHARACTERS else line[: MAX_EXCERPT_CHARACTERS - 1].rstrip() + "…"


def _without_headings(text: str) -> str:
    if "source" not in text.lower():
        return text
    return "\n".join(line for line in text.split("\n") if _HEADING.match(line) is None)
