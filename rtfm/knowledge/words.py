"""Terms: the stemmed words of a text that search and linking use. Pure.

This module owns the tokenizer, the stop words and the stemming. The archive stores the terms of each passage. So after
a change here, raise the number in ``indexing.RULES``, which makes a rebuild due.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

MAX_TERM_LENGTH = 64
"""Maximum number of characters of a term. A longer run of characters is left out."""

_MENTION = re.compile(r"<(?:@[!&]?|#|a?:\w+:)\d+>")
_RUN = re.compile(r"[\w./+\-~']+")
_PARTS = re.compile(r"[./+\-~_']+")

_STOP_WORDS = frozenset(
    """
    a about after all also am an and any are as at be because been before being but by can could did do does doing done
    dont for from get gets getting go going got had has have he her here him his how i if im in into is isnt it its ive
    just let like me more most my no nor not now of off on or other our out over own really same she should so some such
    than that thats the their them then there these they this those to too up us very was we were what when where which
    while who why will with would you your youre
    anybody anyone anything cant guys hello help here hey hi know lol maybe ok okay please pls plz someone something
    sorry sure thank thanks thanx thx try trying want way well yeah yep yes need think see make one thing things u ur
    """.split()  # noqa: SIM905 - a list of quoted words is harder to read
)


def terms(text: str) -> list[str]:
    """Return the terms of ``text`` in order, including repeated terms.

    A term is a run of letters, digits and ``_./+-~'`` in lower case. The parts of a path, version or compound are
    terms, too. Stop words are left out, and words of plain letters are stemmed.
    """
    found: list[str] = []
    for run in _iter_runs(strip_mentions(text).lower()):
        parts = [part for part in _PARTS.split(run) if part]
        found += [run, *parts] if len(parts) > 1 else [run]
    return [_stem(word) for word in found if len(word) <= MAX_TERM_LENGTH and word.replace("'", "") not in _STOP_WORDS]


def _iter_runs(text: str) -> Iterator[str]:
    """Yield runs without the punctuation around them. A slash within trailing punctuation starts a second run."""
    for whole in _RUN.findall(text):
        word = whole.rstrip("./-'")
        slash = whole.find("/", len(word))
        if run := word.lstrip(".'-"):
            yield run
        if 0 <= slash < len(whole) - 1:
            yield whole[slash:].rstrip(".'-")


def strip_mentions(text: str) -> str:
    """Return ``text`` without Discord's markup for users, roles, channels and custom emoji."""
    return _MENTION.sub(" ", text)


@lru_cache(maxsize=50_000)
def _stem(word: str) -> str:
    """Remove 's, plural endings, -ing, -ed, -ly and a final e.

    If a word is shorter than four characters or contains anything but ASCII letters, only 's is removed.
    """
    word = word.removesuffix("'s")
    if len(word) < 4 or not (word.isascii() and word.isalpha()):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for suffix in ("ing", "ed", "ly"):
        stem = word.removesuffix(suffix)
        if stem != word and len(stem) >= 3 and any(vowel in stem for vowel in "aeiouy"):
            if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "lsz":
                stem = stem[:-1]
            return stem.removesuffix("e")
    return word.removesuffix("e") if len(word) > 4 else word
