"""Secrets and addresses out of text."""

from __future__ import annotations

import pytest

from rtfm.scrubbing import EMAIL_REMOVED, SECRET_REMOVED, scrub

# Put together here, so that no scanner of repositories takes them for real ones.
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
    """Whatever stands around it stays."""
    assert scrub(f"my key: {secret}").startswith(f"my key: {SECRET_REMOVED}")
    assert secret not in scrub(f"my key: {secret}")


def test_a_password_in_an_address_is_removed() -> None:
    """Host and path stay, they are what helps."""
    assert scrub("postgresql://anna:hunter2@db:5432/x") == f"postgresql://{SECRET_REMOVED}@db:5432/x"


def test_the_rest_of_a_line_with_a_token_stays() -> None:
    """The header's name, the address of the webhook."""
    assert scrub("Authorization: Bearer " + "b" * 40) == f"Authorization: Bearer {SECRET_REMOVED}"
    hook = "https://discord.com/api/webhooks/"
    assert scrub(hook + "123456789012345678/" + "w" * 68) == f"{hook}{SECRET_REMOVED}"


def test_an_e_mail_address_is_removed() -> None:
    """Not what only looks a little like one."""
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
def test_what_helps_stays(text: str) -> None:
    """Error codes, hashes, addresses of machines."""
    assert scrub(text) == text
