"""`rtfm-cli schemas`: registers, checks, compares, releases and shows the contracts."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import click
from attrs import asdict, fields, filters

from rtfm import contracts
from rtfm.contracts import EVENT_OF_TOPIC, EventCodec, lock, registration, strays
from rtfm.contracts import catalogue as catalogues
from rtfm.contracts import release as releases
from rtfm.contracts.catalogue import Catalogue
from rtfm.contracts.rules import compatibility, difference
from rtfm.contracts.rules.findings import Finding
from rtfm.contracts.strays import Stray
from rtfm.errors import ConfigError
from rtfm_cli import exit_codes
from rtfm_cli.options import echo_json, examples, json_option, load_settings, registry_option
from rtfm_cli.printing import echo, json_text
from rtfm_cli.tables import print_table


@click.group()
def schemas() -> None:
    """Register, check and release the Avro contracts."""


@examples("""
rtfm-cli schemas list
rtfm-cli schemas list --json
""")
@schemas.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the contracts of the catalogue. Works without a registry."""
    catalogue = _load_catalogue()
    rows = [
        {
            "subject": topic.subject,
            "record": (topic.schema or {})["name"],
            "key": topic.key,
            "compatibility": topic.compatibility,
            "released": list(catalogue.released_schemas(topic.name)),
            "producers": list(topic.producers),
            "consumers": list(topic.consumers),
        }
        for topic in catalogue.topics_with_schema()
    ]
    if as_json:
        echo_json({"directory": str(catalogue.directory), "subjects": rows})
        return
    print_table(
        ["subject", "record", "key", "compatibility", "released", "producers", "consumers"],
        [[", ".join(map(str, cell)) if isinstance(cell, list) else cell for cell in row.values()] for row in rows],
        pad_edge=False,
    )


@examples("""
rtfm-cli schemas register --dry-run
rtfm-cli schemas register --registry http://localhost:8081
""")
@schemas.command("register")
@registry_option
@click.option("--dry-run", is_flag=True, help="Show the plan and change nothing.")
@json_option
def register(schema_registry_url: str | None, dry_run: bool, as_json: bool) -> None:
    """Register the contracts and their compatibility levels, all or nothing.

    A second run changes nothing. The command also names versions in the registry that were never released.
    """
    settings = load_settings(schema_registry_url=schema_registry_url)
    catalogue = catalogues.load(settings.schemas_dir)
    if not (catalogue.directory / lock.LOCK_FILE).is_file() and not dry_run:
        lock.write(catalogue)
    registry = contracts.open_registry(settings, timeout_s=contracts.COMMAND_TIMEOUT_S)
    contracts.Contracts(catalogue, registry)  # raises before anything is registered if a class does not fit its schema
    items = registration.plan(catalogue, registry)
    if not dry_run:
        items = registration.apply(catalogue, registry, items)
    changes = sum(item.has_changes for item in items)
    found = strays.find(catalogue, registry)
    rows = [
        {"subject": i.subject, "change": i.change, "id": i.schema_id, "version": i.version, "level": i.level}
        for i in items
    ]
    if as_json:
        echo_json({"changes": changes, "dry_run": dry_run, "items": rows, "strays": _to_rows(found)})
        return
    for stray in found:
        echo(f"{stray.message}\n  remove it: {stray.command(schema_registry_url and registry.url)}", err=True)
    cells = [[cell or "" for cell in row.values()] for row in rows]
    print_table(["subject", "change", "id", "version", "level"], cells, pad_edge=False)
    echo(f"{changes} change{'' if changes == 1 else 's'}" + (" planned" if dry_run and changes else ""))


