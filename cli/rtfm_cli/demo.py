"""`rtfm-cli demo`: shows the whole journey on this machine, with a sample chat.

After the start of Kafka, the registry, Chroma and PostgreSQL, each step is a command that a person could type. The demo
runs each command in its own process. The demo has its own topic prefix, ``demo.``, and its own database. Therefore the
demo does not change the topics, contracts, collections and archive of another installation.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
from attrs import frozen
from rich.console import Console
from rich.padding import Padding

from rtfm.errors import ConfigError, RtfmError, Unavailable
from rtfm.knowledge.evaluation import LabelledQuestion, read_questions
from rtfm.local.services import create_database
from rtfm.local.stack import LocalStack
from rtfm.settings import Settings
from rtfm_cli import exit_codes
from rtfm_cli.ask import unescape_markdown
from rtfm_cli.local import download_progress, offer_model, open_stack
from rtfm_cli.options import echo_json, examples, json_option, load_settings
from rtfm_cli.tables import styled

SAMPLE = Path(__file__).parent / "sample"
PREFIX = "demo."
DATABASE = "rtfm_demo"
MIN_RIGHT_ANSWERS = 4
"""At least this many of the five answers must be right, with or without the embedding model."""

STOP_TIMEOUT_S = 20.0


@frozen(kw_only=True)
class Reply:
    """The output of `rtfm-cli ask --json` for a question; if the command failed, ``answer`` is the error."""

    question: LabelledQuestion
    outcome: str
    answer: str
    citations: tuple[Mapping[str, Any], ...]
    elapsed_ms: int

    @property
    def is_answered(self) -> bool:
        """Whether the outcome is ANSWERED or EXTRACTED."""
        return self.outcome in ("ANSWERED", "EXTRACTED")

    @property
    def is_right(self) -> bool:
        """Whether the answer cites one of the messages that are relevant to the question."""
        cited = {str(citation["message_id"]) for citation in self.citations}
        return self.is_answered and bool(cited & self.question.relevant)


@examples("""
rtfm-cli demo
rtfm-cli demo --keep                # leaves the services running
rtfm-cli demo --json
""")
@click.command()
@click.option("--keep", is_flag=True, help="Do not stop the services that the demo started.")
@json_option
def demo(keep: bool, as_json: bool) -> int:
    """Show the whole journey on this machine, with sample data.

    Starts Kafka, the registry, Chroma and PostgreSQL unless they run already, imports a sample chat through
    discord-messages, and asks five questions through bot-queries. The first run fetches Kafka, the registry (200 MB)
    and the embedding model (80 MB). Your own topics and archive are not changed. Exits with 1 if fewer than four
    answers link to the right conversation.
    """
    began = time.monotonic()
    console = Console(stderr=as_json, highlight=False)
    settings = load_settings()
    stack = open_stack()
    with _running_services(console, stack, keep=keep):
        environment = _build_environment(stack)
        offer_model(stack.home)
        _prepare(console, environment)
        with _running_processor(settings, environment):
            _import_sample(console, environment)
            mode = _prepare_search(console, environment)
            replies = [_ask_question(console, environment, question) for question in questions()]
        dead_letters = len(json.loads(_run_command(environment, "dlq", "list", "--json"))["dead_letters"])

    summary: dict[str, Any] = {
        "questions": len(replies),
        "answered": sum(reply.is_answered for reply in replies),
        "right": sum(reply.is_right for reply in replies),
        "dead_letters": dead_letters,
        "mode": mode,
        "seconds": round(time.monotonic() - began, 1),
    }
    last = (
        "{right} of {questions} answers link to the right conversation, {dead_letters} dead letters,"
        " {mode} search, {seconds} s".format(**summary)
    )
    console.print()
    console.print(styled(last, "bold"))
    if as_json:
        echo_json(summary)
    return exit_codes.DONE if summary["right"] >= MIN_RIGHT_ANSWERS else exit_codes.CHECK_FAILED


def exports() -> list[Path]:
    """Return the files of the sample chat, one per channel."""
    return sorted(SAMPLE.glob("*.json"))


def questions() -> list[LabelledQuestion]:
    """Return the five questions that the demo asks."""
    return read_questions(SAMPLE / "questions.jsonl")


@contextmanager
def _running_services(console: Console, stack: LocalStack, *, keep: bool) -> Iterator[None]:
    """Run the local dependencies during the block; then stop those that did not run before, unless ``keep``."""
    before = {service.name for service in stack.status() if service.state == "running"}
    started = [service.name for service in stack.status() if service.name not in before]
    try:
        with _step(console, "Kafka, schema registry, Chroma and PostgreSQL", "rtfm-cli local up", spinner=False):
            with download_progress() as progress:
                stack.up(progress=progress)
        yield
    finally:
        if started and not keep:
            stack.down(started)


def _build_environment(stack: LocalStack) -> dict[str, str]:
    """Return the environment of every command: this process's variables, with the addresses and names of the demo."""
    address = {service.name: service.address for service in stack.status()}
    server = address["postgres"].rpartition("/")[0]
    create_database(server, DATABASE)
    return {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": address["kafka"],
        "KAFKA_TOPIC_PREFIX": PREFIX,
        "KAFKA_REPLICATION_FACTOR": "1",
        "SCHEMA_REGISTRY_URL": address["schema-registry"],
        "CHROMA_URL": address["chroma"],
        "DATABASE_URL": f"{server}/{DATABASE}",
        "METRICS_PORT": "0",
        "LOG_FORMAT": "console",
    }


