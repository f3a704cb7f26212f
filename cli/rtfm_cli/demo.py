"""`rtfm-cli demo`: the whole journey on this machine, with a sample chat.

Every step is a command that a person could type, run in a process of its own against the local services. Topics,
contracts and collections carry the prefix ``demo.`` and the archive is a database of its own, so that what is there
already stays untouched.
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
from rtfm_cli.ask import readable
from rtfm_cli.local import download_progress, offer_model, open_stack
from rtfm_cli.options import echo_json, json_option, load_settings
from rtfm_cli.tables import words

SAMPLE = Path(__file__).parent / "sample"
PREFIX = "demo."
DATABASE = "rtfm_demo"
RIGHT_ENOUGH = 4
"""Of the five questions; what the demo promises with the embedding model and without it."""

STOP_TIMEOUT_S = 20.0


@frozen(kw_only=True)
class Reply:
    """What `rtfm-cli ask --json` printed for a question, or why it printed nothing."""

    question: LabelledQuestion
    outcome: str
    answer: str
    citations: tuple[Mapping[str, Any], ...]
    elapsed_ms: int

    @property
    def answered(self) -> bool:
        """Whether there is an answer at all."""
        return self.outcome in ("ANSWERED", "EXTRACTED")

    @property
    def right(self) -> bool:
        """Whether the answer links to the conversation that holds it."""
        cited = {str(citation["message_id"]) for citation in self.citations}
        return self.answered and bool(cited & self.question.relevant)


@click.command()
@click.option("--keep", is_flag=True, help="Leave the services running that the demo started.")
@json_option
def demo(keep: bool, as_json: bool) -> int:
    """Show the whole journey on this machine, with sample data.

    Starts Kafka, the registry, Chroma and PostgreSQL unless they run already, imports a sample chat through
    discord-messages, and asks five questions through bot-queries. The first time it fetches about 200 MB. Your own
    topics and archive stay as they are. Exits with 1 when fewer than four answers link to the right conversation.
    """
    began = time.monotonic()
    console = Console(stderr=as_json, highlight=False)
    settings = load_settings()
    stack = open_stack()
    with _services(console, stack, keep=keep):
        environment = _environment(stack)
        offer_model(stack.home)
        _prepare(console, environment)
        with _processor(settings, environment):
            _import(console, environment)
            mode = _search_mode(console, environment)
            replies = [_ask(console, environment, question) for question in questions()]
        dead_letters = len(json.loads(_cli(environment, "dlq", "list", "--json"))["dead_letters"])

    summary: dict[str, Any] = {
        "questions": len(replies),
        "answered": sum(reply.answered for reply in replies),
        "right": sum(reply.right for reply in replies),
        "dead_letters": dead_letters,
        "mode": mode,
        "seconds": round(time.monotonic() - began, 1),
    }
    last = (
        "{right} of {questions} answers link to the right conversation, {dead_letters} dead letters,"
        " {mode} search, {seconds} s".format(**summary)
    )
    console.print()
    console.print(words(last, "bold"))
    if as_json:
        echo_json(summary)
    return exit_codes.DONE if summary["right"] >= RIGHT_ENOUGH else exit_codes.CHECK_FAILED


def exports() -> list[Path]:
    """The files of the sample chat, one for each channel."""
    return sorted(SAMPLE.glob("*.json"))


def questions() -> list[LabelledQuestion]:
    """The five questions that the demo asks."""
    return read_questions(SAMPLE / "questions.jsonl")


@contextmanager
def _services(console: Console, stack: LocalStack, *, keep: bool) -> Iterator[None]:
    """The local services, running; those that did not run before are stopped at the end unless ``keep``."""
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


def _environment(stack: LocalStack) -> dict[str, str]:
    """The environment of every step: this one, with the demo's own addresses and names."""
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
        _cli(environment, "topics", "init")
    with _step(console, "Avro contracts", "rtfm-cli schemas register"):
        _cli(environment, "schemas", "register")


@contextmanager
def _processor(settings: Settings, environment: Mapping[str, str]) -> Iterator[None]:
    """A processor in a process of its own; it drains and ends with the block."""
    log = settings.home / "log" / "demo-processor.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_PROGRAM, "run", "processor"],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A Ctrl-C on the terminal is for the demo, which then ends the processor in order.
            start_new_session=True,
        )
    try:
        yield
    except RtfmError as exc:
        if process.poll() is not None:
            raise RtfmError(f"the processor ended with {process.returncode}", hint=f"its log is {log}") from exc
        raise
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _import(console: Console, environment: Mapping[str, str]) -> None:
    files = exports()
    with _step(console, f"Sample chat, {len(files)} channels", "rtfm-cli import cli/rtfm_cli/sample/*.json"):
        done = json.loads(_cli(environment, "import", "--json", *map(str, files)))
        if not done["ingested"]:
            raise RtfmError("the processor did not take the sample chat")

    console.print(words(f"  {done['messages']} messages through {PREFIX}discord-messages into the archive", "dim"))


def _search_mode(console: Console, environment: Mapping[str, str]) -> str:
    """How the sample chat is searched; an earlier run may have left it without vectors, or with another model's."""
    search = ("search", "--json", "--limit", "1", "backup")
    found = json.loads(_cli(environment, *search))
    if "rebuild_due" in found:
        with _step(console, "Vectors made anew for this embedding model", "rtfm-cli rebuild"):
            _cli(environment, "rebuild", "--json")
        found = json.loads(_cli(environment, *search))
    return str(found["mode"])


def _ask(console: Console, environment: Mapping[str, str], question: LabelledQuestion) -> Reply:
    console.print()
    console.print(words("? ", "bold cyan") + words(question.question, "bold"))
    with console.status("through demo.bot-queries and back …"):
        reply = _reply(environment, question)
    mark = words("  ✓ ", "green") if reply.right else words("  ✗ ", "red")
    console.print(Padding(words(readable(reply.answer), newlines=True), (0, 0, 0, 2)))
    for citation in reply.citations:
        console.print(words(f"  [{citation['number']}] {citation['url']}", "dim"), soft_wrap=True)
    console.print(mark + words(f"{reply.outcome.lower()} in {reply.elapsed_ms} ms", "dim"))
    return reply


def _reply(environment: Mapping[str, str], question: LabelledQuestion) -> Reply:
    try:
        # 1 is the outcome FAILED, printed as any other.
        printed = json.loads(
            _cli(environment, "ask", "--json", question.question, allowed=(exit_codes.DONE, exit_codes.CHECK_FAILED))
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


# The same interpreter and the same installation, wherever the script itself lies.
_PROGRAM = (sys.executable, "-c", "from rtfm_cli.main import main; main()")


def _cli(environment: Mapping[str, str], *arguments: str, allowed: tuple[int, ...] = (0,)) -> str:
    """The standard output of a command; an exit code that is not allowed raises the error that it stands for."""
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
    """A line for a step that went well, with its time; a spinner meanwhile unless the step shows its own progress."""
    began = time.monotonic()
    with console.status(f"{what} …") if spinner else nullcontext():
        yield
    took = words(f" ({command}, {time.monotonic() - began:.1f} s)", "dim")
    console.print(words("✓ ", "green") + words(what) + took)
