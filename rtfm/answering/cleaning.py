"""What code takes out of text before people read it, whoever wrote it: pings, foreign links, unknown numbers.

Pure. Promises that the result pings nobody, links only where it may, and cites only what it was given. It does not
judge whether an answer is true.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from rtfm.characters import to_one_line
from rtfm.links import CLOSE, LINK_REMOVED, OPEN, find_links, remove_unknown_links
from rtfm.markup import remove_channel_mentions, remove_pings

MAX_EXCERPT_CHARACTERS = 300
_EXCERPT_FROM = 2_000  # characters of a text that its excerpt is made of
FENCE = "```"

_CODE = re.compile(r"(```.*?(?:```|\Z)|(?<!\\)`[^`\n]+`)", re.DOTALL)
# The lookbehind makes a run of spaces be read once, not again from each of its spaces.
_CITATION = re.compile(r"(?<![ \t])[ \t]*\[\s*+(\d++(?:\s*+[,;]\s*+\d++)*+)\s*+\]")
_NUMBER = re.compile(r"(?<!\d)\d{1,9}(?!\d)")  # no source has a longer number
_WORD = re.compile(r"\w")
_HEADING = re.compile(r"^[\s*_#:>~|-]{0,20}sources?[\s*_#:>~|-]{0,20}$", re.IGNORECASE)
# What stands for a citation that is sure, while the text is being cleaned; a bracket after it would make it a link.
_MARKS = re.compile(f"[{OPEN}{CLOSE}]")
_MARKED = re.compile(f"{OPEN}(\\d+){CLOSE}")
_LINKED_MARK = re.compile(f"{CLOSE}(?=\\()")
_MOST_ROUNDS = 10


def cleaned(
    text: str, numbers: Mapping[int, int], known_links: Collection[str], known_channels: Collection[str] = ()
) -> str:
    """What of a model's ``text`` may be shown: citations in their new ``numbers``, links of ``known_links``, no pings.

    A channel is named by its id only if that is in ``known_channels``. A line that reads like the heading of a list of
    sources is left out: the only such list is the bot's.

    Taking one thing out may join what stands around it to another, so it is done until nothing changes. Text that is
    made to go on for ever comes out empty.
    """
    text = renumbered(_MARKS.sub("", remove_pings(text)), numbers, form=f"{OPEN}{{}}{CLOSE}")
    for _ in range(_MOST_ROUNDS):
        before = text
        text = remove_unknown_links(renumbered(_without_headings(text), {}), known_links)
        text = remove_channel_mentions(remove_pings(text), known_channels)
        if text == before:
            return _MARKED.sub(r"[\1]", _LINKED_MARK.sub(f"{CLOSE} ", text)).strip()
    return ""


def cited_numbers(text: str) -> list[int]:
    """The numbers that ``text`` cites outside code, each once, in order."""
    prose = [part for part in _CODE.split(text) if not _CODE.fullmatch(part)]
    cited = [match[1] for part in prose for match in _CITATION.finditer(part)]
    return list(dict.fromkeys(int(number) for numbers in cited for number in _NUMBER.findall(numbers)))


def renumbered(text: str, numbers: Mapping[int, int], *, form: str = "[{}]") -> str:
    """``text`` with its citations in the new numbers; one that has none is removed. Code stays as it is."""

    def replaced(match: re.Match[str]) -> str:
        new = sorted({numbers[old] for old in map(int, _NUMBER.findall(match[1])) if old in numbers})
        space = match.group()[: match.group().index("[")]
        return space + "".join(form.format(number) for number in new) if new else ""

    return "".join(part if _CODE.fullmatch(part) else _CITATION.sub(replaced, part) for part in _CODE.split(text))


def without_numbers(text: str) -> str:
    """``text`` with other brackets around what reads like a citation: in a quote it is none. Code stays as it is."""

    def replaced(match: re.Match[str]) -> str:
        return f"{match.group()[: match.group().index('[')]}({match[1]})"

    return "".join(part if _CODE.fullmatch(part) else _CITATION.sub(replaced, part) for part in _CODE.split(text))


def says_something(text: str) -> bool:
    """Whether words are left beside citations and notes of what was removed."""
    return _WORD.search(_CITATION.sub("", text.replace(LINK_REMOVED, ""))) is not None


def balanced(text: str) -> str:
    """``text`` with its last code block closed: else what follows would be code."""
    return f"{text}\n{FENCE}" if text.count(FENCE) % 2 else text


def excerpt(text: str) -> str:
    """``text`` on one line, at most 300 characters, without pings and channels, the addresses of links in sight."""
    begin = remove_channel_mentions(remove_pings(text.strip()[:_EXCERPT_FROM]))
    line = to_one_line(remove_unknown_links(begin, find_links(begin)))
    return line if len(line) <= MAX_EXCERPT_CHARACTERS else line[: MAX_EXCERPT_CHARACTERS - 1].rstrip() + "…"


def _without_headings(text: str) -> str:
    if "source" not in text.lower():
        return text
    return "\n".join(line for line in text.split("\n") if _HEADING.match(line) is None)
