"""Where the values of settings come from, and the errors for invalid values."""

import json
import os
from pathlib import Path

import pytest

from rtfm import settings
from rtfm.errors import ConfigError


def load(environ: dict[str, str], home: Path, dotenv: Path | None = None) -> settings.Settings:
    return settings.load({"RTFM_HOME": str(home), **environ}, dotenv=dotenv)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("KAFKA_BOOTSTRAP_SERVERS", "localhost", "host:port"),
        ("KAFKA_BOOTSTRAP_SERVERS", "localhost:port", "host:port"),
        ("KAFKA_TOPIC_PREFIX", "a b", "letters"),
        ("SCHEMA_REGISTRY_URL", "localhost:8081", "http://host:port"),
        ("PROCESSOR_CONCURRENCY", "0", "at least 1"),
        ("PROCESSOR_CONCURRENCY", "many", "a number"),
        ("GEMINI_TIMEOUT_S", "-1", "positive"),
        ("METRICS_PORT", "70000", "port"),
        ("LOG_LEVEL", "LOUD", "one of DEBUG"),
        ("DLQ_MAX_CONSECUTIVE", "-1", "at least 0"),
        ("DLQ_MAX_SHARE", "50", "between 0 and 1"),
    ],
)
def test_a_malformed_variable_is_named_with_its_value_and_what_it_should_be(
    name: str, value: str, wanted: str, tmp_path: Path
) -> None:
    """The error for an invalid variable contains the variable's name, its value and the expected form."""
    with pytest.raises(ConfigError) as caught:
        load({name: value}, tmp_path)
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)
    assert wanted in str(caught.value)


def test_a_malformed_secret_is_not_repeated(tmp_path: Path) -> None:
    """The error for an invalid secret does not repeat the secret; a database address may contain a password."""
    with pytest.raises(ConfigError) as caught:
        load({"DATABASE_URL": "mysql://user:hunter2@host/db"}, tmp_path)
    assert "hunter2" not in str(caught.value)
    assert "DATABASE_URL" in str(caught.value)


def test_secrets_are_left_out_of_repr(tmp_path: Path) -> None:
    """Secrets are left out of repr, because settings may be logged."""
    loaded = load({"DISCORD_TOKEN": "t0ken", "DATABASE_URL": "postgresql://u:hunter2@h/d"}, tmp_path)
    assert "t0ken" not in repr(loaded)
    assert "hunter2" not in repr(loaded)


def test_a_secret_can_be_read_from_a_file(tmp_path: Path) -> None:
    """The secret NAME can be read from the file at NAME_FILE; a line break at its end is removed."""
    (tmp_path / "token").write_text("t0ken\n")
    assert load({"DISCORD_TOKEN_FILE": str(tmp_path / "token")}, tmp_path).discord_token == "t0ken"


def test_a_secret_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    """If the file of a secret is missing, an error names the variable; the secret does not count as empty."""
    with pytest.raises(ConfigError, match="DISCORD_TOKEN_FILE"):
        load({"DISCORD_TOKEN_FILE": str(tmp_path / "nothing")}, tmp_path)


def test_the_environment_wins_over_dotenv_and_dotenv_over_the_default(tmp_path: Path) -> None:
    """The environment overrides .env, and .env overrides the default."""
    dotenv = tmp_path / ".env"
    dotenv.write_text("GEMINI_MODEL=from-dotenv\nLOG_LEVEL=ERROR\n")
    loaded = load({"LOG_LEVEL": "DEBUG"}, tmp_path, dotenv)
    assert (loaded.log_level, loaded.gemini_model, loaded.log_format) == ("DEBUG", "from-dotenv", "auto")


def test_addresses_come_from_the_local_stack_while_it_runs(tmp_path: Path) -> None:
    """Addresses come from the local stack while it runs; if a dependency's process has ended, its default is used."""
    (tmp_path / "run").mkdir()
    services = {
        "kafka": {"address": "localhost:12345", "pid": os.getpid()},
        "chroma": {"address": "http://localhost:54321", "pid": 2**22 + 1},
    }
    (tmp_path / settings.LOCAL_STACK_FILE).write_text(json.dumps({"services": services}))
    loaded = load({}, tmp_path)
    assert loaded.kafka_bootstrap_servers == "localhost:12345"
    assert loaded.chroma_url == "http://localhost:8000"


def test_the_environment_wins_over_the_local_stack(tmp_path: Path) -> None:
    """An address in the environment overrides that of the local stack."""
    (tmp_path / "run").mkdir()
    services = {"kafka": {"address": "localhost:12345", "pid": os.getpid()}}
    (tmp_path / settings.LOCAL_STACK_FILE).write_text(json.dumps({"services": services}))
    assert load({"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092"}, tmp_path).kafka_bootstrap_servers == "kafka:9092"


def test_a_broken_state_file_of_the_local_stack_is_ignored(tmp_path: Path) -> None:
    """A broken state file of the local stack is ignored, because such a file must not stop every command."""
    (tmp_path / "run").mkdir()
    (tmp_path / settings.LOCAL_STACK_FILE).write_text("{")
    assert load({}, tmp_path).kafka_bootstrap_servers == "localhost:29092"


def test_a_flag_is_parsed_like_its_variable(tmp_path: Path) -> None:
    """A flag is parsed like its variable, and the error names the flag."""
    with pytest.raises(ConfigError, match="--kafka-bootstrap-servers"):
        load({}, tmp_path).with_flags(kafka_bootstrap_servers="nowhere")


def test_a_flag_that_was_not_given_changes_nothing(tmp_path: Path) -> None:
    """If a flag was not given, click passes None, and the setting stays as it is."""
    loaded = load({}, tmp_path)
    assert loaded.with_flags(kafka_bootstrap_servers=None) == loaded


def test_every_setting_has_a_meaning_and_a_variable_of_its_own() -> None:
    """Every setting has a description and its own variable, from which the documentation is generated."""
    described = list(settings.describe())
    assert all(doc.endswith(".") for _, _, _, doc, _ in described)
    assert len({env for _, env, _, _, _ in described}) == len(described)
