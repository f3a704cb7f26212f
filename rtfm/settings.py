"""Configuration: the only reader of the environment.

Owns every setting's name, default and meaning. A value comes from, in this order: a command's flag, the environment,
``.env`` in the working directory, the local stack that runs in ``RTFM_HOME`` (addresses only), the default. A
secret may be given as ``NAME_FILE``, a file that holds it. Nothing else in the project reads ``os.environ``.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
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
MIN_SECRET_LENGTH = 6


def _hostname() -> str:
    return socket.gethostname()


@frozen(kw_only=True)
class Settings:
    """Every setting, parsed. Secrets are left out of ``repr``."""

    home: Path = setting(
        "RTFM_HOME", Path(".rtfm"), "Folder for the local services, downloads and caches.", Path, group="General"
    )
    instance_id: str = setting(
        "RTFM_INSTANCE_ID",
        Factory(_hostname),
        "Name of this instance, stable over restarts and different for each replica. Default: the host name.",
        group="General",
    )
    log_level: str = setting(
        "LOG_LEVEL",
        "INFO",
        "Least severe level that is logged.",
        one_of("DEBUG", "INFO", "WARNING", "ERROR"),
        group="General",
    )
    log_format: str = setting(
        "LOG_FORMAT",
        "auto",
        "`console`, `json`, or `auto`: console on a terminal, JSON elsewhere.",
        one_of("auto", "console", "json"),
        group="General",
    )
    metrics_host: str = setting(
        "METRICS_HOST", "127.0.0.1", "Address on which a service opens its metrics and health port.", group="General"
    )
    metrics_port: int = setting(
        "METRICS_PORT",
        0,
        "Port of /metrics, /healthz and /readyz; 0 takes a free one and logs it.",
        port,
        group="General",
    )
    shutdown_grace_s: float = setting(
        "SHUTDOWN_GRACE_S", 20.0, "Seconds that a service may take to finish on SIGTERM.", seconds, group="General"
    )
    watchdog_s: float = setting(
        "WATCHDOG_S",
        45.0,
        "Seconds without a pass of a service's loop after which the process logs the stacks of its threads and ends."
        " Below 30 s it may end one that only waits for Kafka.",
        seconds,
        group="General",
    )
    kafka_bootstrap_servers: str = setting(
        "KAFKA_BOOTSTRAP_SERVERS", "localhost:29092", "Kafka brokers to start from.", bootstrap_servers, group="Kafka"
    )
    kafka_topic_prefix: str = setting(
        "KAFKA_TOPIC_PREFIX",
        "",
        "Put before every topic, consumer group, subject and collection, for a shared cluster.",
        topic_prefix,
        group="Kafka",
    )
    kafka_replication_factor: int = setting(
        "KAFKA_REPLICATION_FACTOR",
        1,
        "Replicas of each topic that `topics init` makes; 3 in production.",
        count,
        group="Kafka",
    )
    kafka_queue_max_messages: int = setting(
        "KAFKA_QUEUE_MAX_MESSAGES",
        10_000,
        "Records that a producer holds before it makes its caller wait.",
        count,
        group="Kafka",
    )
    kafka_delivery_timeout_s: float = setting(
        "KAFKA_DELIVERY_TIMEOUT_S",
        30.0,
        "Seconds after which a record that no broker took is reported as not delivered.",
        seconds,
        group="Kafka",
    )
    kafka_compression: str = setting(
        "KAFKA_COMPRESSION",
        "zstd",
        "Compression of what is produced: `zstd`, `lz4`, `snappy`, `gzip` or `none`. Another one where a reader of the"
        " topics cannot read zstd.",
        one_of("none", "gzip", "snappy", "lz4", "zstd"),
        group="Kafka",
    )
    kafka_group_protocol: str = setting(
        "KAFKA_GROUP_PROTOCOL",
        "classic",
        "`classic` notices a dead worker within 6 s; `consumer` (KIP-848) moves partitions with less ado, and notices"
        " within the broker's session timeout, 45 s unless set.",
        one_of("classic", "consumer"),
        group="Kafka",
    )
    kafka_static_membership: bool = setting(
        "KAFKA_STATIC_MEMBERSHIP",
        True,
        "With the classic protocol: keep a worker's partitions for it while it is restarted in place under the same"
        " RTFM_INSTANCE_ID. One that is removed holds them for 6 s; `false` where workers come and go.",
        boolean,
        group="Kafka",
    )
    dlq_max_consecutive: int = setting(
        "DLQ_MAX_CONSECUTIVE",
        100,
        "Dead letters in a row, in one partition, after which a pipeline stops; 0 never stops.",
        limit,
        group="Kafka",
    )
    dlq_max_share: float = setting(
        "DLQ_MAX_SHARE",
        0.5,
        "Share of dead letters among the last 1,000 records of a partition, 200 or more being seen, above which a"
        " pipeline stops; 0 never stops.",
        share,
        group="Kafka",
    )
    schema_registry_url: str = setting(
        "SCHEMA_REGISTRY_URL",
        "http://localhost:8081",
        "Schema registry with Confluent's API, path included.",
        url("http", "https"),
        group="Contracts",
    )
    schemas_dir: Path | None = setting(
        "RTFM_SCHEMAS_DIR",
        None,
        "Folder that replaces the packaged schemas, released/ and contracts.toml included.",
        Path,
        group="Contracts",
    )
    database_url: str = setting(
        "DATABASE_URL",
        "postgresql://rtfm:rtfm@localhost:5432/rtfm",
        "PostgreSQL database of the archive.",
        url("postgresql", "postgres"),
        secret=True,
        group="Knowledge",
    )
    chroma_url: str = setting(
        "CHROMA_URL", "http://localhost:8000", "Chroma server.", url("http", "https"), group="Knowledge"
    )
    embedding_model_dir: Path | None = setting(
        "RTFM_EMBEDDING_MODEL_DIR",
        None,
        "Folder of all-MiniLM-L6-v2 in ONNX (model.onnx and tokenizer.json). Default: where it was fetched to in"
        " RTFM_HOME; without it search is lexical.",
        Path,
        group="Knowledge",
    )
    embedding_model_url: str | None = setting(
        "RTFM_EMBEDDING_MODEL_URL",
        None,
        "The only place that the model is fetched from: a mirror of the archive that Chroma fetches. Default: Maven"
        " Central, then Chroma's own address.",
        url("http", "https"),
        group="Knowledge",
    )
    embedding_threads: int = setting(
        "EMBEDDING_THREADS", 2, "Threads of the embedding model.", count, group="Knowledge"
    )
    passages_per_answer: int = setting(
        "PASSAGES_PER_ANSWER", 8, "Passages that an answer may rest on.", count, group="Knowledge"
    )
    gemini_api_key: str | None = setting(
        "GEMINI_API_KEY",
        None,
        "Key of the Gemini API. Without it answers are extracts.",
        secret=True,
        group="Answering",
    )
    gemini_model: str = setting("GEMINI_MODEL", "gemini-flash-latest", "Model that writes answers.", group="Answering")
    gemini_api_endpoint: str | None = setting(
        "GEMINI_API_ENDPOINT",
        None,
        "Another address of the Gemini REST API: a proxy or a stub.",
        url("http", "https"),
        group="Answering",
    )
    gemini_sdk: str = setting(
        "GEMINI_SDK",
        "google-generativeai",
        "Package that talks to Gemini: `google-generativeai`, or its successor `google-genai`.",
        one_of("google-generativeai", "google-genai"),
        group="Answering",
    )
    gemini_timeout_s: float = setting(
        "GEMINI_TIMEOUT_S", 20.0, "Seconds to wait for the model, all attempts together.", seconds, group="Answering"
    )
    openai_base_url: str | None = setting(
        "OPENAI_BASE_URL",
        None,
        "OpenAI-compatible server to ask instead of Gemini, version included: `http://localhost:11434/v1`.",
        url("http", "https"),
        group="Answering",
    )
    openai_api_key: str | None = setting(
        "OPENAI_API_KEY", None, "Key of that server, where it wants one.", secret=True, group="Answering"
    )
    openai_model: str = setting("OPENAI_MODEL", "llama3.1", "Model of that server.", group="Answering")
    model_attempts: int = setting(
        "MODEL_ATTEMPTS",
        3,
        "Requests for one answer, when the model's service is busy or fails.",
        count,
        group="Answering",
    )
    model_requests_per_minute: int | None = setting(
        "MODEL_REQUESTS_PER_MINUTE",
        None,
        "Budget of requests to the model a minute and processor; above it answers are extracts. Default: no limit.",
        count,
        group="Answering",
    )
    model_requests_per_day: int | None = setting(
        "MODEL_REQUESTS_PER_DAY", None, "The same for a day.", count, group="Answering"
    )
    model_tokens_per_minute: int | None = setting(
        "MODEL_TOKENS_PER_MINUTE",
        None,
        "Budget of tokens, of prompts and answers, a minute and processor. Default: no limit.",
        count,
        group="Answering",
    )
    model_tokens_per_day: int | None = setting(
        "MODEL_TOKENS_PER_DAY", None, "The same for a day.", count, group="Answering"
    )
    breaker_failure_share: float = setting(
        "BREAKER_FAILURE_SHARE",
        0.5,
        "Share of the requests of the last BREAKER_WINDOW_S that must fail for the model to be left alone.",
        positive_share,
        group="Answering",
    )
    breaker_min_requests: int = setting(
        "BREAKER_MIN_REQUESTS", 5, "Requests within that time below which it is asked on.", count, group="Answering"
    )
    breaker_window_s: float = setting("BREAKER_WINDOW_S", 60.0, "Seconds looked back on.", seconds, group="Answering")
    breaker_probe_interval_s: float = setting(
        "BREAKER_PROBE_INTERVAL_S",
        30.0,
        "Seconds that the model is left alone before one request tries it again.",
        seconds,
        group="Answering",
    )
    processor_concurrency: int = setting(
        "PROCESSOR_CONCURRENCY", 16, "Questions that one processor answers at a time.", count, group="Answering"
    )
    query_expiry_s: float = setting(
        "QUERY_EXPIRY_S", 600.0, "Seconds after which a question is no longer answered.", seconds, group="Answering"
    )
    discord_token: str | None = setting("DISCORD_TOKEN", None, "Token of the bot.", secret=True, group="Discord")
    discord_api: str | None = setting(
        "RTFM_DISCORD_API",
        None,
        "REST address of another Discord-compatible server.",
        url("http", "https"),
        group="Discord",
    )
    discord_gateway: str | None = setting(
        "RTFM_DISCORD_GATEWAY",
        None,
        "Gateway address of another Discord-compatible server.",
        url("ws", "wss"),
        group="Discord",
    )

    def secrets(self) -> tuple[str, ...]:
        """What must not be shown, longest first: the secrets' values, and of every address what is secret in it.

        Those of fewer than 6 characters are left out: they are words, and texts would lose what they say.
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
        """These settings with the flags that were given (not None) put in their place.

        Raises ConfigError for a value that does not parse.
        """
        given = {
            name: _parse(_attribute(name), value, f"--{name.replace('_', '-')}")
            for name, value in flags.items()
            if value is not None
        }
        return evolve(self, **given)


