"""Removal of secrets and e-mail addresses from text that leaves the archive: for the model, answers and logs. Pure.

``secret_forms`` defines the forms by which secrets are recognised. A secret without such a form is not found.

The time of a search is proportional to the length of the text. For this purpose, each pattern limits the length of a
repetition if the part of the pattern after the repetition may fail to match. A pattern is tried only if one of its
form's literals occurs in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from rtfm.redaction import SECRET_REMOVED
from rtfm.secret_forms import FORMS

__all__ = ["EMAIL_REMOVED", "SECRET_REMOVED", "scrub"]

EMAIL_REMOVED = "(e-mail removed)"

# In a URL, a name and an @ right after // are an account and not an e-mail address.
_EMAIL = re.compile(
    r"(?<![\w.+-])(?<!//)(?!git@)(?:mailto:)?[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"
)

# Zero-width characters. They are left out of the text that is searched for secrets. Otherwise a token with such a
# character inside would not be found, and would be valid again in a terminal that drops the character.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)

# A text without a match for this pattern contains no secret that the forms recognise. Nearly all messages have no
# match, and are not searched further.
_SECRET_HINT = re.compile(
    r"\S{15}|://|pass|pwd|secret|token|key|basic|bearer|auth|credential|-u |--user", re.IGNORECASE
)


def scrub(text: str, known: Iterable[str] = ()) -> str:
    """Return ``text`` with a note in place of each ``known`` secret, each recognised secret and each e-mail address."""
    for secret in known:
        text = text.replace(secret, SECRET_REMOVED)
    if spans := _find_secret_spans(text):
        parts, end = [], 0
        for first, last in spans:
            parts += [text[end:first], SECRET_REMOVED]
            end = last
        text = "".join([*parts, text[end:]])
    return _EMAIL.sub(EMAIL_REMOVED, text) if "@" in text else text


def _find_secret_spans(text: str) -> list[tuple[int, int]]:
    """Return the (start, end) of each recognised secret in ``text``, ascending and without overlaps."""
    visible, places = text, None
    if not text.isascii() and _INVISIBLE.search(text):
        places = [place for place, sign in enumerate(text) if not _INVISIBLE.match(sign)]
        visible = "".join(text[place] for place in places)
    if not _SECRET_HINT.search(visible):
        return []
    lower = visible.lower()
    found = sorted(span for form in FORMS if any(hint in lower for hint in form.hints) for span in form.spans(visible))
    merged: list[tuple[int, int]] = []
    for first, last in found:
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return merged if places is None else [(places[first], places[last - 1] + 1) for first, last in merged]
