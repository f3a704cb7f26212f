"""Redaction of secrets that are in this process's settings.

``redact`` is applied to logs, to the metrics port's health reports and to the output of commands. It removes only
secrets that were passed to ``hide``. The secrets in addresses are removed by ``addresses.redact_address``; for them,
``redact`` is a second defence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

SECRET_REMOVED = "(secret removed)"  # noqa: S105 - not a secret, but the text in its place

_secrets: dict[str, None] = {}
"""The texts that ``redact`` removes, longest first. It is a dict because a dict keeps its order."""


def hide(secrets: Iterable[str]) -> None:
    """Make ``redact`` remove ``secrets`` from now on, also where they are escaped as in JSON or in ``repr``."""
    found = {form for secret in secrets for form in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1])}
    known = sorted(found | _secrets.keys(), key=lambda text: (-len(text), text))
    _secrets.clear()
    _secrets.update(dict.fromkeys(known))


def redact(text: str) -> str:
    """Return ``text`` with every secret that was passed to ``hide`` replaced by a note."""
    for secret in list(_secrets):
        text = text.replace(secret, SECRET_REMOVED)
    return text
