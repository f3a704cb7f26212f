"""`rtfm-cli doctor`: what keeps this installation from working, each finding with its mend."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime

import click
import httpx
from attrs import frozen

from rtfm import contracts
from rtfm.addresses import shown
from rtfm.answering.providers import chosen_provider
from rtfm.contracts import catalogue, registration, strays
from rtfm.errors import RtfmError, Unavailable
from rtfm.knowledge import rebuilding
from rtfm.knowledge.archive import SqlArchive
from rtfm.knowledge.embedding import default_model_dir, model_folder
from rtfm.knowledge.vectors import ChromaVectors
from rtfm.local import model
from rtfm.redaction import redacted
from rtfm.settings import Settings
from rtfm.streams import release
from rtfm.streams.topics import TopicAdmin
from rtfm_cli import exit_codes
from rtfm_cli.local import download_progress
from rtfm_cli.options import echo_json, examples, json_option, load_settings
from rtfm_cli.printing import echo, printable

ROOM_BYTES = 1_000_000_000
"""Downloads take 0.5 GB, an archive of 100,000 messages about as much."""

MAX_CLOCK_GAP_S = 5.0
"""Answers expire by the clock; a gap that is seen by a reader of dates in whole seconds."""


@frozen(kw_only=True)
class Finding:
    """One check: ``state`` is ``ok``, ``note`` (works, with less) or ``wrong``; ``mend`` says what to do."""

    check: str
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
    findings = list(examine(settings))
    if as_json:
        echo_json(
            {
                "ok": all(finding.state != "wrong" for finding in findings),
                "findings": [
                    {"check": f.check, "state": f.state, "detail": f.detail, "mend": f.mend} for f in findings
                ],
            }
        )
    else:
        _show(findings)
    return exit_codes.CHECK_FAILED if any(finding.state == "wrong" for finding in findings) else exit_codes.DONE


def examine(settings: Settings) -> Iterator[Finding]:
    """Make every check, one after the other; none of them changes anything."""
    for name, check in _CHECKS.items():
        yield _examined(name, check, settings)


def _examined(name: str, check: Callable[[Settings], Finding], settings: Settings) -> Finding:
    try:
        return check(settings)
    except RtfmError as exc:
        return Finding(check=name, state="wrong", detail=redacted(str(exc)), mend=exc.hint)


def _python(_settings: Settings) -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(check="python", state="ok", detail=f"{version} in {sys.prefix}")


def _room(settings: Settings) -> Finding:
    folder = settings.home.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free in {folder}"
    if free < ROOM_BYTES:
        return Finding(
            check="room", state="wrong", detail=detail, mend="make room, or set RTFM_HOME to a folder on another disk"
        )
    return Finding(check="room", state="ok", detail=detail)


def _topics(settings: Settings) -> Finding:
    plan = TopicAdmin(settings, catalogue.load(settings.schemas_dir)).plan()
    changes = [f"{step.topic}: {step.action}" for step in plan if step.action != "none"]
    if changes:
        return Finding(check="kafka", state="wrong", detail="; ".join(changes), mend="rtfm-cli topics init")
    where = settings.kafka_bootstrap_servers
    if wrong := release.defect(where):
        return Finding(
            check="kafka",
            state="note",
            detail=f"{where} is {wrong}",
            mend="run Kafka 4.2.2 or older, or a release whose notes say that KAFKA-20734 is fixed",
        )
    return Finding(check="kafka", state="ok", detail=f"{len(plan)} topics as they should be at {where}")


def _schemas(settings: Settings) -> Finding:
    registry = contracts.open_registry(settings)
    try:
        plan = registration.plan(catalogue.load(settings.schemas_dir), registry)
    finally:
        registry.close()
    changes = [f"{item.subject}: {item.change}" for item in plan if item.changes]
    if changes:
        detail = "; ".join(changes)
        return Finding(check="schema registry", state="wrong", detail=detail, mend="rtfm-cli schemas register")
    return Finding(
        check="schema registry",
        state="ok",
        detail=f"{len(plan)} contracts registered at {shown(settings.schema_registry_url)}",
    )


def _strays(settings: Settings) -> Finding:
    registry = contracts.open_registry(settings)
    try:
        found = strays.find(catalogue.load(settings.schemas_dir), registry)
    except Unavailable:
        return Finding(check="stray versions", state="note", detail="not looked at: the registry does not answer")
    finally:
        registry.close()
    if not found:
        return Finding(check="stray versions", state="ok", detail="the registry holds released versions only")
    return Finding(
        check="stray versions",
        state="wrong" if any(stray.breaks for stray in found) else "note",
        detail="\n".join(stray.message for stray in found),
        mend="\n".join(stray.command() for stray in found),
    )


def _archive(settings: Settings) -> Finding:
    archive = SqlArchive(settings.database_url)
    try:
        archive.check()
    finally:
        archive.close()
    return Finding(check="archive", state="ok", detail="PostgreSQL answers and has the tables")


def _vectors(settings: Settings) -> Finding:
    vectors = ChromaVectors(settings.chroma_url, settings.kafka_topic_prefix)
    try:
        vectors.check()
    finally:
        vectors.close()
    return Finding(check="chroma", state="ok", detail=f"answers at {shown(settings.chroma_url)}")


def _model(settings: Settings) -> Finding:
    folder = settings.embedding_model_dir or default_model_dir(settings.home)
    if model_folder(folder) is not None:
        return Finding(check="embedding model", state="ok", detail=str(folder))
    if settings.embedding_model_dir is not None:
        return Finding(
            check="embedding model",
            state="wrong",
            detail=f"{folder} is no folder of the model",
            mend="set RTFM_EMBEDDING_MODEL_DIR to one that holds model.onnx and tokenizer.json, or to nothing",
        )
    return Finding(
        check="embedding model",
        state="note",
        detail=f"not in {folder}: search is lexical",
        mend="rtfm-cli doctor --fetch-model",
    )


def _due(settings: Settings) -> Finding:
    """Whether the vectors are those of the model: without them search goes by words though the model is there."""
    try:
        due = rebuilding.due_by(settings)
    except RtfmError:
        return Finding(check="vectors", state="note", detail="not looked at: what keeps them does not answer")
    if due:
        guilds = "; ".join(
            f"{f'guild {guild_id}' if guild_id else 'direct messages'}: {why}" for guild_id, why in due.items()
        )
        return Finding(check="vectors", state="note", detail=guilds, mend="rtfm-cli rebuild")
    return Finding(check="vectors", state="ok", detail="those of all guilds are as they should be")


def _clock(settings: Settings) -> Finding:
    """The registry's clock against this one: services of one system must agree on when a question expires."""
    try:
        reply = httpx.head(settings.schema_registry_url, timeout=2)
        theirs = parsedate_to_datetime(reply.headers["Date"]).timestamp()
    except (httpx.HTTPError, KeyError, ValueError):
        return Finding(check="clock", state="note", detail="no server to compare it with")
    gap_s = abs(time.time() - theirs)
    if gap_s > MAX_CLOCK_GAP_S:
        detail = f"{gap_s:.0f} s away from the registry's"
        return Finding(check="clock", state="wrong", detail=detail, mend="set both machines' clocks by NTP")
    return Finding(check="clock", state="ok", detail="agrees with the registry's")


def _discord(settings: Settings) -> Finding:
    if settings.discord_token is None:
        return Finding(
            check="discord", state="note", detail="no token: the bot cannot start", mend="set DISCORD_TOKEN in .env"
        )
    return Finding(check="discord", state="ok", detail="a token is set")


def _provider(settings: Settings) -> Finding:
    provider = chosen_provider(settings)
    if provider is None:
        mend = "set GEMINI_API_KEY in .env"
        return Finding(check="model provider", state="note", detail="none: answers are extracts", mend=mend)
    return Finding(check="model provider", state="ok", detail=provider.describe(settings))


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


def _show(findings: list[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        color = {"ok": "green", "note": "yellow", "wrong": "red"}[finding.state]
        first, *others = finding.detail.split("\n")
        echo(finding.state.ljust(5), fg=color, nl=False)
        echo(f" {finding.check.ljust(width)}  {printable(first)}")
        for line in others:
            echo(f"{' ' * (width + 8)}{printable(line)}")
        for line in finding.mend.split("\n") if finding.mend else ():
            echo(f"{' ' * (width + 8)}→ {printable(line)}")
