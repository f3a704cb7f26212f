"""Texts that make patterns and tokenizers slow, and a function that measures whether time is linear in the length.

If a pattern backtracks over text that it has read, or starts again inside this text, it takes quadratic time on some
texts. Which texts these are depends on the pattern. Therefore each pattern is tried with many texts: runs of one
character from each class, two characters in turn, words of the pattern and of chat markup that are repeated or followed
by runs, and nested brackets.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Iterator
from itertools import pairwise, product

from attrs import frozen

CHARACTERS = "aZ1_ \n\t\x00-./'\"`<>@#[](){}|^~*:;,!?=+$&%\\éя中\u0661\u2028\u200b🙂"
"""At least one character of every class that a pattern may distinguish."""

_IN_TURN = "aA1_ \n-.'`<[(:,\\é"
_WORDS = (
    *("```", "``", "https://", "http:", "www.", "[a](", "](", "[[", "<@1", "<:a", "<a:b:", "@everyone", "[1", "[1,"),
    *("> ", ">>> ", "a: ", "hi ", "thanks ", "? ", "a.", "eyJ", "-----BEGIN ", "://a:", "a@a.", "Bearer ", "sk-"),
)
_RUNS = "a1 \n-`"
_ENDS = ("", "!", " x")
_LITERAL = re.compile(r"(?:[A-Za-z0-9 :/@#<`-]|\\[./+-]){2,}")

MIN_SECONDS = 0.02
MAX_RATIO = 6.0
"""Largest allowed ratio of the time for a text to the time for a quarter of this text.

The ratio of a linear pattern is about four. The limit is higher because the machine may be busy.
"""

_FIRST_LENGTH = 1_024
_LONGEST = 131_072  # twice the length of the longest text that is read completely
_SLOWEST = 3


@frozen
class Shape:
    """A kind of text; ``text(n)`` returns a text of about ``n`` characters."""

    name: str
    text: Callable[[int], str]


@frozen
class Slow:
    """A shape for which time grows faster than the length.

    ``seconds`` is the time for a text of ``length`` characters, and ``four_times`` that for a text four times as long.
    """

    shape: str
    length: int
    seconds: float
    four_times: float


def shapes(pattern: str = "") -> Iterator[Shape]:
    """Return the shapes to try.

    If a ``pattern`` is given, there are more shapes: some repeat words of the pattern, some have other endings.
    """
    own = list(dict.fromkeys(word.replace("\\", "") for word in _LITERAL.findall(pattern)))[:12]
    for character in CHARACTERS:
        for end in _ENDS if pattern else ("!",):
            yield repeated(character, end)
    for one, other in product(_IN_TURN if pattern else _IN_TURN[:7], repeat=2):
        if one != other:
            yield repeated(one + other, "")
    for word in (*own, *_WORDS):
        yield repeated(word, "")
        yield repeated(f"{word} ", "x")
        for run in _RUNS if pattern else _RUNS[1:4]:
            yield Shape(f"{word!r} and a run of {run!r}", lambda n, w=word, r=run: w + r * n + "!")  # type: ignore[misc]
            yield repeated(word + run, "")
    for one, other in pairwise(own):
        yield Shape(f"{one!r} many times, then {other!r}", lambda n, a=one, b=other: a * (n // len(a)) + b)  # type: ignore[misc]
    for opened, closed in (("[", "]"), ("(", ")"), ("<", ">"), ("[a", "](b)"), ("`", "`"), ("[", "](https://a)")):
        yield Shape(
            f"nested {opened!r} … {closed!r}",
            lambda n, o=opened, c=closed: o * (n // 2 // len(o)) + c * (n // 2 // len(c)),  # type: ignore[misc]
        )


def superlinear(read: Callable[[str], object], pattern: str = "") -> list[Slow]:
    """Return a list with one shape for which ``read`` takes more than six times as long on four times the text.

    The list is empty if no such shape is found. Each shape is tried once. The three slowest shapes are then measured
    with texts that take at least 20 ms. A shape is skipped if none of its texts takes so long.
    """
    tried = sorted(shapes(pattern), key=lambda shape: -_seconds(read, shape.text(_FIRST_LENGTH), times=1))
    slow = (slow_on(read, shape) for shape in tried[:_SLOWEST])
    return next(([found] for found in slow if found is not None), [])


def repeated(part: str, end: str = "") -> Shape:
    """Return the shape that repeats ``part`` and ends with ``end``."""
    return Shape(f"{part!r} again and again, {end!r}", lambda n: part * (n // len(part) + 1) + end)


def slow_on(read: Callable[[str], object], shape: Shape) -> Slow | None:
    """Measure ``read`` with ``shape``, and return the measurements if the time grows too fast, otherwise None."""
    length = 1_024
    while (taken := _seconds(read, shape.text(length), times=1)) < MIN_SECONDS and length < _LONGEST:
        length *= 2
    if taken < MIN_SECONDS:
        return None
    for times in (1, 5):  # one try within the limit is enough; otherwise the best of five tries counts
        short = _seconds(read, shape.text(length), times=times)
        long = _seconds(read, shape.text(4 * length), times=times)
        if long <= MAX_RATIO * short:
            return None
    return Slow(shape.name, length, short, long)


def _seconds(read: Callable[[str], object], text: str, *, times: int) -> float:
    """Return the CPU time of ``read`` with ``text`` in seconds, the shortest of ``times`` tries."""
    collects = gc.isenabled()
    gc.disable()
    try:
        best = float("inf")
        for _ in range(times):
            began = time.process_time()
            read(text)
            best = min(best, time.process_time() - began)
        return best
    finally:
        if collects:
            gc.enable()