def describe() -> Iterator[tuple[str, str, str, str, bool]]:
    """One (group, variable, default, meaning, is secret) for each setting, in order."""
    for attribute in fields(Settings):
        meta = attribute.metadata
        default = "" if attribute.default is None or isinstance(attribute.default, Factory) else attribute.default  # type: ignore[arg-type]  # attrs types Factory as a function
        yield meta["group"], meta["env"], str(default), meta["doc"], meta["secret"]


def load(environ: Mapping[str, str] | None = None, *, dotenv: Path | None = Path(".env")) -> Settings:
    """The settings of this process.

    Raises ConfigError that names the variable, where it stands and what it should be.
    """
    process = dict(os.environ if environ is None else environ)
    sources = [("the environment", process), (str(dotenv), _dotenv(dotenv))]
    values: dict[str, Any] = {}
    for attribute in fields(Settings):
        found = _find(attribute.metadata["env"], sources, secret=attribute.metadata["secret"])
        if found is not None:
            text, where = found
            values[attribute.name] = _parse(attribute, text, f"{attribute.metadata['env']} in {where}")
    home = values.get("home", Path(".rtfm"))
    return Settings(**(_local_addresses(home) | values))


def _attribute(name: str) -> Attribute[Any]:
    return cast("Attribute[Any]", getattr(fields(Settings), name))


