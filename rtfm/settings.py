"""Configuration: the only reader of ``os.environ``.

Owns every setting's name, default and meaning. A value comes from, in this order: a command's flag, the environment,
``.env`` in the working directory, the running local stack in ``RTFM_HOME`` (addresses only), the default. A secret can
be given as ``NAME_FILE``, the path of a file that contains it.
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
"""The file in ``RTFM_HOME`` that describes the running local services."""

MIN_SECRET_LENGTH = 6
"""Characters below which a secret is not redacted: it is probably a word, and texts would become unreadable."""


# The headings of docs/configuration.md.
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
        "Name of this instance, stable over restarts and unique for each replica. Default: the host name.",
    )
    log_level: str = _general(
        "LOG_LEVEL", "INFO", "Lowest level that is logged.", one_of("DEBUG", "INFO", "WARNING", "ERROR")
    )
    log_format: str = _general(
        "LOG_FORMAT",
        "auto",
        "`console`, `json`, or `auto`: console on a terminal, JSON elsewhere.",
        one_of("auto", "console", "json"),
    )
    metrics_host: str = _general("METRICS_HOST", "127.0.0.1", "Address of a service's metrics and health port.")
    metrics_port: int = _general(
        "METRICS_PORT", 0, "Port of /metrics, /healthz and /readyz; 0 picks a free one and logs it.", port
    )
    shutdown_grace_s: float = _general(
        "SHUTDOWN_GRACE_S", 20.0, "Seconds that a service may take to stop after SIGTERM.", seconds
    )
    watchdog_s: float = _general(
        "WATCHDOG_S",
        45.0,
        "Seconds without a pass of a service's loop after which the process logs the stacks of its threads and ends."
        " Below 30 s it may end a process that is only waiting for Kafka.",
        seconds,
    )
    kafka_bootstrap_servers: str = _kafka(
        "KAFKA_BOOTSTRAP_SERVERS", "localhost:29092", "Kafka brokers to connect to first.", bootstrap_servers
    )
    kafka_topic_prefix: str = _kafka(
        "KAFKA_TOPIC_PREFIX",
        "",
        "Prefix of every topic, consumer group, subject and collection, for a shared cluster.",
        topic_prefix,
    )
    kafka_replication_factor: int = _kafka(
        "KAFKA_REPLICATION_FACTOR", 1, "Replicas of each topic that `topics init` creates; 3 in production.", count
    )
    kafka_queue_max_messages: int = _kafka(
        "KAFKA_QUEUE_MAX_MESSAGES", 10_000, "Records that a producer queues before its caller has to wait.", count
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
        "Compression of produced records: `zstd`, `lz4`, `snappy`, `gzip` or `none`. Change it if a reader of the"
        " topics does not support zstd.",
        one_of("none", "gzip", "snappy", "lz4", "zstd"),
    )
    kafka_group_protocol: str = _kafka(
        "KAFKA_GROUP_PROTOCOL",
        "classic",
        "`classic` detects a dead worker within 6 s; `consumer` (KIP-848) rebalances with less disruption, but detects"
        " it only after the broker's session timeout, 45 s by default.",
        one_of("classic", "consumer"),
    )
    kafka_static_membership: bool = _kafka(
        "KAFKA_STATIC_MEMBERSHIP",
        True,
        "With the classic protocol: keep a worker's partitions assigned while it restarts under the same"
        " RTFM_INSTANCE_ID. A removed worker holds them for 6 s; set `false` if workers are added and removed often.",
        boolean,
    )
    dlq_max_consecutive: int = _kafka(
        "DLQ_MAX_CONSECUTIVE",
        100,
        "Consecutive dead letters in one partition after which a pipeline stops; 0 disables the limit.",
        limit,
    )
    dlq_max_share: float = _kafka(
        "DLQ_MAX_SHARE",
        0.5,
        "Share of dead letters among the last 1,000 records of a partition above which a pipeline stops. It applies"
        " from 200 records on; 0 disables the limit.",
        share,
    )
    schema_registry_url: str = _contracts(
        "SCHEMA_REGISTRY_URL",
        "http://localhost:8081",
        "Schema registry with Confluent's API, including its path.",
        url("http", "https"),
    )
    schemas_dir: Path | None = _contracts(
        "RTFM_SCHEMAS_DIR",
        None,
        "Folder that replaces the packaged schemas, including released/ and contracts.toml.",
        Path,
    )
    database_url: str = _knowledge(
        "DATABASE_URL",
        "postgresql://rtfm:rtfm@localhost:5432/rtfm",
        "PostgreSQL database of the archive.",
        url("postgresql", "postgres"),
        secret=True,
    )
    chroma_url: str = _knowledge("CHROMA_URL", "http://localhost:8000", "Chroma server.", url("http", "https"))
    embedding_model_dir: Path | None = _knowledge(
        "RTFM_EMBEDDING_MODEL_DIR",
        None,
        "Folder of all-MiniLM-L6-v2 in ONNX (model.onnx and tokenizer.json). Default: the fetched model in RTFM_HOME;"
        " without a model search is lexical.",
        Path,
    )
    embedding_model_url: str | None = _knowledge(
        "RTFM_EMBEDDING_MODEL_URL",
        None,
        "The only address that the embedding model is fetched from: a mirror of the archive that Chroma fetches."
        " Default: Maven Central, then Chroma's own address.",
        url("http", "https"),
    )
    embedding_threads: int = _knowledge("EMBEDDING_THREADS", 2, "Threads of the embedding model.", count)
    passages_per_answer: int = _knowledge("PASSAGES_PER_ANSWER", 8, "Passages that an answer may use.", count)
    gemini_api_key: str | None = _answering(
        "GEMINI_API_KEY", None, "Key of the Gemini API. Without a model answers are extracts.", secret=True
    )
    gemini_model: str = _answering("GEMINI_MODEL", "gemini-flash-latest", "Model that writes answers.")
    gemini_api_endpoint: str | None = _answering(
        "GEMINI_API_ENDPOINT", None, "Address of a proxy or stub of the Gemini REST API.", url("http", "https")
    )
    gemini_sdk: str = _answering(
        "GEMINI_SDK",
        "google-generativeai",
        "Package that talks to Gemini: `google-generativeai`, or its successor `google-genai`.",
        one_of("google-generativeai", "google-genai"),
    )
    gemini_timeout_s: float = _answering(
        "GEMINI_TIMEOUT_S", 20.0, "Seconds to wait for the model, all attempts together.", seconds
    )
    openai_base_url: str | None = _answering(
        "OPENAI_BASE_URL",
        None,
        "OpenAI-compatible server to use instead of Gemini, including the version: `http://localhost:11434/v1`.",
        url("http", "https"),
    )
    openai_api_key: str | None = _answering("OPENAI_API_KEY", None, "Key of that server, if it needs one.", secret=True)
    openai_model: str = _answering("OPENAI_MODEL", "llama3.1", "Model of that server.")
    model_attempts: int = _answering(
        "MODEL_ATTEMPTS", 3, "Requests for one answer if the model's service is busy or fails.", count
    )
    model_requests_per_minute: int | None = _answering(
        "MODEL_REQUESTS_PER_MINUTE",
        None,
        "Requests to the model per minute and processor; above it answers are extracts. Default: no limit.",
        count,
    )
    model_requests_per_day: int | None = _answering("MODEL_REQUESTS_PER_DAY", None, "The same per day.", count)
    model_tokens_per_minute: int | None = _answering(
        "MODEL_TOKENS_PER_MINUTE",
        None,
        "Tokens of prompts and answers per minute and processor; above it answers are extracts. Default: no limit.",
        count,
    )
    model_tokens_per_day: int | None = _answering("MODEL_TOKENS_PER_DAY", None, "The same per day.", count)
    breaker_failure_share: float = _answering(
        "BREAKER_FAILURE_SHARE",
        0.5,
        "Share of failed requests in the last BREAKER_WINDOW_S at which the circuit breaker opens.",
        positive_share,
    )
    breaker_min_requests: int = _answering(
        "BREAKER_MIN_REQUESTS", 5, "Requests in that time below which the circuit breaker stays closed.", count
    )
    breaker_window_s: float = _answering(
        "BREAKER_WINDOW_S", 60.0, "Seconds of requests that the circuit breaker counts.", seconds
    )
    breaker_probe_interval_s: float = _answering(
        "BREAKER_PROBE_INTERVAL_S",
        30.0,
        "Seconds that the circuit breaker stays open before one request tests the model.",
        seconds,
    )
    processor_concurrency: int = _answering(
        "PROCESSOR_CONCURRENCY", 16, "Questions that one processor answers at the same time.", count
    )
    query_expiry_s: float = _answering(
        "QUERY_EXPIRY_S", 600.0, "Seconds after which a question is no longer answered.", seconds
    )
    discord_token: str | None = _discord("DISCORD_TOKEN", None, "Token of the bot.", secret=True)
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
        """Return the values of secrets and the secrets in all addresses, longest first.

        Secrets of fewer than ``MIN_SECRET_LENGTH`` characters are left out.
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
        """Return these settings with the given flags (those that are not None) in place of their values.

        Raises ConfigError for a value that does not parse.
        """
        given = {
            name: _parse(_attribute(name), value, f"--{name.replace('_', '-')}")
            for name, value in flags.items()
            if value is not None
        }
        return evolve(self, **given)


def describe() -> Iterator[tuple[str, str, str, str, bool]]:
    """Yield (group, variable, default, meaning, is secret) for each setting, in order."""
    for attribute in fields(Settings):
        meta = attribute.metadata
        default = "" if attribute.default is None or isinstance(attribute.default, Factory) else attribute.default  # type: ignore[arg-type]  # attrs types Factory as a function
        yield meta["group"], meta["env"], str(default), meta["doc"], meta["secret"]


def load(environ: Mapping[str, str] | None = None, *, dotenv: Path | None = Path(".env")) -> Settings:
    """Read the settings of this process.

    Raises ConfigError that names the variable, where its value comes from and the expected form.
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
        # Without the cause, which repeats the value.
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
    """Return the addresses of the local services that run in ``home``."""
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
