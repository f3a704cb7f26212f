"""Reads a JSON object of any length from a file, one value at a time.

Memory use stays below a small multiple of ``MAX_VALUE`` characters, whatever the file contains. If an error has a place
in the file, the error text names the place. The values themselves are not checked.
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
"""Maximum number of characters of a member or item. This is more than ten times the limit for a Kafka record."""

_CHUNK = 65_536
_SPACE = re.compile(r"[ \t\n\r]*")
_NEAR_END = 20
"""If a JSON error is within this many characters of the end of the text read so far, the file may still be valid.

A literal, number or escape at the end of this text may continue in the part of the file that is not read yet."""

_MAX_NUMBER_DIGITS = 4_000
"""A number with at least this many digits is read as a float.

Python refuses to parse integers of more than 4,300 digits. Valid numbers of an export have at most 20 digits."""


@frozen
class JsonMember:
    """A member of the object. For the array whose items follow as ``JsonItem``, ``value`` is an empty list."""

    key: str
    value: Any


@frozen
class JsonItem:
    """An item of the array that is read one item at a time. ``number`` counts from 0."""

    number: int
    value: Any


class NotJson(Exception):
    """The file is not a JSON object, or one of its values is too long. The text names the place, if there is one."""


def read(path: Path, *, array: str) -> Iterator[JsonMember | JsonItem]:
    """Yield the members of the JSON object in ``path`` in order.

    If the member ``array`` is a list, its items are yielded one by one after the member. Raises NotJson, or OSError if
    the file cannot be read.
    """
    with path.open("rb") as file:
        text = _TextReader(file)
        if text.peek() != "{":
            text.read_value()
            raise NotJson("it does not contain a JSON object")
        text.skip("{", "'{'")
        while text.peek() != "}":
            key = text.read_value()
            if not isinstance(key, str):
                raise text.error("Expecting property name enclosed in double quotes")
            text.skip(":", "':' delimiter")
            if key == array and text.peek() == "[":
                yield JsonMember(key, [])
                yield from _read_items(text)
            else:
                yield JsonMember(key, text.read_value())
            if text.peek() != "}":
                text.skip(",", "',' delimiter")
                if text.peek() == "}":
                    raise text.error("Expecting property name enclosed in double quotes")
        text.skip("}", "'}'")
        if text.peek():
            raise text.error("Extra data")


def _read_items(text: _TextReader) -> Iterator[JsonItem]:
    text.skip("[", "'['")
    number = 0
    while text.peek() != "]":
        yield JsonItem(number, text.read_value())
        number += 1
        if text.peek() != "]":
            text.skip(",", "',' delimiter")
            if text.peek() == "]":
                raise text.error("Expecting value")
    text.skip("]", "']'")


class _TextReader:
    """Parses values from a file, and keeps only a part of the file in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder(parse_int=_parse_int)
        self._bytes = 0
        self._text = ""
        self._at = 0
        self._line, self._column = 1, 1  # of the first character of ``_text``
        self._ended = False

    def peek(self) -> str:
        """Return the next character that is not white space; empty at the end of the file."""
        while True:
            found = _SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read_more(_CHUNK)

    def skip(self, character: str, what: str) -> None:
        """Skip ``character``. If another character is next, raise NotJson: ``what`` was expected."""
        if self.peek() != character:
            raise self.error(f"Expecting {what}")
        self._at += 1

    def read_value(self) -> Any:
        """Read the next value."""
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
                # A number at the end of the text may continue in the file, so more of the file is read first.
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            if len(self._text) - self._at > MAX_VALUE:
                raise self.error(f"a value of more than {MAX_VALUE} characters")
            self._read_more(size)
            size *= 2

    def error(self, why: str, at: int | None = None) -> NotJson:
        """Return an error that says ``why``, and names the place ``at`` in the text; None means the current place."""
        at = self._at if at is None else at
        before = self._text[:at]
        line = self._line + before.count("\n")
        column = at - before.rfind("\n") if "\n" in before else self._column + at
        return NotJson(f"line {line}, column {column}: not JSON: {why}")

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _NEAR_END

    def _read_more(self, size: int) -> None:
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


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) < _MAX_NUMBER_DIGITS else float(digits)
