"""`rtfm-cli doctor`: what is wrong with this installation, each finding with its mend."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cli.options import echo_json, examples, json_option, load_settings

if TYPE_CHECKING:
    from rtfm.settings import Settings

_ROOM_NEEDED_MB = 1000

Finding = tuple[str, str | None, str]
"""(what was looked at, the mend or None when it is well, what was found)."""


@examples(
    """
rtfm-cli doctor
rtfm-cli doctor --fetch-model
rtfm-cli doctor --json
"""
)
@click.command()
@click.option("--fetch-model", is_flag=True, help="Fetch the embedding model first, if it is not there.")
@json_option
def doctor(fetch_model: bool, as_json: bool) -> None:
    """Check configuration and surroundings. Exits with 1 when something needs a mend."""
    settings = load_settings()
    if fetch_model:
        from cli.local import download_progress
        from rtfm.local import model

        with download_progress() as progress:
            model.fetch(settings.home, url=settings.embedding_model_url, progress=progress)
    findings = [
        finding
        for look in (_python, _room, _kafka, _registry, _archive, _chroma, _model, _gemini)
        for finding in look(settings)
    ]
    if as_json:
        echo_json(
            {
                "ok": all(mend is None for _, mend, _ in findings),
                "findings": [{"check": name, "detail": found, "mend": mend} for name, mend, found in findings],
            }
        )
    else:
        for name, mend, found in findings:
            click.echo(f"{'ok  ' if mend is None else 'MEND'} {name}: {found}" + (f"\n     {mend}" if mend else ""))
    if any(mend is not None for _, mend, _ in findings):
        click.get_current_context().exit(1)


def _python(_: Settings) -> Iterator[Finding]:
    yield "python", None, sys.version.split()[0]


def _room(settings: Settings) -> Iterator[Finding]:
    folder = settings.home if settings.home.is_dir() else settings.home.absolute().parent
    free_mb = shutil.disk_usage(folder).free // 10**6
    mend = None if free_mb >= _ROOM_NEEDED_MB else f"free at least {_ROOM_NEEDED_MB} MB, or set RTFM_HOME"
    yield "disk", mend, f"{free_mb} MB free at {folder}"


def _kafka(settings: Settings) -> Iterator[Finding]:
    from rtfm.contracts import catalogue
    from rtfm.errors import RtfmError
    from rtfm.streams.topics import TopicAdmin

    try:
        plan = TopicAdmin(settings, catalogue.load(settings.schemas_dir)).plan()
    except RtfmError as exc:
        yield "kafka", exc.hint or "start Kafka", str(exc)
        return
    yield "kafka", None, f"answers at {settings.kafka_bootstrap_servers}"
    wrong = [step.topic for step in plan if step.action != "none"]
    mend = "run `rtfm-cli topics init`" if wrong else None
    yield "topics", mend, f"missing or drifted: {', '.join(wrong)}" if wrong else "as they should be"


def _registry(settings: Settings) -> Iterator[Finding]:
    from rtfm.contracts import open_contracts
    from rtfm.errors import RtfmError

    try:
        contracts = open_contracts(settings)
        for topic in contracts.catalogue.with_schema():
            if topic.schema is not None:
                contracts.registry.id_for(topic.name, topic.schema)
    except RtfmError as exc:
        yield "contracts", exc.hint or "start the registry", str(exc)
        return
    yield "contracts", None, f"registered at {settings.schema_registry_url}"


def _archive(settings: Settings) -> Iterator[Finding]:
    from rtfm.errors import RtfmError
    from rtfm.knowledge.archive import SqlArchive

    archive = SqlArchive(settings.database_url)
    try:
        archive.check()
        counts = archive.counts()
    except RtfmError as exc:
        yield "archive", exc.hint or "start PostgreSQL; a processor makes the tables when it starts", str(exc)
        return
    finally:
        archive.close()
    yield "archive", None, ", ".join(f"{count} {name}" for name, count in counts.items())


def _chroma(settings: Settings) -> Iterator[Finding]:
    import httpx

    try:
        httpx.get(f"{settings.chroma_url}/api/v2/heartbeat", timeout=3).raise_for_status()
    except httpx.HTTPError as exc:
        mend = "start it (`rtfm-cli local up`) or set CHROMA_URL"
        yield "chroma", mend, f"does not answer at {settings.chroma_url}: {type(exc).__name__}"
        return
    yield "chroma", None, f"answers at {settings.chroma_url}"


def _model(settings: Settings) -> Iterator[Finding]:
    from rtfm.errors import ConfigError
    from rtfm.knowledge.embedding import find_model

    try:
        found = find_model(settings) is not None
    except ConfigError as exc:
        yield "embedding model", exc.hint or "fetch it anew with `rtfm-cli doctor --fetch-model`", str(exc)
        return
    # Search without it is lexical, which is worse but works.
    yield "embedding model", None, "there" if found else "not there, search is lexical; --fetch-model fetches it"


def _gemini(settings: Settings) -> Iterator[Finding]:
    yield "gemini", None, "a key is set" if settings.gemini_api_key else "no key, answers are extracts"
