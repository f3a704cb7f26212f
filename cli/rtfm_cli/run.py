"""`rtfm-cli run`: the two services. Each is imported where it is run, for it has packages that the other does not."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from rtfm.settings import Settings
from rtfm.streams.pipeline import Unfinished
from rtfm_cli import exit_codes
from rtfm_cli.options import examples, kafka_and_registry_settings, need
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
@kafka_and_registry_settings
def processor(only: Part | None, settings: Settings) -> None:
    """Archive messages and answer questions."""
    need("onnxruntime", "chromadb", "sqlalchemy")
    from rtfm.processor.service import run_processor

    try:
        run_processor(settings, only)
    except Unfinished as exc:
        echo(f"Error: {exc}\nHint: {exc.hint}", err=True)
        # Threads that are still at work would keep the interpreter from ending.
        sys.stderr.flush()
        os._exit(exit_codes.CHECK_FAILED)


@run.command("bot")
@kafka_and_registry_settings
def bot(settings: Settings) -> None:
    """Listen and reply on Discord, as the bot of DISCORD_TOKEN."""
    need("discord", "sqlalchemy")
    from rtfm.bot.service import run_bot

    run_bot(settings)
