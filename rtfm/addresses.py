"""What of an address may be shown, and what in it is secret. Pure.

Owns the rule for every URL that this project prints, logs or answers with: no user, no password, no query. People also
misspell addresses with their password in them, so nothing here needs a well-formed one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

NOT_SHOWN = "(not shown)"

_PLAIN_AUTHORITY = re.compile(r"(?:\[[0-9A-Fa-f:.]*\]|[^:\[\]]*)(?::[0-9]*)?")
"""A host and, if any, a port that is a number."""

_SECRET_NAME = re.compile(r"pass|secret|token|key|sig|cred|auth", re.IGNORECASE)

_NEVER_IN_HOST = re.compile(r"[@?#]")
_QUERY_START = re.compile(r"[?#]")
_QUERY_SEPARATOR = re.compile(r"[&\0]")


def redact_address(address: str) -> str:
    """``address`` without user, password, query and fragment; ``(not shown)`` where its parts cannot be told apart."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return NOT_SHOWN if may_hold_secret(address) else address
    # A password may hold any sign that would end it, so the last @ counts.
    user, _, place = rest.rpartition("@")
    place, _, _ = _QUERY_START.sub("\0", place).partition("\0")
    authority, slash, path = place.partition("/")
    if set(user) & set("?#") or not _PLAIN_AUTHORITY.fullmatch(authority):
        return f"{scheme}://{NOT_SHOWN}"
    return f"{scheme}://{authority}{slash}{path}"


def may_hold_secret(text: str) -> bool:
    """Whether ``text``, which should have been an address and is malformed, may hold a password."""
    if _NEVER_IN_HOST.search(text):
        return True
    _, separator, rest = text.partition("://")
    return bool(separator) and not _PLAIN_AUTHORITY.fullmatch(rest.partition("/")[0])


def secrets_in(address: str) -> Iterator[str]:
    """The password of ``address``, or its user where that stands alone (a token; for PostgreSQL only a name).

    Also what its query gives for a password, token or key. Each as it stands and decoded.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return
    userinfo, _, place = rest.rpartition("@")
    user, colon, password = userinfo.partition(":")
    found = [password if colon or scheme.startswith("postgres") else user]
    _, _, query = _QUERY_START.sub("\0", place).partition("\0")
    for part in _QUERY_SEPARATOR.split(query):
        name, _, value = part.partition("=")
        if _SECRET_NAME.search(name):
            found.append(value)
    for value in found:
        yield from {value, unquote(value)} - {""}
