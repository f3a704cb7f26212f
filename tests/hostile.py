"""Texts that make patterns and tokenizers slow, and a function that measures whether the time is linear in their size.

A pattern that backtracks over what it has read, or starts again inside it, takes quadratic time on some texts. Which
texts these are depends on the pattern, so each pattern is tried with many: runs of every class of characters, two
classes in turn, the pattern's own words repeated and followed by runs, and brackets and code that open and never close.
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
"""Largest allowed ratio of the durations for a text and a quarter of it.

A linear pattern has a ratio of four; the rest allows for a busy machine.
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
    """A shape on which time grows faster than the text: seconds at ``length`` and at four times that length."""

    shape: str
    length: int
    seconds: float
    four_times: float


def shapes(pattern: str = "") -> Iterator[Shape]:
    """Return the shapes to try.

    A ``pattern`` adds shapes of its own words and more ends; without one, fewer shapes are tried.
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
    """Return one shape for which ``read`` takes more than six times as long if the text is four times as long.

    The list is empty if there is no such shape. Each shape is tried once. The three slowest are measured with a text
    that is long enough to take 20 ms, if there is one.
    """
    tried = sorted(shapes(pattern), key=lambda shape: -_seconds(read, shape.text(_FIRST_LENGTH), times=1))
    slow = (slow_on(read, shape) for shape in tried[:_SLOWEST])
    return next(([found] for found in slow if found is not None), [])


def repeated(part: str, end: str = "") -> Shape:
    """Return the shape that repeats ``part`` and ends with ``end``."""
    return Shape(f"{part!r} again and again, {end!r}", lambda n: part * (n // len(part) + 1) + end)


def slow_on(read: Callable[[str], object], shape: Shape) -> Slow | None:
    """Return the measurements if ``read`` takes too long for four times the text of ``shape``."""
    length = 1_024
    while (taken := _seconds(read, shape.text(length), times=1)) < MIN_SECONDS and length < _LONGEST:
        length *= 2
    if taken < MIN_SECONDS:
        return None
    for times in (1, 5):  # one try is enough if it is fast; otherwise the best of five counts
        short = _seconds(read, shape.text(length), times=times)
        long = _seconds(read, shape.text(4 * length), times=times)
        if long <= MAX_RATIO * short:
            return None
    return Slow(shape.name, length, short, long)


def _seconds(read: Callable[[str], object], text: str, *, times: int) -> float:
    """Return this process's CPU time in seconds for reading ``text``, the best of ``times`` tries."""
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