def _prepare(console: Console, environment: Mapping[str, str]) -> None:
    with _step(console, "Topics", "rtfm-cli topics init"):
        _run_command(environment, "topics", "init")
    with _step(console, "Avro contracts", "rtfm-cli schemas register"):
        _run_command(environment, "schemas", "register")


@contextmanager
def _running_processor(settings: Settings, environment: Mapping[str, str]) -> Iterator[None]:
    """Run a processor in its own process during the block; then let it finish its records and end."""
    log = settings.home / "log" / "demo-processor.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_PROGRAM, "run", "processor"],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C on the terminal reaches only the demo, which then stops the processor.
            start_new_session=True,
        )
    try:
        yield
    except RtfmError as exc:
        if process.poll() is not None:
            raise RtfmError(f"the processor ended with {process.returncode}", hint=f"read its log, {log}") from exc
        raise
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _import_sample(console: Console, environment: Mapping[str, str]) -> None:
    files = exports()
    with _step(console, f"Sample chat, {len(files)} channels", "rtfm-cli import cli/rtfm_cli/sample/*.json"):
        done = json.loads(_run_command(environment, "import", "--json", *map(str, files)))
        if not done["ingested"]:
            raise RtfmError("the processor did not ingest the sample chat")

    console.print(styled(f"  {done['messages']} messages through {PREFIX}discord-messages into the archive", "dim"))


def _prepare_search(console: Console, environment: Mapping[str, str]) -> str:
    """Return the search mode. Rebuild first if an earlier run left no vectors, or vectors of another model."""
    search = ("search", "--json", "--limit", "1", "backup")
    found = json.loads(_run_command(environment, *search))
    if "rebuild_due" in found:
        with _step(console, "Vectors of this embedding model", "rtfm-cli rebuild"):
            _run_command(environment, "rebuild", "--json")
        found = json.loads(_run_command(environment, *search))
    return str(found["mode"])


def _ask_question(console: Console, environment: Mapping[str, str], question: LabelledQuestion) -> Reply:
    console.print()
    console.print(styled("? ", "bold cyan") + styled(question.question, "bold"))
    with console.status("through demo.bot-queries and back …"):
        reply = _fetch_reply(environment, question)
    mark = styled("  ✓ ", "green") if reply.is_right else styled("  ✗ ", "red")
    console.print(Padding(styled(unescape_markdown(reply.answer), newlines=True), (0, 0, 0, 2)))
    for citation in reply.citations:
        console.print(styled(f"  [{citation['number']}] {citation['url']}", "dim"), soft_wrap=True)
    console.print(mark + styled(f"{reply.outcome.lower()} in {reply.elapsed_ms} ms", "dim"))
    return reply


def _fetch_reply(environment: Mapping[str, str], question: LabelledQuestion) -> Reply:
    try:
        # With the outcomes FAILED and UNKNOWN, the command exits with 1 and prints its JSON as for other outcomes.
        printed = json.loads(
            _run_command(
                environment, "ask", "--json", question.question, allowed=(exit_codes.DONE, exit_codes.CHECK_FAILED)
            )
        )
    except Unavailable as exc:
        return Reply(question=question, outcome="NONE", answer=str(exc), citations=(), elapsed_ms=0)
    return Reply(
        question=question,
        outcome=printed["outcome"],
        answer=printed["answer"],
        citations=tuple(printed["citations"]),
        elapsed_ms=round(printed["elapsed_ms"]),
    )


# Runs `rtfm-cli` with the interpreter and installation of this process, wherever the rtfm-cli script is.
_PROGRAM = (sys.executable, "-c", "from rtfm_cli.main import main; main()")


def _run_command(environment: Mapping[str, str], *arguments: str, allowed: tuple[int, ...] = (0,)) -> str:
    """Run a command and return its standard output.

    If the exit code is not in ``allowed``, or if nothing was printed, raises the error that the code stands for.
    """
    done = subprocess.run(
        [*_PROGRAM, *arguments],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode in allowed and done.stdout.strip():
        return done.stdout
    lines = dict(line.split(": ", 1) for line in done.stderr.splitlines() if line.startswith(("Error: ", "Hint: ")))
    message = f"rtfm-cli {arguments[0]}: {lines.get('Error', f'exit code {done.returncode}')}"
    match done.returncode:
        case exit_codes.USAGE:
            raise ConfigError(message, hint=lines.get("Hint"))
        case exit_codes.UNREACHABLE:
            raise Unavailable("demo", message, hint=lines.get("Hint"))
        case _:
            raise RtfmError(message, hint=lines.get("Hint"))


@contextmanager
def _step(console: Console, what: str, command: str, *, spinner: bool = True) -> Iterator[None]:
    """Print a line with the time that the block took, unless it fails. With ``spinner``, show a spinner meanwhile."""
    began = time.monotonic()
    with console.status(f"{what} …") if spinner else nullcontext():
        yield
    took = styled(f" ({command}, {time.monotonic() - began:.1f} s)", "dim")
    console.print(styled("✓ ", "green") + styled(what) + took)
