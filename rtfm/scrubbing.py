"""Secrets and e-mail addresses out of text that leaves the archive: to the model, into answers, into logs.

Owns the patterns. Pure. Promises nothing about secrets that have no recognisable form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# The published forms of tokens that people paste into help channels; a word boundary on both sides keeps hashes out.
_SECRETS = (
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    r"\b[MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,45}\b",  # Discord
    r"(?<=/api/webhooks/)\d{15,22}/[\w-]{40,90}",  # Discord's webhooks
    r"\bAIza[\w-]{35}\b",  # Google
    r"\bGOCSPX-[\w-]{20,}\b|\bya29\.[\w-]{20,}",  # Google's OAuth
    r"\b(?:gh[opsur]_[A-Za-z0-9]{36,}|github_pat_\w{40,})\b",  # GitHub
    r"\bsk-[\w-]{20,}\b",  # several providers of models
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",  # AWS
    r"\bxox[abeprs]-[\w-]{10,}\b",  # Slack
    r"\bglpat-[\w-]{20,}",  # GitLab
    r"\bnpm_[A-Za-z0-9]{36}\b",  # npm
    r"\bpypi-AgEI[\w-]{50,}",  # PyPI
    r"\bhf_[A-Za-z0-9]{30,}\b",  # Hugging Face
    r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}\b",  # Stripe
    r"\b\d{8,10}:AA[\w-]{33}\b",  # Telegram
    r"\bSG\.[\w-]{16,32}\.[\w-]{32,64}\b",  # SendGrid
    r"(?<=\bBearer )[\w.~+/-]{20,}=*",  # a header that was pasted
    r"(?<![\w-])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",  # a JSON web token
    r"(?<=://)[^\s/:@]{1,64}:[^\s/@]{1,64}(?=@)",  # user and password in an address
)
_SECRET = re.compile("|".join(_SECRETS), re.DOTALL)
# Nothing that the patterns know is shorter; nearly all messages have no such run, and need not be searched.
_MAYBE_SECRET = re.compile(r"\S{15}|://|PRIVATE KEY")
_EMAIL = re.compile(r"\b[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")

SECRET_REMOVED = "(secret removed)"  # noqa: S105 - says that one was there
EMAIL_REMOVED = "(e-mail removed)"


def scrub(text: str, known: Iterable[str] = ()) -> str:
    """``text`` with a note in place of each token, key, password in an address, e-mail address and ``known`` secret."""
    for secret in known:
        text = text.replace(secret, SECRET_REMOVED)
    if _MAYBE_SECRET.search(text):
        text = _SECRET.sub(SECRET_REMOVED, text)
    return _EMAIL.sub(EMAIL_REMOVED, text) if "@" in text else text
