"""`rtfm-cli dlq show`: prints one dead letter, decoded as far as possible, and the byte at which decoding fails."""

from __future__ import annotations

from typing import Any

import click
from attrs import asdict, frozen

from rtfm.contracts import EVENT_OF_TOPIC, Contracts, open_contracts, schema_id_of
from rtfm.contracts.inspection import DecodingFault, frame_fault, inspect
from rtfm.errors import ConfigError, PermanentError, RtfmError
from rtfm.settings import Settings
from rtfm.streams.dead_letters.letters import STATES, Letter
from rtfm.streams.dead_letters.store import DeadLetterStore, FiledLetter, LetterFilter
from rtfm_cli.dlq.rows import format_time, to_row, to_text
from rtfm_cli.options import echo_json, examples, json_option, kafka_and_registry_settings
from rtfm_cli.printing import echo, escape_unprintable, json_text

_ROWS_AROUND = 3
_ROW = 16


@frozen(kw_only=True)
class DecodedValue:
    """The value of a dead letter, decoded as far as possible.

    ``schema`` says in words which schema was used, and ``now`` whether a service could decode the value today.
    """

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
    """Show one dead letter.

    Prints why it failed, its headers, and its value, decoded as far as possible.
    """
    with DeadLetterStore(settings) as store:
        found = next(iter(store.find(LetterFilter(ids=frozenset([id_]), states=frozenset(STATES)))), None)
    if found is None:
        raise ConfigError(f"there is no dead letter {id_}", hint="`rtfm-cli dlq list` shows the IDs")
    decoded = decode_letter(found.letter, open_contracts(settings))
    if as_json:
        echo_json(_to_json(found, decoded))
    else:
        _print_letter(found, decoded)


def _to_json(found: FiledLetter, decoded: DecodedValue) -> dict[str, Any]:
    letter = found.letter
    return to_row(found) | {
        "headers": [[name, to_text(content)] for name, content in letter.headers or []],
        "facts": letter.facts,
        "schema": decoded.schema,
        "fields": decoded.fields,
        "fault": decoded.fault and asdict(decoded.fault),
        "now": decoded.now,
        "value_hex": None if letter.value is None else letter.value.hex(),
    }


def _print_letter(found: FiledLetter, decoded: DecodedValue) -> None:
    for name, content in to_row(found).items():
        if content in (None, ""):
            continue
        if name.endswith("_ms"):
            name, content = name.removesuffix("_ms"), f"{format_time(content)} UTC"
        echo(escape_unprintable(f"{name}: {content}"))
    _print_headers(found.letter)
    _print_value(found.letter.value, decoded)
    echo(f"\nnow: {decoded.now}")


def _print_headers(letter: Letter) -> None:
    echo("\noriginal headers:" if letter.headers else "\noriginal headers: none")
    for name, raw in letter.headers or []:
        echo(escape_unprintable(f"  {name}: {to_text(raw)}"))
    echo("\nfailure:")
    for name, text in letter.facts.items():
        echo(f"  {escape_unprintable(name)}: " + text.rstrip().replace("\n", "\n    "))


def _print_value(value: bytes | None, decoded: DecodedValue) -> None:
    echo(f"\nvalue, {'none' if value is None else f'{len(value)} bytes'}; {decoded.schema}:")
    for name, content in decoded.fields.items():
        echo(f"  {escape_unprintable(name)}: {json_text(content)}")
    if decoded.fault is not None:
        fault = decoded.fault
        echo(f"\nbyte {fault.position} ({fault.position:#x}): " + escape_unprintable(f"{fault.path}: {fault.reason}"))
    for line in hex_dump(value or b"", None if decoded.fault is None else decoded.fault.position):
        echo(line)


def decode_letter(letter: Letter, contracts: Contracts) -> DecodedValue:
    """Decode the value of a dead letter as far as possible. If the registry does not answer, the result says so."""
    value = letter.value
    if value is None:
        return DecodedValue(
            schema="a tombstone", fields={}, fault=None, now="still cannot be decoded, because it has no value"
        )
    if letter.topic not in EVENT_OF_TOPIC:
        return DecodedValue(schema="the topic has no contract", fields={}, fault=None, now="unknown: no contract")
    try:
        contracts.decode(letter.topic, value)
        now = "can be decoded"
    except PermanentError as exc:
        now = f"still cannot be decoded: {exc}"
    except RtfmError as exc:
        now = f"unknown: {exc}"
    if (fault := frame_fault(value)) is not None:
        return DecodedValue(schema="the value names no schema", fields={}, fault=fault, now=now)
    schema_id = schema_id_of(value)
    try:
        schema = contracts.registry.schema(schema_id)
        used = f"read with schema {schema_id}, {schema.get('name', '')}"
    except RtfmError as exc:
        schema = contracts.codec(letter.topic).schema
        used = f"read with today's schema of {letter.topic}, because {exc}"
    inspection = inspect(value, schema)
    return DecodedValue(schema=used, fields=inspection.fields, fault=inspection.fault, now=now)


def hex_dump(value: bytes, position: int | None) -> list[str]:
    """Return lines of sixteen bytes each, around ``position`` and with a pointer to it.

    If ``position`` is None, return the first lines.
    """
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
