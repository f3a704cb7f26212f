"""Removal of characters that are not safe to show on Discord or on a terminal. Pure.

The removed characters are control characters, marks that change the direction of text, and lone surrogates.

Python and editors also recognise Unicode line ends that Discord does not recognise (U+2028, U+2029, U+0085, …). Such a
line end becomes a space, so that one line on Discord stays one line.
"""

from __future__ import annotations

import re

_FOREIGN_LINE_ENDS = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_JOINERS = frozenset("\u200b\u200c\u200d")  # needed by several scripts and emoji, harmless to a terminal


def strip_invisible(text: str) -> str:
    """Return ``text`` without invisible characters. Line feeds replace all other line ends that Discord recognises."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _INVISIBLE.sub("", _FOREIGN_LINE_ENDS.sub(" ", text))


def to_one_line(text: str) -> str:
    """Return ``text`` without invisible characters, on one line."""
    return " ".join(strip_invisible(text).split())


def escape_unprintable(text: str, *, newlines: bool = False) -> str:
    r"""Return ``text`` with an escape, such as ``\x1b``, for each character that a terminal would obey or not show.

    Line feeds and tabs are escaped too, unless ``newlines`` is true. A value with an unescaped line feed could begin a
    line in the output that looks like a line of the program itself.
    """
    if text.isprintable():
        return text
    kept = _JOINERS | frozenset("\n\t") if newlines else _JOINERS
    return "".join(
        character if character.isprintable() or character in kept else _escape(character) for character in text
    )


def _escape(character: str) -> str:
    if character.isspace() and character not in "\n\r\t" and not _FOREIGN_LINE_ENDS.match(character):
        return " "  # a space of another width
    code = ord(character)
    short = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}.get(character)
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
