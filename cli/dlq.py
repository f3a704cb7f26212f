"""`rtfm-cli dlq`: dead letters, and why they are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.options import bootstrap_servers_option, echo_json, examples, json_option, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtfm.settings import Settings
    from rtfm.streams.consumer import Record

_BYTES_SHOWN = 256


@click.group()
def dlq() -> None:
    """List and show dead letters: records that can never be processed, kept byte for byte.

    The id of a dead letter is PARTITION:OFFSET in the topic dead-letters.
    """


@examples(
    """
rtfm-cli dlq list
rtfm-cli dlq list --topic bot-queries --json
"""
)
@dlq.command("list")
@click.option("--topic", help="Only those that came from this topic.")
@bootstrap_servers_option
@json_option
def list_(topic: str | None, kafka_bootstrap_servers: str | None, as_json: bool) -> None:
    """List dead letters, oldest first in each partition."""
    settings = load_settings(kafka_bootstrap_servers=kafka_bootstrap_servers)
    rows = [row for row in map(_row, _dead_letters(settings)) if topic in (None, row["topic"])]
    if as_json:
        echo_json({"dead_letters": rows})
        return
    if not rows:
        click.echo("There are no dead letters.")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "topic", "offset", "error", "message", box=None)
    for row in rows:
        table.add_row(row["id"], row["topic"], f"{row['partition']}:{row['offset']}", row["error"], row["message"])
    Console().print(table)


@dlq.command()
@click.argument("id_", metavar="ID")
@bootstrap_servers_option
@json_option
def show(id_: str, kafka_bootstrap_servers: str | None, as_json: bool) -> None:
    """Show the dead letter ID with its headers, and its value decoded or as bytes."""
    from rtfm.errors import ConfigError

    settings = load_settings(kafka_bootstrap_servers=kafka_bootstrap_servers)
    record = next((r for r in _dead_letters(settings) if f"{r.partition}:{r.offset}" == id_), None)
    if record is None:
        raise ConfigError(f"there is no dead letter {id_}", hint="`rtfm-cli dlq list` shows their ids")
    shown = _row(record) | {
        "key": _text(record.key),
        "headers": [[name, _text(value)] for name, value in record.headers],
        "event": _event(settings, record),
        "value_hex": (record.value or b"").hex(),
    }
    if as_json:
        echo_json(shown)
        return
    for name in ("id", "topic", "partition", "offset", "error", "message", "key"):
        click.echo(f"{name}: {shown[name]}")
    for name, value in shown["headers"]:
        click.echo(f"header {name}: {value}")
    if shown["event"] is not None:
        click.echo(f"event: {shown['event']}")
    value = record.value or b""
    click.echo(f"value, {len(value)} bytes:")
    for start in range(0, min(len(value), _BYTES_SHOWN), 16):
        part = value[start : start + 16]
        printable = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        click.echo(f"  {start:04x}  {part.hex(' '):47}  {printable}")


def _dead_letters(settings: Settings) -> Iterator[Record]:
    from rtfm.contracts import open_contracts
    from rtfm.streams.consumer import EventReader
    from rtfm.streams.dead_letters import TOPIC

    with EventReader(settings, open_contracts(settings), TOPIC) as reader:
        yield from reader.read_to_end()


def _row(record: Record) -> dict[str, Any]:
    def text(name: str) -> str:
        return _text(record.header(name)) or ""

    return {
        "id": f"{record.partition}:{record.offset}",
        "topic": text("__connect.errors.topic"),
        "partition": text("__connect.errors.partition"),
        "offset": text("__connect.errors.offset"),
        "error": text("rtfm.error_class"),
        "stage": text("__connect.errors.stage"),
        "message": text("__connect.errors.exception.message"),
        "group": text("rtfm.consumer_group"),
        "first_failure_ms": text("rtfm.first_failure_ms"),
    }


def _event(settings: Settings, record: Record) -> Any:
    import attrs

    from rtfm.contracts import EVENT_OF_TOPIC, open_contracts
    from rtfm.errors import RtfmError

    topic = _text(record.header("__connect.errors.topic")) or ""
    if topic not in EVENT_OF_TOPIC or record.value is None:
        return None
    try:
        return attrs.asdict(open_contracts(settings).decode(topic, record.value))
    except RtfmError:
        return None


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")
