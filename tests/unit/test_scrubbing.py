"""Removal of secrets and addresses from text."""

from __future__ import annotations

import base64
import random
import re
import string
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtfm.scrubbing import EMAIL_REMOVED, SECRET_REMOVED, scrub
from tests.hostile import repeated, slow_on

# Each secret is joined from parts, so that secret scanners do not report it.
SECRETS = [
    "M" + "a" * 23 + "." + "b" * 6 + "." + "c" * 38,
    "AIza" + "x" * 35,
    "ghp_" + "y" * 36,
    "sk-" + "z" * 40,
    "AKIA" + "Q" * 16,
    "xoxb-" + "1234567890",
    "GOCSPX-" + "g" * 28,
    "glpat-" + "l" * 20,
    "npm_" + "n" * 36,
    "pypi-AgEI" + "p" * 60,
    "hf_" + "h" * 34,
    "sk_live_" + "s" * 24,
    "123456789:AA" + "t" * 33,
    "SG." + "a" * 22 + "." + "b" * 43,
    "eyJ" + "h" * 12 + ".eyJ" + "p" * 12 + "." + "s" * 20,
    "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\nabc that was cut",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_of_a_known_form_is_removed(secret: str) -> None:
    """A secret of a known form is removed, and the text around it stays."""
    assert scrub(f"my key: {secret}").startswith(f"my key: {SECRET_REMOVED}")
    assert secret not in scrub(f"my key: {secret}")


def test_a_password_in_an_address_is_removed() -> None:
    """A password in an address is removed, and host and path stay."""
    assert scrub("postgresql://anna:hunter2@db:5432/x") == f"postgresql://{SECRET_REMOVED}@db:5432/x"


def test_the_rest_of_a_line_with_a_token_stays() -> None:
    """Of a header or a webhook's address, only the token is removed."""
    assert scrub("Authorization: Bearer " + "b" * 40) == f"Authorization: Bearer {SECRET_REMOVED}"
    hook = "https://discord.com/api/webhooks/"
    assert scrub(hook + "123456789012345678/" + "w" * 68) == f"{hook}{SECRET_REMOVED}"


def test_an_e_mail_address_is_removed() -> None:
    """An e-mail address is removed, and similar texts stay."""
    assert scrub("write to a.b+c@mail.example.org now") == f"write to {EMAIL_REMOVED} now"
    assert scrub("user@host and git@host:repo") == "user@host and git@host:repo"


@pytest.mark.parametrize(
    "text",
    [
        "SK-2104: locked",
        "sha256:" + "0f" * 32,
        "commit 5ec17dc",
        "10.0.0.1:9092",
        "12:30:45",
        "Bearer of news",
        "a.b.c",
        "x" * 5_000,
    ],
)
def test_useful_identifiers_stay(text: str) -> None:
    """Error codes, hashes and addresses of machines stay."""
    assert scrub(text) == text


SAMPLES = tomllib.loads((Path(__file__).parents[1] / "data" / "secret_samples.toml").read_text(encoding="utf-8"))

_SIGNS = {
    "d": string.digits,
    "h": "0123456789abcdef",
    "l": string.ascii_lowercase + string.digits,
    "U": string.ascii_uppercase + string.digits,
    "A": string.ascii_letters + string.digits,
    "w": string.ascii_letters + string.digits + "_-",
    "b": string.ascii_letters + string.digits + "+/",
}
_ZERO_WIDTH = "\u200b\u200d\u2060\ufeff"


def fill_template(template: str, chance: random.Random) -> tuple[str, str]:
    """Return a text made from ``template`` of the file of samples, and the secret in the text."""

    def draw(match: re.Match[str]) -> str:
        signs = _SIGNS[match[1]]
        text = "".join(chance.choices(signs, k=int(match[2])))
        # Fewer than one such secret in a thousand lacks a digit, a lower-case or an upper-case letter, so one of each
        # is added. No token ends with - or _, so such a sign is replaced.
        inner = re.sub(r"^[-_+/]|[-_+/]$", "x", text)
        return inner if len(inner) < 8 or match[1] in "dhU" else f"{inner[:-3]}7qK"

    filled = re.sub(r"<(\w):(\d+)>", draw, template)
    before, secret, after = re.fullmatch(r"(.*?)\[(.*)\](.*)", filled, re.DOTALL).groups()  # type: ignore[union-attr]
    if secret.startswith("="):
        secret = base64.b64encode(secret[1:].encode()).decode()
    return f"{before}{secret}{after}", secret


def samples(seed: int, rounds: int) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, text, secret) for ``rounds`` texts of each template, in sentences and in chat markup."""
    chance = random.Random(seed)
    for kind, templates in SAMPLES.items():
        for template in templates * rounds:
            text, secret = fill_template(template, chance)
            frame = chance.choice(
                ["{}", "why does this fail? {}", "```\n{}\n```", "{} thanks!", "look: `{}`", "**{}**"]
            )
            yield kind, text if text.startswith("_") else frame.format(text), secret


def contains_secret(secret: str, text: str) -> bool:
    """Return whether ``text`` has 12 consecutive characters of ``secret``, or all characters of a shorter secret."""
    length = min(12, len(secret))
    return any(secret[start : start + length] in text for start in range(len(secret) - length + 1))


def test_secrets_of_thirty_kinds_are_removed() -> None:
    """At least 98 % of random secrets are removed; the templates of these secrets are of thirty kinds."""
    found = list(samples(seed=11, rounds=5))
    missed = [(kind, text) for kind, text, secret in found if contains_secret(secret, scrub(text))]
    assert len(SAMPLES) >= 30
    assert sum(map(len, SAMPLES.values())) >= 180
    assert len(missed) <= 0.02 * len(found), missed[:20]


def test_a_zero_width_character_hides_no_secret() -> None:
    """A secret with a zero-width character in it is removed, except for at most five of the samples.

    A person could remove the character and use the secret.
    """
    chance = random.Random(12)
    missed = []
    for kind, text, secret in samples(seed=12, rounds=1):
        if " " in secret or "\n" in secret or len(secret) < 16:
            continue
        at = chance.randrange(3, len(secret) - 3)
        hidden = text.replace(secret, secret[:at] + chance.choice(_ZERO_WIDTH) + secret[at:])
        if contains_secret(secret, re.sub(f"[{_ZERO_WIDTH}]", "", scrub(hidden))):
            missed.append((kind, hidden))
    assert len(missed) <= 5, missed


@pytest.mark.parametrize(
    "text",
    [
        "the password is wrong",
        "password: see the wiki",
        "what does `token: string` mean?",
        "const token = this.scanner.getToken()",
        "password = input('password')",
        "set PASSWORD=your-password-here",
        "token = os.environ['TOKEN']",
        "basic authentication",
        "Bearer authentication/authorization",
        "git@github.com:a/b.git",
        "https://medium.com:443/@someone/a-title",
        "/usr/lib/x86_64-linux-gnu/libpthread-2.31.so",
        "3f786850e387550fdab836ed7e6dc881de23001b",
        "550e8400-e29b-41d4-a716-446655440000",
        "docker run -u 1000:1000 image",
        "sk-loading-indicator-with-dots",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKk3q8Zb1yT5xw0N7vQmJc2LrU9hGd4fWe6sXoPiBtYz me@host",
        "the_quick_brown_fox-jumps_over_2_lazy_dogs/And_Some_More_Words",
        "UUID=6e35d56a-9067-47d8-b84e-50ca84a2ff89 / ext3",
    ],
)
def test_text_about_secrets_stays(text: str) -> None:
    """Text about passwords and tokens stays, because questions about them are common."""
    assert scrub(text) == text


HOSTILE = [
    *"a-_./:= \n@A0",
    *("://", "://a:", "eyJ", "eyJ-", "eyJa.", "sk-", "password", "password=", "password: ", "pass is ", 'token="'),
    *("-----BEGIN PRIVATE KEY-----", "bearer ", "basic aaaa", "xoxb-", "webhooks/1", "M.", "-u a:", "a@a.", "a.a@"),
    *("aws", "aws" + "A" * 40, "key-0", "1:A", "\u200b", "\u200ba", "PuTTY-User-Key-File-2", "authorization: "),
    *("SG.a.", "ya29.", "==", "a1B-", "a1B " * 8, "LS0tLS1CRUdJTi", "https://a?sig="),
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_time_is_in_proportion_to_the_text(piece: str) -> None:
    """Scrubbing a text of four times the length takes at most six times the time."""
    assert slow_on(scrub, repeated(piece)) is None
