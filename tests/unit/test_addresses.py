"""The parts of an address that are shown, and those that are secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtfm import settings
from rtfm.addresses import NOT_SHOWN, may_hold_secret, redact_address, secrets_in
from rtfm.errors import ConfigError

PASSWORDS = ["hunter2", "pa/ss", "pa@ss", "pa:ss", "pa?ss", "pa#ss", "12/ss", "pa[ss", "p%40ss", "pa ss", "x" * 300]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", ["http", "postgresql", "wss"])
def test_no_part_of_a_password_is_shown(scheme: str, password: str) -> None:
    """An address is shown without any part of its password, even if the password has unescaped special characters."""
    text = redact_address(f"{scheme}://anna:{password}@db.example:5432/archive?token=hunter2")
    assert text in (f"{scheme}://db.example:5432/archive", f"{scheme}://{NOT_SHOWN}")


def test_host_port_and_path_are_shown() -> None:
    """Host, port and path of an address are shown, because an operator needs them to find a fault."""
    assert redact_address("https://key:secret@registry:8081/apis/ccompat/v7") == "https://registry:8081/apis/ccompat/v7"
    assert redact_address("http://token-alone@[::1]:8000") == "http://[::1]:8000"
    assert redact_address("localhost:29092") == "localhost:29092"


@pytest.mark.parametrize("text", ["http://anna:hunter2", "anna:hunter2@host", "host?password=x", "http://h:80a/"])
def test_a_malformed_address_that_may_hold_a_password_is_recognised(text: str) -> None:
    """A malformed address that may contain a password is recognised, so that no error repeats the password."""
    assert may_hold_secret(text)
    assert "hunter2" not in redact_address(text)


def test_a_malformed_address_without_a_password_is_repeated() -> None:
    """A malformed address without a password does not count as secret, so that an error may repeat the address."""
    assert not may_hold_secret("localhost:8081")
    assert not may_hold_secret("htp://localhost:8081/path")


@pytest.mark.parametrize(
    ("address", "secrets"),
    [
        ("http://anna:hunter2@h", {"hunter2"}),
        ("http://h4x0r-token@h", {"h4x0r-token"}),
        ("postgresql://rtfm_owner@h/db", set()),
        ("postgresql://u:p%40ss@h/db?sslmode=require&sslpassword=geheim", {"p%40ss", "p@ss", "geheim"}),
        ("http://localhost:8081/path", set()),
        ("https://bucket/model.tar.gz?X-Amz-Signature=0123abcd", {"0123abcd"}),
    ],
)
def test_secrets_of_an_address_are_its_password_and_tokens(address: str, secrets: set[str]) -> None:
    """The secrets of an address are its password and its tokens, in their written and in their decoded form."""
    assert set(secrets_in(address)) == secrets


URLS = ["SCHEMA_REGISTRY_URL", "CHROMA_URL", "OPENAI_BASE_URL", "GEMINI_API_ENDPOINT", "RTFM_EMBEDDING_MODEL_URL"]
URLS += ["RTFM_DISCORD_API", "RTFM_DISCORD_GATEWAY", "DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS"]


@pytest.mark.parametrize("name", URLS)
@pytest.mark.parametrize(
    "value",
    ["anna:geheim77@host", "http//anna:geheim77@host", "ftp://anna:geheim77@host", "http://anna:geheim77",
     "ws://anna:1/geheim77@host:x", "http://anna:[geheim77@host:1", "https://anna@host:geheim77"],
)  # fmt: skip
def test_a_malformed_address_is_refused_without_its_password(name: str, value: str, tmp_path: Path) -> None:
    """The error for a malformed address names the variable. Neither error nor traceback contains the password."""
    with pytest.raises(ConfigError) as caught:
        settings.load({"RTFM_HOME": str(tmp_path), name: value}, dotenv=None)
    assert name in str(caught.value)
    assert "geheim77" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_passwords_of_all_addresses_are_secrets_and_left_out_of_repr(tmp_path: Path) -> None:
    """The list of secrets contains the passwords of all addresses; none of these is in the repr of the settings."""
    given = {name: f"{'wss' if 'GATEWAY' in name else 'http'}://anna:geheim-{name}@host:1" for name in URLS[:-2]}
    given |= {"DATABASE_URL": "postgresql://anna:geheim-db@host/x", "GEMINI_API_KEY": "geheim-key"}
    loaded = settings.load({"RTFM_HOME": str(tmp_path), **given}, dotenv=None)
    assert {f"geheim-{name}" for name in URLS[:-2]} | {"geheim-db", "geheim-key"} == set(loaded.secrets())
    assert "geheim" not in repr(loaded)
