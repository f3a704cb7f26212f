"""`rtfm-cli doctor`: finds what keeps this installation from working, and names the fix."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from email.utils import parsedate_to_datetime

import click
import httpx
from attrs import asdict, frozen

from rtfm import contracts
from rtfm.addresses import redact_address
from rtfm.answering.providers import chosen_provider
from rtfm.contracts import catalogue, registration, strays
from rtfm.errors import RtfmError, Unavailable
from rtfm.knowledge import rebuilding
from rtfm.knowledge.archive import SqlArchive
from rtfm.knowledge.embedding import default_model_dir, model_folder
from rtfm.knowledge.vectors import ChromaVectors
from rtfm.local import model
from rtfm.redaction import redact
from rtfm.settings import Settings
from rtfm.streams import release
from rtfm.streams.topics import TopicAdmin
from rtfm_cli import exit_codes
from rtfm_cli.local import download_progress
from rtfm_cli.options import echo_json, examples, json_option, load_settings
from rtfm_cli.printing import echo, escape_unprintable

MIN_FREE_BYTES = 1_000_000_000
"""Free disk space that RTFM needs, in bytes: 0.5 GB for downloads, and 0.5 GB for an archive of 100,000 messages."""

MAX_CLOCK_DIFFERENCE_S = 5.0
"""This machine's clock may differ from the registry's clock by up to this many seconds.

The clocks must agree, because questions expire by the clock. The limit is well above the resolution of the Date header,
which is a second.
"""


@frozen
class CheckResult:
    """The result of a check.

    ``state`` is ``ok``, ``note`` (RTFM works, but lacks something) or ``wrong``; ``fix`` says what to do.
    """

    state: str
    detail: str
    fix: str | None = None


@examples("""
rtfm-cli doctor
rtfm-cli doctor --fetch-model
rtfm-cli doctor --json
""")
@click.command()
@click.option("--fetch-model", is_flag=True, help="Fetch the embedding model first (80 MB).")
@json_option
def doctor(fetch_model: bool, as_json: bool) -> int:
    """Check the configuration and the dependencies, and name fixes.

    Without --fetch-model, changes nothing. (Like every command, doctor removes the rights of other users from
    RTFM_HOME.) Exits with 1 if something is wrong, for example if a dependency does not answer.
    """
    settings = load_settings()
    if fetch_model:
        with download_progress() as progress:
            model.fetch(settings.home, url=settings.embedding_model_url, progress=progress)
    results = dict(run_checks(settings))
    failed = any(result.state == "wrong" for result in results.values())
    if as_json:
        echo_json(
            {"ok": not failed, "findings": [{"check": name, **asdict(result)} for name, result in results.items()]}
        )
    else:
        _print_results(results)
    return exit_codes.CHECK_FAILED if failed else exit_codes.DONE


def run_checks(settings: Settings) -> Iterator[tuple[str, CheckResult]]:
    """Run the checks one after another, and yield the name and the result of each check. No check changes anything."""
    for name, check in _CHECKS.items():
        try:
            yield name, check(settings)
        except RtfmError as exc:
            yield name, CheckResult("wrong", redact(str(exc)), exc.hint)


def _check_python(_settings: Settings) -> CheckResult:
    version = ".".join(map(str, sys.version_info[:3]))
    return CheckResult("ok", f"{version} in {sys.prefix}")


def _check_disk_space(settings: Settings) -> CheckResult:
    folder = settings.home.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free in {folder}"
    if free < MIN_FREE_BYTES:
        return CheckResult("wrong", detail, "free disk space, or set RTFM_HOME to a folder on another disk")
    return CheckResult("ok", detail)


def _check_topics(settings: Settings) -> CheckResult:
    plan = TopicAdmin(settings, catalogue.load(settings.schemas_dir)).plan()
    changes = [f"{step.topic}: {step.action}" for step in plan if step.action != "none"]
    if changes:
        return CheckResult("wrong", "; ".join(changes), "rtfm-cli topics init")
    where = settings.kafka_bootstrap_servers
    if defect := release.find_defect(where):
        return CheckResult(
            "note",
            f"{where} is {defect}",
            "run Kafka 4.2.2 or older, or a release whose notes say that KAFKA-20734 is fixed",
        )
    return CheckResult("ok", f"{len(plan)} topics are up to date at {where}")


def _check_schemas(settings: Settings) -> CheckResult:
    with closing(contracts.open_registry(settings)) as registry:
        plan = registration.plan(catalogue.load(settings.schemas_dir), registry)
    changes = [f"{item.subject}: {item.change}" for item in plan if item.has_changes]
    if changes:
        return CheckResult("wrong", "; ".join(changes), "rtfm-cli schemas register")
    return CheckResult("ok", f"{len(plan)} contracts registered at {redact_address(settings.schema_registry_url)}")


def _check_strays(settings: Settings) -> CheckResult:
    try:
        with closing(contracts.open_registry(settings)) as registry:
            found = strays.find(catalogue.load(settings.schemas_dir), registry)
    except Unavailable:
        return CheckResult("note", "not checked, because the registry does not answer")
    if not found:
        return CheckResult("ok", "the registry has only released versions")
    state = "wrong" if any(stray.breaks for stray in found) else "note"
    messages, commands = [stray.message for stray in found], [stray.command() for stray in found]
    return CheckResult(state, "\n".join(messages), "\n".join(commands))


def _check_archive(settings: Settings) -> CheckResult:
    with closing(SqlArchive(settings.database_url)) as archive:
        archive.check()
    return CheckResult("ok", "PostgreSQL answers and has the tables")


def _check_chroma(settings: Settings) -> CheckResult:
    with closing(ChromaVectors(settings.chroma_url, settings.kafka_topic_prefix)) as vectors:
        vectors.check()
    return CheckResult("ok", f"answers at {redact_address(settings.chroma_url)}")


def _check_model(settings: Settings) -> CheckResult:
    folder = settings.embedding_model_dir or default_model_dir(settings.home)
    if model_folder(folder) is not None:
        return CheckResult("ok", str(folder))
    if settings.embedding_model_dir is not None:
        return CheckResult(
            "wrong",
            f"{folder} does not have the model's files",
            "set RTFM_EMBEDDING_MODEL_DIR to a folder with model.onnx and tokenizer.json, or leave it empty",
        )
    return CheckResult("note", f"no model in {folder}: RTFM uses keyword search", "rtfm-cli doctor --fetch-model")


def _check_vectors(settings: Settings) -> CheckResult:
    """Check that the present embedding model made the vectors. Otherwise RTFM uses keyword search."""
    try:
        due = rebuilding.find_due_for(settings)
    except RtfmError:
        return CheckResult("note", "not checked, because the archive or Chroma does not answer")
    if due:
        guilds = "; ".join(
            f"{f'guild {guild_id}' if guild_id else 'direct messages'}: {why}" for guild_id, why in due.items()
        )
        return CheckResult("note", guilds, "rtfm-cli rebuild")
    return CheckResult("ok", "up to date in all guilds")


def _check_clock(settings: Settings) -> CheckResult:
    """Compare this clock with the registry's, because all services must agree on when a question expires."""
    try:
        reply = httpx.head(settings.schema_registry_url, timeout=2)
        theirs = parsedate_to_datetime(reply.headers["Date"]).timestamp()
    except (httpx.HTTPError, KeyError, ValueError):
        return CheckResult("note", "not checked, because the registry does not tell its time")
    difference_s = abs(time.time() - theirs)
    if difference_s > MAX_CLOCK_DIFFERENCE_S:
        return CheckResult(
            "wrong",
            f"differs from the registry's clock by {difference_s:.0f} s",
            "set the clocks of both machines by NTP",
        )
    return CheckResult("ok", "agrees with the registry's clock")


