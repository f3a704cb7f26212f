"""Terms as PostgreSQL's text search takes them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rtfm.errors import InvalidEvent

# A tsvector keeps at most this many positions for a lexeme, and none above 16383 (PostgreSQL, "Text Search Types").
_POSITIONS = 255


def as_tsvector(words: Sequence[str]) -> str:
    """The text form of a tsvector with every word at its positions."""
    positions: dict[str, list[str]] = {}
    for place, word in enumerate(words, start=1):
        places = positions.setdefault(word, [])
        if len(places) < _POSITIONS and place < 16384:
            places.append(str(place))
    return " ".join(f"{quoted(word)}:{','.join(places)}" for word, places in positions.items() if places)


def quoted(word: str) -> str:
    """A lexeme as tsvector and tsquery read it."""
    if "\x00" in word:
        raise InvalidEvent("a word holds a NUL character")
    return "'" + word.replace("\\", "\\\\").replace("'", "''") + "'"
