"""Configuration. This module defines every setting, and no other module reads ``os.environ``.

The first value found in this order is used: the command's flag, the environment, ``.env`` in the working directory, the
address of a running local service in ``RTFM_HOME``, the default. The value of a secret setting ``NAME`` may also be in
a file; then the variable ``NAME_FILE`` contains the file's path.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from attrs import Attribute, Factory, evolve, fields, frozen

from rtfm import addresses
from rtfm.errors import ConfigError
from rtfm.setting_fields import (
    boolean,
    bootstrap_servers,
    count,
    limit,
    one_of,
    port,
    positive_share,
    seconds,
    setting,
    share,
    topic_prefix,
    url,
)

LOCAL_STACK_FILE = "run/stack.json"
"""Path, in ``RTFM_HOME``, of the file that describes the running local services."""

MIN_SECRET_LENGTH = 6
"""A secret is redacted only if it has at least this many characters.

A shorter secret is probably a word, and logs would become unreadable if the word were removed everywhere.
"""


# Each group is a heading in docs/configuration.md.
_general = partial(setting, group="General")
_kafka = partial(setting, group="Kafka")
_contracts = partial(setting, group="Contracts")
_knowledge = partial(setting, group="Knowledge")
_answering = partial(setting, group="Answering")
_discord = partial(setting, group="Discord")


@frozen(kw_only=True)
class Settings:
    """Every setting, parsed. ``repr`` omits secrets."""

    home: Path = _general("RTFM_HOME", Path(".rtfm"), "Folder for the local services, downloads and caches.", Path)
    instance_id: str = _general(
        "RTFM_INSTANCE_ID",
        Factory(socket.gethostname),
        "Name of this instance. It must stay the same after a restart, and differ between replicas. Default: the host"
        " name.",
    )
    log_level: str = _general(
        "LOG_LEVEL",
        "INFO",
        "Lowest level that is logged: `DEBUG`, `INFO`, `WARNING` or `ERROR`.",
        one_of("DEBUG", "INFO", "WARNING", "ERROR"),
    )
    log_format: str = _general(
        "LOG_FORMAT",
        "auto",
        "Format of logs: `console`, `json`, or `auto`, which means `console` on a terminal and `json` elsewhere.",
        one_of("auto", "console", "json"),
    )
    metrics_host: str = _general("METRICS_HOST", "127.0.0.1", "Address of a service's metrics and health port.")
    metrics_port: int = _general(
        "METRICS_PORT", 0, "Port of /metrics, /healthz and /readyz. 0 picks a free port and logs it.", port
    )
    shutdown_grace_s: float = _general(
        "SHUTDOWN_GRACE_S", 20.0, "Seconds that a service may take to stop after SIGTERM.", seconds
    )
    watchdog_s: float = _general(
        "WATCHDOG_S",
        45.0,
        "Seconds after which a service ends if one of its loops hangs. It writes the stacks of its threads to standard"
        " error first. A value below 30 may end a process that is only waiting for Kafka.",
        seconds,
    )
    kafka_bootstrap_servers: str = _kafka(
        "KAFKA_BOOTSTRAP_SERVERS", "localhost:29092", "Kafka brokers to connect to first.", bootstrap_servers
    )
    kafka_topic_prefix: str = _kafka(
        "KAFKA_TOPIC_PREFIX",
        "",
        "Text before the name of every topic, consumer group, subject and Chroma collection. It keeps several"
        " installations on one cluster apart.",
        topic_prefix,
    )
    kafka_replication_factor: int = _kafka(
        "KAFKA_REPLICATION_FACTOR",
        1,
        "Replicas of each topic that `rtfm-cli topics init` creates. Use 3 in production.",
        count,
    )
    kafka_queue_max_messages: int = _kafka(
        "KAFKA_QUEUE_MAX_MESSAGES",
        10_000,
        "Records that a producer holds for sending. When it holds as many, its caller must wait.",
        count,
    )
    kafka_delivery_timeout_s: float = _kafka(
        "KAFKA_DELIVERY_TIMEOUT_S",
        30.0,
        "Seconds after which a record that no broker acknowledged is reported as not delivered.",
        seconds,
    )
    kafka_compression: str = _kafka(
        "KAFKA_COMPRESSION",
        "zstd",
        "Compression of produced records: `zstd`, `lz4`, `snappy`, `gzip` or `none`. Change it if a program that reads"
        " the topics does not support zstd.",
        one_of("none", "gzip", "snappy", "lz4", "zstd"),
    )
    kafka_group_protocol: str = _kafka(
        "KAFKA_GROUP_PROTOCOL",
        "classic",
        "Kafka's protocol for consumer groups. With `classic`, a crash of an instance is detected within 6 s."
        " `consumer` (KIP-848) rebalances with less disruption, but detects a crash only after the broker's session"
        " timeout, which is 45 s by default.",
        one_of("classic", "consumer"),
    )
    kafka_static_membership: bool = _kafka(
        "KAFKA_STATIC_MEMBERSHIP",
        True,
        "Whether an instance keeps its partitions while it restarts with the same RTFM_INSTANCE_ID. Only with the"
        " classic protocol. An instance that is removed then keeps its partitions for 6 s. Set it to `false` if"
        " instances are often added and removed.",
        boolean,
    )
    dlq_max_consecutive: int = _kafka(
        "DLQ_MAX_CONSECUTIVE",
        100,
        "Consecutive dead letters in one partition after which a pipeline stops. 0 disables the limit.",
        limit,
    )
    dlq_max_share: float = _kafka(
        "DLQ_MAX_SHARE",
        0.5,
        "Share of dead letters among the last 1,000 records of a partition above which a pipeline stops. It applies"
        " when a partition has at least 200 records. 0 disables the limit.",
        share,
    )
    schema_registry_url: str = _contracts(
        "SCHEMA_REGISTRY_URL",
        "http://localhost:8081",
        "Address of the schema registry's API, including its path. The registry must have Confluent's API.",
        url("http", "https"),
    )
    schemas_dir: Path | None = _contracts(
        "RTFM_SCHEMAS_DIR",
        None,
        "Folder to use instead of the packaged schemas. It must contain the schemas, contracts.toml, contracts.lock and"
        " released/.",
        Path,
    )
    database_url: str = _knowledge(
        "DATABASE_URL",
        "postgresql://rtfm:rtfm@localhost:5432/rtfm",
        "Address of the PostgreSQL database that contains the archive.",
        url("postgresql", "postgres"),
        secret=True,
    )
    chroma_url: str = _knowledge(
        "CHROMA_URL", "http://localhost:8000", "Address of the Chroma server.", url("http", "https")
    )
    embedding_model_dir: Path | None = _knowledge(
        "RTFM_EMBEDDING_MODEL_DIR",
        None,
        "Folder of the embedding model all-MiniLM-L6-v2 in ONNX (model.onnx and tokenizer.json). Default: the fetched"
        " model in RTFM_HOME. Without an embedding model only keyword search works.",
        Path,
    )
    embedding_model_url: str | None = _knowledge(
        "RTFM_EMBEDDING_MODEL_URL",
        None,
        "Address to fetch the embedding model from, for example a mirror. It must have the same archive that Chroma"
        " itself fetches. Default: Maven Central, then Chroma's own address.",
        url("http", "https"),
    )
    embedding_threads: int = _knowledge("EMBEDDING_THREADS", 2, "Threads that the embedding model uses.", count)
    passages_per_answer: int = _knowledge("PASSAGES_PER_ANSWER", 8, "Passages that an answer may use.", count)
    gemini_api_key: str | None = _answering(
        "GEMINI_API_KEY",
        None,
        "Key of the Gemini API. Without this key and without OPENAI_BASE_URL, answers are extracts.",
        secret=True,
    )
    gemini_model: str = _answering("GEMINI_MODEL", "gemini-flash-latest", "Gemini model that writes answers.")
    gemini_api_endpoint: str | None = _answering(
        "GEMINI_API_ENDPOINT",
        None,
        "Address of a proxy or stub of the Gemini REST API, to use instead of Google's.",
        url("http", "https"),
    )
    gemini_sdk: str = _answering(
        "GEMINI_SDK",
        "google-generativeai",
        "Package that talks to Gemini: `google-generativeai`, or its successor `google-genai`.",
        one_of("google-generativeai", "google-genai"),
    )
    gemini_timeout_s: float = _answering(
        "GEMINI_TIMEOUT_S", 20.0, "Seconds to wait for the language model, for all attempts together.", seconds
    )
    openai_base_url: str | None = _answering(
        "OPENAI_BASE_URL",
        None,
        "Address of an OpenAI-compatible server to use instead of Gemini. It includes the version:"
        " `http://localhost:11434/v1`.",
        url("http", "https"),
    )
    openai_api_key: str | None = _answering(
        "OPENAI_API_KEY", None, "Key for the OpenAI-compatible server, if it needs one.", secret=True
    )
    openai_model: str = _answering("OPENAI_MODEL", "llama3.1", "Model that the OpenAI-compatible server runs.")
    model_attempts: int = _answering(
        "MODEL_ATTEMPTS",
        3,
        "Most requests to the language model for one answer. A request is repeated if the model's service is busy or"
        " fails.",
        count,
    )
    model_requests_per_minute: int | None = _answering(
        "MODEL_REQUESTS_PER_MINUTE",
        None,
        "Most requests that one processor makes to the language model in a minute. Further answers are extracts."
        " Default: no limit.",
        count,
    )
    model_requests_per_day: int | None = _answering(
        "MODEL_REQUESTS_PER_DAY",
        None,
        "Most requests that one processor makes to the language model in a day. Default: no limit.",
        count,
    )
    model_tokens_per_minute: int | None = _answering(
        "MODEL_TOKENS_PER_MINUTE",
        None,
        "Most tokens, of prompts and answers together, that one processor uses in a minute. Further answers are"
        " extracts. Default: no limit.",
        count,
    )
    model_tokens_per_day: int | None = _answering(
        "MODEL_TOKENS_PER_DAY", None, "Most tokens that one processor uses in a day. Default: no limit.", count
    )
    breaker_failure_share: float = _answering(
        "BREAKER_FAILURE_SHARE",
        0.5,
        "Share of failed requests to the language model at which the circuit breaker opens. While it is open, answers"
        " are extracts.",
        positive_share,
    )
    breaker_min_requests: int = _answering(
        "BREAKER_MIN_REQUESTS",
        5,
        "Fewest requests within BREAKER_WINDOW_S with which the circuit breaker may open.",
        count,
    )
    breaker_window_s: float = _answering(
        "BREAKER_WINDOW_S", 60.0, "Age, in seconds, of the oldest requests that the circuit breaker counts.", seconds
    )
    breaker_probe_interval_s: float = _answering(
        "BREAKER_PROBE_INTERVAL_S",
        30.0,
        "Seconds that the circuit breaker stays open before it lets one request test the language model.",
        seconds,
    )
    processor_concurrency: int = _answering(
        "PROCESSOR_CONCURRENCY", 16, "Questions that one processor answers at the same time.", count
    )
    query_expiry_s: float = _answering(
        "QUERY_EXPIRY_S",
        600.0,
        "Seconds after which a question expires. Its asker is then told that no answer came in time.",
        seconds,
    )
    discord_token: str | None = _discord("DISCORD_TOKEN", None, "Token of the bot's Discord application.", secret=True)
    discord_api: str | None = _discord(
        "RTFM_DISCORD_API",
        None,
        "REST address of a Discord-compatible server to use instead of Discord.",
        url("http", "https"),
    )
    discord_gateway: str | None = _discord(
        "RTFM_DISCORD_GATEWAY",
        None,
        "Gateway address of a Discord-compatible server to use instead of Discord.",
        url("ws", "wss"),
    )

    def secrets(self) -> tuple[str, ...]:
        """Return the values of all secret settings and the secrets that are in addresses, longest first.

        Secrets of fewer than ``MIN_SECRET_LENGTH`` characters are not returned.
        """
        values = [(entry, getattr(self, entry.name)) for entry in fields(Settings)]
        found = {
            secret
            for entry, value in values
            if isinstance(value, str)
            for secret in (
                addresses.secrets_in(value) if "://" in value else [value] if entry.metadata["secret"] else []
            )
        }
        return tuple(sorted((secret for secret in found if len(secret) >= MIN_SECRET_LENGTH), key=len, reverse=True))

    def with_flags(self, **flags: Any) -> Settings:
        """Return a copy of these settings in which the values of ``flags`` replace those of the same names.

        A flag that is None changes nothing. Raises ConfigError if a value is not valid.
        """
        given = {
            name: _parse(_attribute(name), value, f"--{name.replace('_', '-')}")
            for name, value in flags.items()
            if value is not None
        }
        return evolve(self, **given)


def describe() -> Iterator[tuple[str, str, str, str, bool]]:
    """Yield (group, variable, default, meaning, whether it is secret) for each setting, in order."""
    for attribute in fields(Settings):
        meta = attribute.metadata
        default = "" if attribute.default is None or isinstance(attribute.default, Factory) else attribute.default  # type: ignore[arg-type]  # attrs types Factory as a function
        yield meta["group"], meta["env"], str(default), meta["doc"], meta["secret"]


def load(environ: Mapping[str, str] | None = None, *, dotenv: Path | None = Path(".env")) -> Settings:
    """Read the settings of this process.

    ``environ`` replaces the environment of the process. Raises ConfigError if a value is not valid; the message names
    the variable, the source of the value and the expected form.
    """
    process = dict(os.environ if environ is None else environ)
    sources = [("the environment", process), (str(dotenv), _read_dotenv(dotenv))]
    values: dict[str, Any] = {}
    for attribute in fields(Settings):
        found = _find_value(attribute.metadata["env"], sources, secret=attribute.metadata["secret"])
        if found is not None:
            text, where = found
            values[attribute.name] = _parse(attribute, text, f"{attribute.metadata['env']} in {where}")
    home = values.get("home", Path(".rtfm"))
    return Settings(**(_read_local_addresses(home) | values))


def _attribute(name: str) -> Attribute[Any]:
    return cast("Attribute[Any]", getattr(fields(Settings), name))


def _parse(attribute: Attribute[Any], value: Any, where: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return attribute.metadata["parse"](value)
    except ValueError as exc:
        hidden = attribute.metadata["secret"] or addresses.may_hold_secret(value)
        # The cause is omitted, because its message repeats the value.
        raise ConfigError(f"{where}: {'its value' if hidden else repr(value)} is not {_expected_form(exc)}") from None


def _expected_form(error: ValueError) -> str:
    text = str(error)
    return "a number" if text.startswith(("invalid literal", "could not convert")) else text


def _read_dotenv(path: Path | None) -> dict[str, str]:
    if path is None or not path.is_file():
        return {}
    from dotenv import dotenv_values

    try:
        return {key: value for key, value in dotenv_values(path).items() if value is not None}
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} cannot be read: {exc}") from exc


def _find_value(name: str, sources: list[tuple[str, dict[str, str]]], *, secret: bool) -> tuple[str, str] | None:
    for where, variables in sources:
        if value := variables.get(name, "").strip():
            return value, where
        if secret and (path := variables.get(f"{name}_FILE", "").strip()):
            try:
                return Path(path).read_text(encoding="utf-8").strip(), path
            except (OSError, UnicodeDecodeError) as exc:
                raise ConfigError(f"{name}_FILE in {where}: {path} cannot be read", hint=str(exc)) from exc
    return None


def _read_local_addresses(home: Path) -> dict[str, str]:
    """Return the settings that are addresses of the local services now running in ``home``."""
    try:
        services = json.loads((home / LOCAL_STACK_FILE).read_text(encoding="utf-8"))["services"]
    except (OSError, ValueError, KeyError):
        return {}
    names = {
        "kafka": "kafka_bootstrap_servers",
        "schema-registry": "schema_registry_url",
        "chroma": "chroma_url",
        "postgres": "database_url",
    }
    return {
        names[name]: service["address"]
        for name, service in services.items()
        if name in names and _is_alive(service.get("pid"))
    }


def _is_alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process belongs to another user
        pass
    return True
