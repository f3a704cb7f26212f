"""`rtfm-cli schemas`: the contracts, and the registry that holds them."""

from __future__ import annotations

from typing import Any

import click

from cli.options import echo_json, examples, json_option, load_settings, registry_option


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
    """Show the contracts of the catalogue. Asks no registry."""
    from rtfm.contracts import catalogue as catalogues

    catalogue = catalogues.load(load_settings().schemas_dir)
    rows = [
        {
            "subject": topic.subject,
            "record": (topic.schema or {})["name"],
            "key": topic.key,
            "compatibility": topic.compatibility,
            "released": list(catalogue.released(topic.name)),
            "producers": list(topic.producers),
            "consumers": list(topic.consumers),
        }
        for topic in catalogue.with_schema()
    ]
    if as_json:
        echo_json({"directory": str(catalogue.directory), "subjects": rows})
        return
    _table(
        ["subject", "record", "key", "compatibility", "released", "producers", "consumers"],
        [[", ".join(map(str, cell)) if isinstance(cell, list) else str(cell) for cell in row.values()] for row in rows],
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
    """Register the contracts and their compatibility levels. A second run changes nothing."""
    from rtfm import contracts
    from rtfm.contracts import catalogue as catalogues
    from rtfm.contracts import registration

    settings = load_settings(schema_registry_url=schema_registry_url)
    catalogue = catalogues.load(settings.schemas_dir)
    registry = contracts.open_registry(settings)
    contracts.Contracts(catalogue, registry)  # a class that drifted from its schema is found before anything is written
    items = registration.plan(catalogue, registry)
    if not dry_run:
        items = registration.apply(catalogue, registry, items)
    changes = sum(item.changes for item in items)
    if as_json:
        rows = [
            {"subject": i.subject, "change": i.change, "id": i.schema_id, "version": i.version, "level": i.level}
            for i in items
        ]
        echo_json({"changes": changes, "dry_run": dry_run, "items": rows})
        return
    _table(
        ["subject", "change", "id", "version", "level"],
        [[i.subject, i.change, str(i.schema_id or ""), str(i.version or ""), i.level] for i in items],
    )
    click.echo(f"{changes} change{'' if changes == 1 else 's'}" + (" planned" if dry_run and changes else ""))


@schemas.command("check")
def check() -> int:
    """Compare the schemas with the released ones, offline; exit 1 when one breaks a reader or writer."""
    from rtfm.contracts import catalogue as catalogues
    from rtfm.contracts.compatibility import violations

    catalogue = catalogues.load(load_settings().schemas_dir)
    found = 0
    for topic in catalogue.with_schema():
        for line in violations(topic.schema or {}, catalogue.released(topic.name), topic.compatibility or "NONE"):
            click.echo(f"{topic.subject}: {line}", err=True)
            found += 1
    click.echo(f"{len(catalogue.with_schema())} subjects checked, {found} violations")
    return 1 if found else 0


def _table(columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table: Any = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no edge to fold at
    console.print(table)
