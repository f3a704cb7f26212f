"""`rtfm-cli status`: shows topics, consumer groups and their lag, the registry, and what the stores hold."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import click
from attrs import asdict
from attrs.filters import include

from rtfm.contracts import Catalogue, catalogue, open_registry
from rtfm.errors import RtfmError
from rtfm.knowledge.archive import SqlArchive
from rtfm.knowledge.rebuilding import find_due_for
from rtfm.knowledge.vectors import ChromaVectors
from rtfm.settings import Settings
from rtfm.streams.progress import GroupProgress
from rtfm.streams.topics import TopicAdmin, TopicState
from rtfm_cli import exit_codes
from rtfm_cli.options import echo_json, examples, format_records, json_option, kafka_and_registry_settings, pluralize
from rtfm_cli.tables import print_table, styled, table_console


@examples("""
rtfm-cli status
rtfm-cli status --bootstrap-servers localhost:29092 --json
""")
@click.command("status")
@kafka_and_registry_settings
@json_option
def status(settings: Settings, as_json: bool) -> int:
    """Show topics, consumer groups with their lag, the registry, the archive and Chroma.

    If one of these parts does not answer, its error is shown, and the other parts are shown as usual. Exits with 3 if a
    part does not answer, with 2 if a part is not set up.
    """
    contracts = catalogue.load(settings.schemas_dir)
    parts: dict[str, Callable[[], Any]] = {
        "topics": lambda: _read_topics(settings, contracts),
        "schemas": lambda: _read_schemas(settings, contracts),
        "archive": lambda: _count_archive(settings),
        "chroma": lambda: _count_chroma(settings),
        "rebuild_due": lambda: find_due_for(settings),
    }
    found: dict[str, Any] = {}
    wrong: dict[str, RtfmError] = {}
    for name, part in parts.items():
        try:
            found[name] = part()
        except RtfmError as exc:
            found[name] = None
            wrong[name] = exc
    if len(wrong) > 1:
        wrong.pop("rebuild_due", None)  # this part reads the same stores as other parts, and would repeat their error
    if as_json:
        echo_json({**found, "wrong": {name: str(error) for name, error in wrong.items()}})
    else:
        _print_status(found, wrong)
    return max(map(exit_codes.of, wrong.values()), default=exit_codes.DONE)


def _read_topics(settings: Settings, contracts: Catalogue) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    admin = TopicAdmin(settings, contracts)
    states = {state.topic: state for state in admin.states()}
    for name in contracts.topics:
        state = states.get(name, TopicState(topic=name, partitions=0, config={}, offsets=0, lag={}))
        records = admin.count_records(state) if name in states else 0
        groups = [
            {"group": group, "members": GroupProgress(settings, group).count_members(), "lag": lag}
            for group, lag in state.lag.items()
        ]
        shown = asdict(state, filter=include("topic", "partitions", "offsets"))
        found.append({**shown, "exists": name in states, "records": records, "groups": groups})
    return found


def _read_schemas(settings: Settings, contracts: Catalogue) -> list[dict[str, Any]]:
    registry = open_registry(settings)
    found = []
    for topic in contracts.topics_with_schema():
        registered = registry.lookup(topic.name, topic.schema) if topic.schema else None
        schema_id, version = registered or (None, None)
        found.append(
            {"subject": topic.subject, "registered": registered is not None, "id": schema_id, "version": version}
        )
    return found


def _count_archive(settings: Settings) -> dict[str, int]:
    with closing(SqlArchive(settings.database_url)) as archive:
        return archive.counts()


def _count_chroma(settings: Settings) -> dict[str, int]:
    with closing(ChromaVectors(settings.chroma_url, settings.kafka_topic_prefix)) as vectors:
        return dict(vectors.counts())


def _format_counts(name: str, found: dict[str, int]) -> str:
    if name == "chroma":  # the counts have the names of collections, which have no plural
        return ", ".join(f"{count} {what}" for what, count in found.items())
    return ", ".join(pluralize(count, what) for what, count in found.items())


def _print_status(found: dict[str, Any], wrong: dict[str, RtfmError]) -> None:
    console = table_console()
    if found["topics"] is not None:
        rows: list[tuple[object, ...]] = []
        for topic in found["topics"]:
            groups = topic["groups"] or [{"group": "-", "members": "-", "lag": "-"}]
            for number, group in enumerate(groups):
                records = format_records(topic["records"], topic["offsets"])
                first = (topic["topic"], topic["partitions"] if topic["exists"] else "missing", records)
                shown = first if number == 0 else ("", "", "")
                rows.append((*shown, group["group"], group["members"], group["lag"]))
        print_table(["topic", "partitions", "records", "group", "members", "lag"], rows, pad_edge=False)
    if found["schemas"] is not None:
        print_table(
            ["subject", "version", "id"],
            [(row["subject"], row["version"] or "not registered", row["id"]) for row in found["schemas"]],
            pad_edge=False,
        )
    for name in ("archive", "chroma"):
        if found[name] is not None:
            counts = _format_counts(name, found[name]) or "empty"
            console.print(styled(f"{name}: {counts}"), soft_wrap=True)
    for guild_id, why in (found["rebuild_due"] or {}).items():
        guild = f"guild {guild_id}" if guild_id else "direct messages"
        line = f"{guild}: {why} (`rtfm-cli rebuild` fixes it)"
        console.print(styled(line, "yellow"), soft_wrap=True)
    for name, error in wrong.items():
        hint = f" ({error.hint})" if error.hint else ""
        console.print(styled(f"{name}: {error}{hint}", "red"), soft_wrap=True)
