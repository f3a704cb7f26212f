"""Redaction of addresses. Pure.

No URL that this project prints, logs or puts into a response may contain a user, a password or a query. The functions
accept malformed addresses too, because a misspelled address may contain a password.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

NOT_SHOWN = "(not shown)"

_PLAIN_AUTHORITY = re.compile(r"(?:\[[0-9A-Fa-f:.]*\]|[^:\[\]]*)(?::[0-9]*)?")
"""A host, with or without a numeric port."""

_SECRET_NAME = re.compile(r"pass|secret|token|key|sig|cred|auth", re.IGNORECASE)

_NEVER_IN_HOST = re.compile(r"[@?#]")
_QUERY_START = re.compile(r"[?#]")
_QUERY_SEPARATOR = re.compile(r"[&\0]")


def redact_address(address: str) -> str:
    """Return ``address`` without user, password, query and fragment.

    If it is unclear where these parts begin and end, ``(not shown)`` replaces everything after the scheme, or the whole
    address if it has no scheme.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return NOT_SHOWN if may_hold_secret(address) else address
    # A password may itself contain an @, so the text is split at the last @.
    user, _, place = rest.rpartition("@")
    place, _, _ = _QUERY_START.sub("\0", place).partition("\0")
    authority, slash, path = place.partition("/")
    if set(user) & set("?#") or not _PLAIN_AUTHORITY.fullmatch(authority):
        return f"{scheme}://{NOT_SHOWN}"
    return f"{scheme}://{authority}{slash}{path}"


def may_hold_secret(text: str) -> bool:
    """Return whether ``text``, a malformed address, may contain a password."""
    if _NEVER_IN_HOST.search(text):
        return True
    _, separator, rest = text.partition("://")
    return bool(separator) and not _PLAIN_AUTHORITY.fullmatch(rest.partition("/")[0])


def secrets_in(address: str) -> Iterator[str]:
    """Yield the secrets in ``address``, each as it is written and also percent-decoded.

    The secrets are the password, and the values of query parameters whose names suggest a password, token or key. A
    user without a password counts as a secret too, because it may be a token. In an address of PostgreSQL, the user is
    only a name and never counts as a secret.
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
