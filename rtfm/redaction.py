"""Redaction of the secrets in this process's settings.

The second line of defence, behind ``addresses.redact_address``. Logs, readiness and all output of commands go through
it. It knows only the secrets that ``hide`` was given.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

SECRET_REMOVED = "(secret removed)"  # noqa: S105 - not a secret, but the text in its place

_secrets: dict[str, None] = {}
"""What ``redact`` removes, longest first; a dict for its order."""


def hide(secrets: Iterable[str]) -> None:
    """Remove ``secrets`` from everything that this process writes from now on: logs, readiness, command output."""
    found = {form for secret in secrets for form in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1])}
    known = sorted(found | _secrets.keys(), key=lambda text: (-len(text), text))
    _secrets.clear()
    _secrets.update(dict.fromkeys(known))


def redact(text: str) -> str:
    """Return ``text`` with every secret given to ``hide`` replaced."""
    for secret in list(_secrets):
        text = text.replace(secret, SECRET_REMOVED)
    return text
