"""What this process must never print: the secrets of its settings.

The second line of defence, behind ``addresses.shown``: logs, readiness, and what commands print go through it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

SECRET_REMOVED = "(secret removed)"  # noqa: S105 - says that one was there

_secrets: dict[str, None] = {}
"""What ``redact`` takes out, longest first; a dict for its order."""


def hide(secrets: Iterable[str]) -> None:
    """Take ``secrets`` out of whatever this process writes from now on: logs, readiness, errors of commands."""
    found = {form for secret in secrets for form in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1])}
    known = sorted(found | _secrets.keys(), key=lambda text: (-len(text), text))
    _secrets.clear()
    _secrets.update(dict.fromkeys(known))


def redact(text: str) -> str:
    """``text`` without what ``hide`` was told."""
    for secret in list(_secrets):
        text = text.replace(secret, SECRET_REMOVED)
    return text
