"""Reads a JSON object of any length from a file, without holding more of it than one value.

Owns the way from bytes to members and items. Promises that memory stays below a small multiple of ``MAX_VALUE``
characters, whatever the file holds, and that an error names its place in the file. Judges nothing else.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from attrs import frozen

MAX_VALUE = 16_000_000
"""Characters of one member or item, more than ten times what a record can carry."""

_CHUNK = 65_536
_SPACE = re.compile(r"[ \t\n\r]*")
_NEAR_END = 20
"""Characters before the end of what was read in which a literal, a number or an escape may have been cut."""

_LONGEST_NUMBER = 4_000
"""Digits; Python refuses to read 4,300 and more, and no number here has more than 20."""


@frozen
class Member:
    """A member of the object. For the array whose items are given one by one, ``value`` is empty."""

    key: str
    value: Any


@frozen
class Item:
    """An item of that array, from 0."""

    number: int
    value: Any


class NotJson(Exception):
    """The file is not a JSON object, or one of its values is too long; the argument says where."""


def read(path: Path, *, array: str) -> Iterator[Member | Item]:
    """The members of the object in ``path`` in their order; after the one named ``array`` its items, if it is a list.

    Raises NotJson, and OSError for a file that cannot be read.
    """
    with path.open("rb") as file:
        text = _Text(file)
        if text.peek() != "{":
            text.value()
            raise NotJson("it holds no JSON object")
        text.take("{", "'{'")
        while text.peek() != "}":
            key = text.value()
            if not isinstance(key, str):
                raise text.error("Expecting property name enclosed in double quotes")
            text.take(":", "':' delimiter")
            if key == array and text.peek() == "[":
                yield Member(key, [])
                yield from _items(text)
            else:
                yield Member(key, text.value())
            if text.peek() != "}":
                text.take(",", "',' delimiter")
                if text.peek() == "}":
                    raise text.error("Expecting property name enclosed in double quotes")
        text.take("}", "'}'")
        if text.peek():
            raise text.error("Extra data")


def _items(text: _Text) -> Iterator[Item]:
    text.take("[", "'['")
    number = 0
    while text.peek() != "]":
        yield Item(number, text.value())
        number += 1
        if text.peek() != "]":
            text.take(",", "',' delimiter")
            if text.peek() == "]":
                raise text.error("Expecting value")
    text.take("]", "']'")


class _Text:
    """The part of the file that is being read, as text."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder(parse_int=_number)
        self._bytes = 0
        self._text = ""
        self._at = 0
        self._line, self._column = 1, 1  # of the first character of the text
        self._ended = False

    def peek(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            found = _SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read_on(_CHUNK)

    def take(self, character: str, what: str) -> None:
        """Step over ``character``."""
        if self.peek() != character:
            raise self.error(f"Expecting {what}")
        self._at += 1

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        size = _CHUNK
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as exc:
                if self._ended or not self._may_be_cut(exc):
                    raise self.error(exc.msg, exc.pos) from exc
            except RecursionError as exc:
                raise NotJson("it is nested too deeply") from exc
            else:
                # A number at the end of what was read may go on.
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            if len(self._text) - self._at > MAX_VALUE:
                raise self.error(f"a value of more than {MAX_VALUE} characters")
            self._read_on(size)
            size *= 2

    def error(self, why: str, at: int | None = None) -> NotJson:
        """``why``, with the place in the file."""
        at = self._at if at is None else at
        before = self._text[:at]
        line = self._line + before.count("\n")
        column = at - before.rfind("\n") if "\n" in before else self._column + at
        return NotJson(f"line {line}, column {column}: not JSON: {why}")

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _NEAR_END

    def _read_on(self, size: int) -> None:
        done = self._text[: self._at]
        if lines := done.count("\n"):
            self._line += lines
            self._column = len(done) - done.rfind("\n")
        else:
            self._column += len(done)
        data = self._file.read(size)
        held = len(self._decoder.getstate()[0])
        try:
            more = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as exc:
            raise NotJson(f"byte {self._bytes - held + exc.start}: not UTF-8") from exc
        self._bytes += len(data)
        self._text, self._at = self._text[self._at :] + more, 0
        self._ended = not data


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) < _LONGEST_NUMBER else float(digits)
