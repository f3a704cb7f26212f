"""`rtfm-cli doctor`: what keeps this installation from working, each finding with its mend."""

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

ROOM_BYTES = 1_000_000_000
"""Downloads take 0.5 GB, an archive of 100,000 messages about as much."""

MAX_CLOCK_GAP_S = 5.0
"""Answers expire by the clock; a gap that is seen by a reader of dates in whole seconds."""


@frozen
class Finding:
    """What a check found: ``state`` is ``ok``, ``note`` (works, with less) or ``wrong``; ``mend`` says what to do."""

    state: str
    detail: str
    mend: str | None = None


@examples("""
rtfm-cli doctor
rtfm-cli doctor --fetch-model
rtfm-cli doctor --json
""")
@click.command()
@click.option("--fetch-model", is_flag=True, help="Fetch the embedding model first (80 MB).")
@json_option
def doctor(fetch_model: bool, as_json: bool) -> int:
    """Check configuration and surroundings, with a mend for each finding.

    Changes nothing, unless told to fetch the model. Exits with 1 when something is wrong.
    """
    settings = load_settings()
    if fetch_model:
        with download_progress() as progress:
            model.fetch(settings.home, url=settings.embedding_model_url, progress=progress)
    findings = dict(examine(settings))
    failed = any(finding.state == "wrong" for finding in findings.values())
    if as_json:
        echo_json(
            {"ok": not failed, "findings": [{"check": name, **asdict(found)} for name, found in findings.items()]}
        )
    else:
        _show(findings)
    return exit_codes.CHECK_FAILED if failed else exit_codes.DONE


def examine(settings: Settings) -> Iterator[tuple[str, Finding]]:
    """Make every check (its name, what it found), one after the other; none of them changes anything."""
    for name, check in _CHECKS.items():
        try:
            yield name, check(settings)
        except RtfmError as exc:
            yield name, Finding("wrong", redact(str(exc)), exc.hint)


def _python(_settings: Settings) -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("ok", f"{version} in {sys.prefix}")


def _room(settings: Settings) -> Finding:
    folder = settings.home.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free in {folder}"
    if free < ROOM_BYTES:
        return Finding("wrong", detail, "make room, or set RTFM_HOME to a folder on another disk")
    return Finding("ok", detail)


def _topics(settings: Settings) -> Finding:
    plan = TopicAdmin(settings, catalogue.load(settings.schemas_dir)).plan()
    changes = [f"{step.topic}: {step.action}" for step in plan if step.action != "none"]
    if changes:
        return Finding("wrong", "; ".join(changes), "rtfm-cli topics init")
    where = settings.kafka_bootstrap_servers
    if defect := release.defect(where):
        return Finding(
            "note",
            f"{where} is {defect}",
            "run Kafka 4.2.2 or older, or a release whose notes say that KAFKA-20734 is fixed",
        )
    return Finding("ok", f"{len(plan)} topics as they should be at {where}")


def _schemas(settings: Settings) -> Finding:
    with closing(contracts.open_registry(settings)) as registry:
        plan = registration.plan(catalogue.load(settings.schemas_dir), registry)
    changes = [f"{item.subject}: {item.change}" for item in plan if item.has_changes]
    if changes:
        return Finding("wrong", "; ".join(changes), "rtfm-cli schemas register")
    return Finding("ok", f"{len(plan)} contracts registered at {redact_address(settings.schema_registry_url)}")


def _strays(settings: Settings) -> Finding:
    try:
        with closing(contracts.open_registry(settings)) as registry:
            found = strays.find(catalogue.load(settings.schemas_dir), registry)
    except Unavailable:
        return Finding("note", "not looked at: the registry does not answer")
    if not found:
        return Finding("ok", "the registry holds released versions only")
    state = "wrong" if any(stray.breaks for stray in found) else "note"
    messages, commands = [stray.message for stray in found], [stray.command() for stray in found]
    return Finding(state, "\n".join(messages), "\n".join(commands))


def _archive(settings: Settings) -> Finding:
    with closing(SqlArchive(settings.database_url)) as archive:
        archive.check()
    return Finding("ok", "PostgreSQL answers and has the tables")


def _vectors(settings: Settings) -> Finding:
    with closing(ChromaVectors(settings.chroma_url, settings.kafka_topic_prefix)) as vectors:
        vectors.check()
    return Finding("ok", f"answers at {redact_address(settings.chroma_url)}")


def _model(settings: Settings) -> Finding:
    folder = settings.embedding_model_dir or default_model_dir(settings.home)
    if model_folder(folder) is not None:
        return Finding("ok", str(folder))
    if settings.embedding_model_dir is not None:
        return Finding(
            "wrong",
            f"{folder} is no folder of the model",
            "set RTFM_EMBEDDING_MODEL_DIR to one that holds model.onnx and tokenizer.json, or to nothing",
        )
    return Finding("note", f"not in {folder}: search is lexical", "rtfm-cli doctor --fetch-model")


def _due(settings: Settings) -> Finding:
    """Whether the vectors are those of the model: without them search goes by words though the model is there."""
    try:
        due = rebuilding.due_by(settings)
    except RtfmError:
        return Finding("note", "not looked at: what keeps them does not answer")
    if due:
        guilds = "; ".join(
            f"{f'guild {guild_id}' if guild_id else 'direct messages'}: {why}" for guild_id, why in due.items()
        )
        return Finding("note", guilds, "rtfm-cli rebuild")
    return Finding("ok", "those of all guilds are as they should be")


def _clock(settings: Settings) -> Finding:
    """The registry's clock against this one: services of one system must agree on when a question expires."""
    try:
        reply = httpx.head(settings.schema_registry_url, timeout=2)
        theirs = parsedate_to_datetime(reply.headers["Date"]).timestamp()
    except (httpx.HTTPError, KeyError, ValueError):
        return Finding("note", "no server to compare it with")
    gap_s = abs(time.time() - theirs)
    if gap_s > MAX_CLOCK_GAP_S:
        return Finding("wrong", f"{gap_s:.0f} s away from the registry's", "set both machines' clocks by NTP")
    return Finding("ok", "agrees with the registry's")


def _discord(settings: Settings) -> Finding:
    if settings.discord_token is None:
        return Finding("note", "no token: the bot cannot start", "set DISCORD_TOKEN in .env")
    return Finding("ok", "a token is set")


def _provider(settings: Settings) -> Finding:
    provider = chosen_provider(settings)
    if provider is None:
        return Finding("note", "none: answers are extracts", "set GEMINI_API_KEY in .env")
    return Finding("ok", provider.describe(settings))


_CHECKS: dict[str, Callable[[Settings], Finding]] = {
    "python": _python,
    "room": _room,
    "kafka": _topics,
    "schema registry": _schemas,
    "stray versions": _strays,
    "archive": _archive,
    "chroma": _vectors,
    "embedding model": _model,
    "vectors": _due,
    "clock": _clock,
    "discord": _discord,
    "model provider": _provider,
}


def _show(findings: dict[str, Finding]) -> None:
    width = max(map(len, findings))
    for name, finding in findings.items():
        color = {"ok": "green", "note": "yellow", "wrong": "red"}[finding.state]
        first, *others = finding.detail.split("\n")
        echo(finding.state.ljust(5), fg=color, nl=False)
        echo(f" {name.ljust(width)}  {escape_unprintable(first)}")
        for line in others:
            echo(f"{' ' * (width + 8)}{escape_unprintable(line)}")
        for line in finding.mend.split("\n") if finding.mend else ():
            echo(f"{' ' * (width + 8)}→ {escape_unprintable(line)}")
