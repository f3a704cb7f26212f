"""`rtfm-cli run`: runs one of the two services.

A service is imported only in its own command, because the packages of the other service need not be installed.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from rtfm.settings import Settings
from rtfm.streams.pipeline import Unfinished
from rtfm_cli import exit_codes
from rtfm_cli.options import examples, kafka_and_registry_settings, require_packages
from rtfm_cli.printing import echo

if TYPE_CHECKING:
    from rtfm.processor.service import Part


@click.group()
def run() -> None:
    """Run a service until SIGTERM or Ctrl-C. Then the service finishes the records that it has started and ends."""


@examples("""
rtfm-cli run processor
METRICS_PORT=9100 rtfm-cli run processor --only answer
""")
@run.command("processor")
@click.option(
    "--only",
    type=click.Choice(["ingest", "answer"]),
    help="Run only one of the two pipelines: ingest archives messages, answer answers questions.",
)
@kafka_and_registry_settings
def processor(only: Part | None, settings: Settings) -> None:
    """Run the processor: archive messages and answer questions."""
    require_packages("onnxruntime", "chromadb", "sqlalchemy")
    from rtfm.processor.service import run_processor

    try:
        run_processor(settings, only)
    except Unfinished as exc:
        echo(f"Error: {exc}\nHint: {exc.hint}", err=True)
        # A thread that still runs would keep the interpreter from ending, so the process is ended directly.
        sys.stderr.flush()
        os._exit(exit_codes.CHECK_FAILED)


@examples("""
rtfm-cli run bot
DISCORD_TOKEN=… METRICS_PORT=9101 rtfm-cli run bot
""")
@run.command("bot")
@kafka_and_registry_settings
def bot(settings: Settings) -> None:
    """Run the Discord bot.

    The bot connects with DISCORD_TOKEN, publishes messages and questions to Kafka, and posts the answers. A running
    processor is needed for the answers.
    """
    require_packages("discord", "sqlalchemy")
    from rtfm.bot.service import run_bot

    run_bot(settings)
