"""`rtfm-cli dlq show`: one dead letter whole, decoded as far as it can be, with the byte where that ends."""

from __future__ import annotations

from typing import Any

import click
from attrs import asdict, frozen

from rtfm.contracts import EVENT_OF_TOPIC, Contracts, open_contracts, schema_id_of
from rtfm.contracts.inspection import DecodingFault, frame_fault, inspect
from rtfm.errors import ConfigError, PermanentError, RtfmError
from rtfm.settings import Settings
from rtfm.streams.dead_letters.letters import STATES, Letter
from rtfm.streams.dead_letters.store import DeadLetterStore, LetterFilter
from rtfm_cli.dlq.rows import day, row_of, text_of
from rtfm_cli.options import echo_json, examples, json_option, kafka_and_registry_settings
from rtfm_cli.printing import echo, escape_unprintable, json_text

_ROWS_AROUND = 3
_ROW = 16


@frozen(kw_only=True)
class Reading:
    """What a letter's value holds. ``schema`` says by which schema it was read, ``now`` whether it decodes today."""

    schema: str
    fields: dict[str, Any]
    fault: DecodingFault | None
    now: str


@examples("""
rtfm-cli dlq show 0-17
rtfm-cli dlq show 0-17 --json
""")
@click.command()
@click.argument("id_", metavar="ID")
@kafka_and_registry_settings
@json_option
def show(id_: str, settings: Settings, as_json: bool) -> None:
    """Show the dead letter ID: why it is one, its headers, and its value as far as it can be decoded."""
    with DeadLetterStore(settings) as store:
        found = next(iter(store.find(LetterFilter(ids=frozenset([id_]), states=frozenset(STATES)))), None)
    if found is None:
        raise ConfigError(f"there is no dead letter {id_}", hint="`rtfm-cli dlq list` shows their ids")
    letter, value = found.letter, found.letter.value
    reading = read(letter, open_contracts(settings))
    if as_json:
        fault = reading.fault
        echo_json(
            row_of(found)
            | {
                "headers": [[name, text_of(content)] for name, content in letter.headers or []],
                "facts": letter.facts,
                "schema": reading.schema,
                "fields": reading.fields,
                "fault": fault and asdict(fault),
                "now": reading.now,
                "value_hex": None if value is None else value.hex(),
            }
        )
        return
    for name, content in row_of(found).items():
        if content in (None, ""):
            continue
        if name.endswith("_ms"):
            name, content = name.removesuffix("_ms"), f"{day(content)} UTC"
        echo(escape_unprintable(f"{name}: {content}"))
    echo("\noriginal headers:" if letter.headers else "\noriginal headers: none")
    for name, raw in letter.headers or []:
        echo(escape_unprintable(f"  {name}: {text_of(raw)}"))
    echo("\nwhat is known of the failure:")
    for name, text in letter.facts.items():
        echo(f"  {escape_unprintable(name)}: " + text.rstrip().replace("\n", "\n    "))
    echo(f"\nvalue, {'none' if value is None else f'{len(value)} bytes'}; {reading.schema}:")
    for name, content in reading.fields.items():
        echo(f"  {escape_unprintable(name)}: {json_text(content)}")
    if reading.fault is not None:
        fault = reading.fault
        echo(f"\nbyte {fault.position} ({fault.position:#x}): " + escape_unprintable(f"{fault.path}: {fault.reason}"))
    for line in hex_dump(value or b"", None if reading.fault is None else reading.fault.position):
        echo(line)
    echo(f"\nnow: {reading.now}")


def read(letter: Letter, contracts: Contracts) -> Reading:
    """Decode what can be decoded; a registry that does not answer is said, not raised."""
    value = letter.value
    if value is None:
        return Reading(schema="a tombstone", fields={}, fault=None, now="still cannot be decoded: it has no value")
    if letter.topic not in EVENT_OF_TOPIC:
        return Reading(schema="no contract is known", fields={}, fault=None, now="cannot be told")
    try:
        contracts.decode(letter.topic, value)
        now = "it decodes"
    except PermanentError as exc:
        now = f"still cannot be decoded: {exc}"
    except RtfmError as exc:
        now = f"cannot be told: {exc}"
    if (fault := frame_fault(value)) is not None:
        return Reading(schema="it names no schema", fields={}, fault=fault, now=now)
    schema_id = schema_id_of(value)
    try:
        schema = contracts.registry.schema(schema_id)
        by = f"read by schema {schema_id}, {schema.get('name', '')}"
    except RtfmError as exc:
        schema = contracts.codec(letter.topic).schema
        by = f"read by today's schema of {letter.topic}, for {exc}"
    inspection = inspect(value, schema)
    return Reading(schema=by, fields=inspection.fields, fault=inspection.fault, now=now)


def hex_dump(value: bytes, position: int | None) -> list[str]:
    """Lines of sixteen bytes: those around ``position``, which is pointed at, or the first ones."""
    at = 0 if position is None else position
    first = max(0, at // _ROW - _ROWS_AROUND) if position is not None else 0
    last = (at // _ROW if position is not None else 2 * _ROWS_AROUND) + _ROWS_AROUND
    lines = []
    for row in range(first, last + 1):
        part = value[row * _ROW : (row + 1) * _ROW]
        points_here = position is not None and position // _ROW == row
        if not part and not points_here:
            break
        printable = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"  {row * _ROW:06x}  {part.hex(' '):47}  {printable}".rstrip())
        if points_here:
            lines.append(" " * (10 + 3 * (at % _ROW)) + "^^")
    return lines
