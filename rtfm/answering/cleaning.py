"""Removes pings, unknown links and unknown citations from text before people read it. Pure.

Promises that cleaned text pings nobody, and links and cites only what it was given. Does not judge whether an answer is
true.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from rtfm.characters import to_one_line
from rtfm.links import CLOSE, LINK_REMOVED, OPEN, find_links, remove_unknown_links
from rtfm.markup import remove_channel_mentions, remove_pings

MAX_EXCERPT_CHARACTERS = 300
_MAX_EXCERPT_INPUT = 2_000  # characters of a text from which its excerpt is made
FENCE = "```"

_CODE = re.compile(r"(```.*?(?:```|\Z)|(?<!\\)`[^`\n]+`)", re.DOTALL)
# Without the lookbehind, a run of spaces would be read again from each of its spaces.
_CITATION = re.compile(r"(?<![ \t])[ \t]*\[\s*+(\d++(?:\s*+[,;]\s*+\d++)*+)\s*+\]")
_NUMBER = re.compile(r"(?<!\d)\d{1,9}(?!\d)")  # no source number has more digits
_WORD = re.compile(r"\w")
_HEADING = re.compile(r"^[\s*_#:>~|-]{0,20}sources?[\s*_#:>~|-]{0,20}$", re.IGNORECASE)
# Marks replace the brackets of known citations while the text is cleaned. A parenthesis directly after such a citation
# would make it a link.
_MARKS = re.compile(f"[{OPEN}{CLOSE}]")
_MARKED = re.compile(f"{OPEN}(\\d+){CLOSE}")
_LINKED_MARK = re.compile(f"{CLOSE}(?=\\()")
_MAX_ROUNDS = 10


def clean(
    text: str, numbers: Mapping[int, int], known_links: Collection[str], known_channels: Collection[str] = ()
) -> str:
    """Return a model's ``text`` with citations in their new ``numbers``, only links of ``known_links``, and no pings.

    Mentions of channels outside ``known_channels`` become plain words. A line that reads like the heading of a list of
    sources is removed, because only the bot adds such a list.

    Removing one thing can join its neighbours to another, so the steps repeat until nothing changes. If that takes more
    than ``_MAX_ROUNDS`` rounds, the result is empty.
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
    """Return the numbers that ``text`` cites outside code, each once, in order."""
    prose = [part for part in _CODE.split(text) if not _CODE.fullmatch(part)]
    cited = [match[1] for part in prose for match in _CITATION.finditer(part)]
    return list(dict.fromkeys(int(number) for numbers in cited for number in _NUMBER.findall(numbers)))


def renumber_citations(text: str, numbers: Mapping[int, int], *, form: str = "[{}]") -> str:
    """Return ``text`` with citations in their new ``numbers``; unknown ones are removed, code is unchanged.

    ``form`` is the format of a citation.
    """

    def replace(match: re.Match[str]) -> str:
        new = sorted({numbers[old] for old in map(int, _NUMBER.findall(match[1])) if old in numbers})
        space = match.group()[: match.group().index("[")]
        return space + "".join(form.format(number) for number in new) if new else ""

    return "".join(part if _CODE.fullmatch(part) else _CITATION.sub(replace, part) for part in _CODE.split(text))


def without_citations(text: str) -> str:
    """Return a quote's ``text`` with parentheses around numbers that read like citations. Code is unchanged."""

    def replace(match: re.Match[str]) -> str:
        return f"{match.group()[: match.group().index('[')]}({match[1]})"

    return "".join(part if _CODE.fullmatch(part) else _CITATION.sub(replace, part) for part in _CODE.split(text))


def has_words(text: str) -> bool:
    """Whether ``text`` has words other than citations and notes of removed links."""
    return _WORD.search(_CITATION.sub("", text.replace(LINK_REMOVED, ""))) is not None


def close_code_block(text: str) -> str:
    """Return ``text`` with its last code block closed, so that text after it is not code."""
    return f"{text}\n{FENCE}" if text.count(FENCE) % 2 else text


def excerpt(text: str) -> str:
    """Return ``text`` on one line of at most 300 characters, without pings and channels, with visible addresses."""
    begin = remove_channel_mentions(remove_pings(text.strip()[:_MAX_EXCERPT_INPUT]))
    line = to_one_line(remove_unknown_links(begin, find_links(begin)))
    return line if len(line) <= MAX_EXCERPT_CHARACTERS else line[: MAX_EXCERPT_CHARACTERS - 1].rstrip() + "…"


def _without_headings(text: str) -> str:
    if "source" not in text.lower():
        return text
    return "\n".join(line for line in text.split("\n") if _HEADING.match(line) is None)