@examples("""
rtfm-cli schemas check
rtfm-cli schemas check --format json
rtfm-cli schemas check --registry http://localhost:8081
""")
@schemas.command("check")
@click.option("--format", "output", type=click.Choice(["text", "json", "github"]), default="text", show_default=True)
@click.option("--registry", "url", metavar="URL", help="Also ask this registry whether it accepts the schemas.")
def check(output: str, url: str | None) -> int:
    """Compare the schemas with every released version, offline.

    Also checks each schema by itself, and looks for released files that were changed or removed. With --registry, also
    asks the registry whether it accepts the schemas, and names versions in the registry that were never released. Exits
    with 1 if there is a finding.
    """
    catalogue = _load_catalogue()
    found = releases.findings(catalogue)
    if url:
        registry = contracts.open_registry(load_settings(schema_registry_url=url))
        found += releases.disagreements(catalogue, registry)
        found += [
            Finding(
                kind="registry",
                subject=stray.subject,
                rule="unreleased",
                path="",
                message=f"{stray.message}; {stray.command(registry.url)}",
                version=stray.version,
                fix=stray.command(registry.url),
            )
            for stray in strays.find(catalogue, registry)
        ]
    subjects = len(catalogue.topics_with_schema())
    if output == "json":
        shown = filters.exclude(fields(Finding).what)
        echo_json({"subjects": subjects, "findings": [asdict(finding, filter=shown) for finding in found]})
    elif output == "github":
        for finding in found:
            file = catalogue.directory / (finding.file or "")
            echo(f"::error file={_to_relative(file)},title=Contracts: {finding.rule}::{finding.message}")
    else:
        for finding in found:
            echo(_format_finding(finding))
    if output != "json":
        echo(f"{subjects} subjects checked, {len(found)} finding{'' if len(found) == 1 else 's'}")
    return exit_codes.CHECK_FAILED if found else exit_codes.DONE


@examples("""
rtfm-cli schemas remove bot-queries-value 7
rtfm-cli schemas remove bot-queries-value 7 --yes
""")
@schemas.command("remove")
@click.argument("subject")
@click.argument("version", type=click.IntRange(1))
@registry_option
@click.option("--yes", is_flag=True, help="Remove the version; without --yes only show what would be removed.")
@json_option
def remove(subject: str, version: int, schema_registry_url: str | None, yes: bool, as_json: bool) -> None:
    """Remove from the registry a version that was never released.

    Records that were written with this version stay readable. The command refuses to remove a released version. First
    turn off auto.register.schemas in the client that registered the version; otherwise the client registers it again.
    """
    settings = load_settings(schema_registry_url=schema_registry_url)
    catalogue = catalogues.load(settings.schemas_dir)
    registry = contracts.open_registry(settings, timeout_s=contracts.COMMAND_TIMEOUT_S)
    topic = strays.topic_of(catalogue, registry, subject)
    stray = strays.find_removable(catalogue, registry, topic, version)
    if yes:
        registry.remove(topic.name, version)
    if as_json:
        echo_json({"removed": yes, "stray": _to_rows([stray])[0]})
        return
    echo(stray.message)
    echo("Removed." if yes else "Nothing was removed; --yes removes it.")


@examples("""
rtfm-cli schemas diff
rtfm-cli schemas diff bot-queries
rtfm-cli schemas diff bot-queries --from 1
""")
@schemas.command("diff")
@click.argument("topic", required=False)
@click.option(
    "--from", "version", type=click.IntRange(1), help="Released version to compare with; default: the newest."
)
@json_option
def diff(topic: str | None, version: int | None, as_json: bool) -> None:
    """Describe what changed in a schema since a released version."""
    catalogue = _load_catalogue()
    rows: list[dict[str, Any]] = []
    for entry in [catalogue.topic(topic)] if topic else catalogue.topics_with_schema():
        released = catalogue.released_schemas(entry.name)
        if entry.schema is None or (version or max(released, default=0)) not in released:
            raise ConfigError(
                f"{entry.subject} has no released version {version or 1}",
                hint=_released_hint(list(released), entry.name),
            )
        start = version or max(released)
        rows.append(
            {
                "subject": entry.subject,
                "from": start,
                "changes": difference.describe_changes(released[start], entry.schema),
            }
        )
    if as_json:
        echo_json({"subjects": rows})
        return
    for row in rows:
        echo(f"{row['subject']} since v{row['from']}: {'' if row['changes'] else 'no change'}")
        for line in row["changes"]:
            echo(f"  {line}")


