"""`rtfm-cli run`: the two services. Each is imported where it is run, for it has packages that the other does not."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from rtfm.streams.pipeline import Unfinished
from rtfm_cli import exit_codes
from rtfm_cli.options import bootstrap_servers_option, examples, load_settings, need, registry_option
from rtfm_cli.printing import echo

if TYPE_CHECKING:
    from rtfm.processor.service import Part


@click.group()
def run() -> None:
    """Run a service until SIGTERM or Ctrl-C; it then finishes what is in hand."""


@examples("""
rtfm-cli run processor
METRICS_PORT=9100 rtfm-cli run processor --only answer
""")
@run.command("processor")
@click.option("--only", type=click.Choice(["ingest", "answer"]), help="Do one of its two jobs.")
@bootstrap_servers_option
@registry_option
def processor(only: Part | None, kafka_bootstrap_servers: str | None, schema_registry_url: str | None) -> None:
    """Archive messages and answer questions."""
    need("onnxruntime", "chromadb", "sqlalchemy")
    from rtfm.processor.service import run_processor

    settings = load_settings(kafka_bootstrap_servers=kafka_bootstrap_servers, schema_registry_url=schema_registry_url)
    try:
        run_processor(settings, only)
    except Unfinished as exc:
        echo(f"Error: {exc}\nHint: {exc.hint}", err=True)
        # Threads that are still at work would keep the interpreter from ending.
        sys.stderr.flush()
        os._exit(exit_codes.CHECK_FAILED)


@run.command("bot")
@bootstrap_servers_option
@registry_option
def bot(kafka_bootstrap_servers: str | None, schema_registry_url: str | None) -> None:
    """Listen and reply on Discord, as the bot of DISCORD_TOKEN."""
    need("discord", "sqlalchemy")
    from rtfm.bot.service import run_bot

    settings = load_settings(kafka_bootstrap_servers=kafka_bootstrap_servers, schema_registry_url=schema_registry_url)
    run_bot(settings)
