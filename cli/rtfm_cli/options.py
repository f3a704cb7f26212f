"""Options that several commands share, and small functions for their output."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from textwrap import indent
from typing import Any

import click

from rtfm import settings, telemetry
from rtfm.home import restrict_to_owner
from rtfm.redaction import hide
from rtfm_cli.printing import echo, json_text

registry_option = click.option(
    "--registry", "schema_registry_url", metavar="URL", help="Schema registry; default SCHEMA_REGISTRY_URL."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def kafka_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for the address of Kafka to ``command``, and call ``command`` with the ``settings``."""

    @click.option(
        "--bootstrap-servers",
        "kafka_bootstrap_servers",
        metavar="HOST:PORT",
        help="Kafka brokers; default KAFKA_BOOTSTRAP_SERVERS.",
    )
    @wraps(command)
    def with_settings(
        *, kafka_bootstrap_servers: str | None, schema_registry_url: str | None = None, **options: Any
    ) -> Any:
        settings = load_settings(
            kafka_bootstrap_servers=kafka_bootstrap_servers, schema_registry_url=schema_registry_url
        )
        return command(settings=settings, **options)

    return with_settings


def kafka_and_registry_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add options for Kafka and the schema registry to ``command``, and call ``command`` with the ``settings``."""
    return kafka_settings(registry_option(command))


def require_packages(*packages: str) -> None:
    """Raise ModuleNotFoundError if a package is missing; `main` then names the extra to install."""
    for name in packages:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)


def load_settings(*, log_level: str | None = None, **flags: Any) -> settings.Settings:
    """Load the settings, apply a command's flags, and configure logging.

    ``log_level`` replaces the configured level, for commands that print the logged facts themselves. ``--debug``
    overrides both levels.
    """
    loaded = settings.load().with_flags(**flags)
    hide(loaded.secrets())
    context = click.get_current_context(silent=True)
    debug = bool(context and (context.find_root().obj or {}).get("debug"))
    telemetry.configure_logging("DEBUG" if debug else log_level or loaded.log_level, loaded.log_format)
    restrict_to_owner(loaded.home)
    return loaded


def echo_json(value: Any) -> None:
    """Print one JSON document on one line, without the secrets of the settings."""
    echo(json_text(value))


def pluralize(count: int, plural: str) -> str:
    """Return a number with its noun: "1 message", "2 messages"."""
    return f"{count} {plural.removesuffix('s') if count == 1 else plural}"


def format_records(records: int | None, offsets: int) -> str:
    """Return the number of a topic's records for a table: ``records``, or "≤ ``offsets``" if they were not counted."""
    return f"≤ {offsets}" if records is None else str(records)


def examples(text: str) -> Callable[[Any], Any]:
    """Add examples to the end of a command's --help, one per line."""

    def attach(command: Any) -> Any:
        command.epilog = "\b\nExamples:\n" + indent(text.strip("\n"), "  ")
        return command

    return attach
