"""Terms in the text format of PostgreSQL's full-text search. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rtfm.errors import InvalidEvent

# PostgreSQL keeps at most this many positions of a lexeme in a tsvector, and no position above 16383 (PostgreSQL's
# documentation, "Text Search Types").
_POSITIONS = 255


def to_tsvector(words: Sequence[str]) -> str:
    """Return ``words`` and their positions as the text of a tsvector, without positions beyond PostgreSQL's limits."""
    positions: dict[str, list[str]] = {}
    for place, word in enumerate(words, start=1):
        places = positions.setdefault(word, [])
        if len(places) < _POSITIONS and place < 16384:
            places.append(str(place))
    return " ".join(f"{quote_lexeme(word)}:{','.join(places)}" for word, places in positions.items() if places)


def quote_lexeme(word: str) -> str:
    """Return a word as a quoted lexeme of a tsvector or tsquery. Raises InvalidEvent if the word contains NUL."""
    if "\x00" in word:
        raise InvalidEvent("a word contains a NUL character")
    return "'" + word.replace("\\", "\\\\").replace("'", "''") + "'"