def _parse(attribute: Attribute[Any], value: Any, where: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return attribute.metadata["parse"](value)
    except ValueError as exc:
        hidden = attribute.metadata["secret"] or addresses.may_hold_secret(value)
        # Without its cause, which repeats the value.
        raise ConfigError(f"{where}: {'its value' if hidden else repr(value)} is not {_wanted(exc)}") from None


def _wanted(error: ValueError) -> str:
    text = str(error)
    return "a number" if text.startswith(("invalid literal", "could not convert")) else text


def _dotenv(path: Path | None) -> dict[str, str]:
    if path is None or not path.is_file():
        return {}
    from dotenv import dotenv_values

    try:
        return {key: value for key, value in dotenv_values(path).items() if value is not None}
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} cannot be read: {exc}") from exc


def _find(name: str, sources: list[tuple[str, dict[str, str]]], *, secret: bool) -> tuple[str, str] | None:
    for where, variables in sources:
        if value := variables.get(name, "").strip():
            return value, where
        if secret and (path := variables.get(f"{name}_FILE", "").strip()):
            try:
                return Path(path).read_text(encoding="utf-8").strip(), path
            except (OSError, UnicodeDecodeError) as exc:
                raise ConfigError(f"{name}_FILE in {where}: {path} cannot be read", hint=str(exc)) from exc
    return None


def _local_addresses(home: Path) -> dict[str, str]:
    """Addresses of the local services that run in ``home``; none where none do."""
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
        if name in names and _alive(service.get("pid"))
    }


def _alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