def _check_discord(settings: Settings) -> CheckResult:
    if settings.discord_token is None:
        return CheckResult("note", "no token, so the bot cannot start", "set DISCORD_TOKEN in .env")
    return CheckResult("ok", "a token is set")


def _check_provider(settings: Settings) -> CheckResult:
    provider = chosen_provider(settings)
    if provider is None:
        return CheckResult("note", "no key, so answers are extracts (quotes)", "set GEMINI_API_KEY in .env")
    return CheckResult("ok", provider.describe(settings))


_CHECKS: dict[str, Callable[[Settings], CheckResult]] = {
    "python": _check_python,
    "room": _check_disk_space,
    "kafka": _check_topics,
    "schema registry": _check_schemas,
    "stray versions": _check_strays,
    "archive": _check_archive,
    "chroma": _check_chroma,
    "embedding model": _check_model,
    "vectors": _check_vectors,
    "clock": _check_clock,
    "discord": _check_discord,
    "model provider": _check_provider,
}


def _print_results(results: dict[str, CheckResult]) -> None:
    width = max(map(len, results))
    for name, result in results.items():
        color = {"ok": "green", "note": "yellow", "wrong": "red"}[result.state]
        first, *others = result.detail.split("\n")
        echo(result.state.ljust(5), fg=color, nl=False)
        echo(f" {name.ljust(width)}  {escape_unprintable(first)}")
        for line in others:
            echo(f"{' ' * (width + 8)}{escape_unprintable(line)}")
        for line in result.fix.split("\n") if result.fix else ():
            echo(f"{' ' * (width + 8)}→ {escape_unprintable(line)}")
