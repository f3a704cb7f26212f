"""What code takes out of text before people read it, whoever wrote it: pings, foreign links, unknown numbers.

Pure. Promises that the result pings nobody, links only where it may, and cites only what it was given. It does not
judge whether an answer is true.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

MAX_EXCERPT_CHARACTERS = 300
LINK_REMOVED = "(link removed)"
FENCE = "```"

_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)
_CITATION = re.compile(r"[ \t]*\[\s*(\d{1,9}(?:\s*[,;]\s*\d{1,9})*)\s*\]")
_NUMBER = re.compile(r"\d+")
_MASKED_LINK = re.compile(r"\[([^\[\]\n]{0,300})\]\(\s*<?([^\s()<>]+)>?[^)\n]{0,100}\)")
_LINK = re.compile(
    r"(?:\b[a-z][a-z0-9+.-]{0,30}://|\bmailto:|\bwww\.|\bdiscord\.gg/)[^\s<>\[\]\"`|\ue000\ue001]+", re.IGNORECASE
)
_LINK_END = ".,;:!?'*_~)]}"
_PINGED = re.compile(r"<@([!&]?)\d{1,25}>")
_COMMAND = re.compile(r"</([\w -]{1,100}):\d{1,25}>")
_CHANNEL = re.compile(r"<#(\d{1,25})>")
_EVERYONE = re.compile(r"@(?=everyone|here)", re.IGNORECASE)
_ZERO_WIDTH_SPACE = "\N{ZERO WIDTH SPACE}"
# Control characters, marks that turn the direction of text, halves of surrogate pairs.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What stands for a citation that is sure, while the text is being cleaned; a bracket after it would make it a link.
_OPEN, _CLOSE = "\ue000", "\ue001"
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}]")
_MARKED = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_LINKED_MARK = re.compile(f"{_CLOSE}(?=\\()")
_MOST_ROUNDS = 10
_MARKDOWN = re.compile(r"([\\*_~`|<>\[\]()#])")


def cleaned(
    text: str, numbers: Mapping[int, int], known_links: Collection[str], known_channels: Collection[str] = ()
) -> str:
    """What of a model's ``text`` may be shown: citations in their new ``numbers``, links of ``known_links``, no pings.

    A channel is named by its id only if that is in ``known_channels``.

    Taking one thing out may join what stands around it to another, so it is done until nothing changes. Text that is
    made to go on for ever comes out empty.
    """
    text = renumbered(_MARKS.sub("", without_pings(text)), numbers, form=f"{_OPEN}{{}}{_CLOSE}")
    for _ in range(_MOST_ROUNDS):
        before = text
        text = _without_foreign_channels(
            without_pings(without_foreign_links(renumbered(text, {}), known_links)), known_channels
        )
        if text == before:
            return _MARKED.sub(r"[\1]", _LINKED_MARK.sub(f"{_CLOSE} ", text)).strip()
    return ""


def without_pings(text: str) -> str:
    """``text`` without anything that notifies people or runs a command at a click, and without control characters."""
    text = _COMMAND.sub(r"/\1", _INVISIBLE.sub("", text.replace("\r\n", "\n")))
    text = _PINGED.sub(lambda match: "@role" if match[1] == "&" else "@someone", text)
    return _EVERYONE.sub(f"@{_ZERO_WIDTH_SPACE}", text)


def links(text: str) -> set[str]:
    """The addresses in ``text``, in the form in which they are compared."""
    return {_comparable(match.group()) for match in _LINK.finditer(text)}


def without_foreign_links(text: str, known: Collection[str]) -> str:
    """``text`` with a note in place of each address that is not in ``known`` (as ``links`` gives them), code included.

    A link that hides its address behind words is taken apart.
    """

    def unmasked(match: re.Match[str]) -> str:
        words, address = match[1].strip(), match[2]
        if words.isdigit():
            return f"[{words}]"
        return f"{words} {address}" if _comparable(address) in known and words != address else words

    def checked(match: re.Match[str]) -> str:
        address = match.group()
        kept = address.rstrip(_LINK_END)
        return address if _comparable(address) in known else LINK_REMOVED + address[len(kept) :]

    return _LINK.sub(checked, _MASKED_LINK.sub(unmasked, text))


def cited_numbers(text: str) -> list[int]:
    """The numbers that ``text`` cites outside code, each once, in order."""
    found: dict[int, None] = {}
    for part in _outside_code(text):
        for match in _CITATION.finditer(part):
            found |= dict.fromkeys(int(number) for number in _NUMBER.findall(match[1]))
    return list(found)


def renumbered(text: str, numbers: Mapping[int, int], *, form: str = "[{}]") -> str:
    """``text`` with its citations in the new numbers; one that has none is removed. Code stays as it is."""

    def replaced(match: re.Match[str]) -> str:
        new = sorted({numbers[old] for old in map(int, _NUMBER.findall(match[1])) if old in numbers})
        space = match.group()[: match.group().index("[")]
        return space + "".join(form.format(number) for number in new) if new else ""

    return "".join(part if _CODE.fullmatch(part) else _CITATION.sub(replaced, part) for part in _CODE.split(text))


def says_something(text: str) -> bool:
    """Whether words are left beside citations and notes of what was removed."""
    return re.search(r"\w", _CITATION.sub("", text.replace(LINK_REMOVED, ""))) is not None


def balanced(text: str) -> str:
    """``text`` with its last code block closed: else what follows would be code."""
    return f"{text}\n{FENCE}" if text.count(FENCE) % 2 else text


def plain(name: str) -> str:
    """A name as it reads in Discord's markup: nothing in it formats, links or pings."""
    return _MARKDOWN.sub(r"\\\1", " ".join(without_pings(name).split()))


def excerpt(text: str) -> str:
    """``text`` on one line, at most 300 characters, without pings."""
    line = " ".join(without_pings(text).split())
    return line if len(line) <= MAX_EXCERPT_CHARACTERS else line[: MAX_EXCERPT_CHARACTERS - 1].rstrip() + "…"


def _without_foreign_channels(text: str, known: Collection[str]) -> str:
    return _CHANNEL.sub(lambda match: match.group() if match[1] in known else "#channel", text)


def _outside_code(text: str) -> list[str]:
    return [part for part in _CODE.split(text) if not _CODE.fullmatch(part)]


def _comparable(address: str) -> str:
    return address.rstrip(_LINK_END).rstrip("/")