@examples("""
rtfm-cli schemas release --dry-run
rtfm-cli schemas release
""")
@schemas.command("release")
@click.option("--dry-run", is_flag=True, help="Show what would be released and change nothing.")
@click.option(
    "--reset-v1", is_flag=True, help="Replace version 1 by the present schemas; only before the project's first tag."
)
def release(dry_run: bool, reset_v1: bool) -> int:
    """Release the changed schemas as their next version.

    Exits with 1 and releases nothing if a schema is incompatible or if no schema has changed.
    """
    catalogue = _load_catalogue()
    if reset_v1:
        if _read_tags(catalogue.directory):
            raise ConfigError(
                "version 1 cannot change after the project's first tag", hint="release a compatible version instead"
            )
        planned = {topic.name: 1 for topic in catalogue.topics_with_schema()}
    else:
        planned = releases.plan(catalogue)
        found = releases.findings(catalogue)
        for finding in found:
            echo(_format_finding(finding), err=True)
        if found:
            echo("Nothing was released.", err=True)
            return exit_codes.CHECK_FAILED
        if not planned:
            echo("Nothing to release: no schema changed since its last release.", err=True)
            return exit_codes.CHECK_FAILED
    if not dry_run:
        if reset_v1:
            releases.reset(catalogue)
        else:
            releases.release(catalogue, planned)
    for name, version in planned.items():
        topic = catalogue.topic(name)
        echo(f"{topic.subject} v{version}" + (" would be released" if dry_run else " released"))
        fixed = compatibility.unremovable_fields({version: topic.schema or {}}, topic.compatibility or "NONE")
        echo("  fields that can never be removed: " + (", ".join(fixed) or "none"))
    return exit_codes.DONE


@examples("""
rtfm-cli schemas show discord-messages
rtfm-cli schemas show bot-queries --codec
""")
@schemas.command("show")
@click.argument("topic")
@click.option("--version", type=click.IntRange(1), help="A released version; default: the present schema.")
@click.option("--codec", is_flag=True, help="Print the Python source of the encoder and the decoder.")
def show(topic: str, version: int | None, codec: bool) -> None:
    """Print a schema, or the source of the codec that is generated from it."""
    catalogue = _load_catalogue()
    entry = catalogue.topic(topic)
    schema = entry.schema if version is None else catalogue.released_schemas(topic).get(version)
    if entry.schema is None or (codec and topic not in EVENT_OF_TOPIC):
        raise ConfigError(
            f"{topic} has no {'codec' if codec else 'schema'}", hint="`rtfm-cli schemas list` shows the topics with one"
        )
    if schema is None:
        raise ConfigError(
            f"{entry.subject} has no released version {version}",
            hint=_released_hint(list(catalogue.released_schemas(topic)), topic),
        )
    if not codec:
        echo(json_text(schema, indent=2))
        return
    compiled = EventCodec[Any](EVENT_OF_TOPIC[topic], entry.schema or {})
    reader = compiled.decoder_source if version is None else compiled.source_for(schema)
    echo(compiled.encoder_source + "\n\n" + reader)


def _load_catalogue() -> Catalogue:
    return catalogues.load(load_settings().schemas_dir)


def _released_hint(versions: list[int], topic: str) -> str:
    return f"released versions of {topic}: {', '.join(map(str, sorted(versions))) or 'none'}"


def _format_finding(finding: Finding) -> str:
    text = finding.message
    if finding.direction == "backward" and finding.consumers:
        text += f"\n  breaks readers of records that are still in Kafka: {', '.join(finding.consumers)}"
    elif finding.direction is not None and finding.consumers:
        text += f"\n  breaks: {', '.join(finding.consumers)} (written by {', '.join(finding.producers)})"
    return f"{text}\n  rule: {finding.rule}" + (f", at {finding.path}" if finding.path else "")


def _to_rows(found: list[Stray]) -> list[dict[str, Any]]:
    return [
        {
            "subject": stray.subject,
            "version": stray.version,
            "id": stray.schema_id,
            "breaks": list(stray.breaks),
            "remove": stray.command(),
        }
        for stray in found
    ]


def _read_tags(directory: Path) -> list[str]:
    try:
        result = subprocess.run(
            ["git", "-C", str(directory), "tag", "--list"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return []  # the schemas are not in a git repository
    return result.stdout.split()


def _to_relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
