"""`rtfm-cli import`: chat exports into discord-messages."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import bootstrap_servers_option, echo_json, examples, json_option, load_settings, registry_option
from cli.printing import echo, printable
from cli.progress import Progress

if TYPE_CHECKING:
    from rtfm.knowledge.imports import ChatExport
    from rtfm.settings import Settings
    from rtfm.streams.producer import Delivery

TOPIC = "discord-messages"
GROUP = "discord-message-processor"
PATIENCE_S = 10.0
"""Seconds without a processor after which import no longer waits for one."""

_PLACES_SHOWN = 10


@examples("""
Examples:
  rtfm-cli import export/*.json
  rtfm-cli import --no-wait general.json
""")
@click.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--no-wait", is_flag=True, help="Do not wait until the messages can be found.")
@bootstrap_servers_option
@registry_option
@json_option
def import_(
    files: tuple[Path, ...],
    no_wait: bool,
    kafka_bootstrap_servers: str | None,
    schema_registry_url: str | None,
    as_json: bool,
) -> None:
    """Import chat exports (DiscordChatExporter's JSON) through discord-messages.

    All files are checked before anything is sent. Messages that are broken, and Discord's own notices, are left out and
    counted. Importing a file again changes nothing.
    """
    from rtfm.knowledge.imports import read_export

    settings = load_settings(kafka_bootstrap_servers=kafka_bootstrap_servers, schema_registry_url=schema_registry_url)
    exports = [read_export(path) for path in files]
    produced = _produce(settings, exports, quiet=as_json)
    ingested = not no_wait and bool(produced) and _wait(settings, produced, quiet=as_json)
    _report(exports, ingested=ingested, as_json=as_json)


def _produce(settings: Settings, exports: Sequence[ChatExport], *, quiet: bool) -> dict[int, int]:
    """Send all messages; partition → offset after the last one. Raises RtfmError when one was not delivered."""
    from rtfm.contracts import open_contracts
    from rtfm.errors import PermanentError
    from rtfm.knowledge.imports import LeftOut
    from rtfm.streams.producer import EventProducer

    ends: dict[int, int] = {}
    lock = threading.Lock()

    def delivered(delivery: Delivery) -> None:
        if delivery.error is None:
            with lock:
                ends[delivery.partition] = max(ends.get(delivery.partition, 0), delivery.offset + 1)

    total = sum(len(export.messages) for export in exports)
    with EventProducer(settings, open_contracts(settings)) as producer, Progress("Sending", total, quiet) as progress:
        for export in exports:
            for number, message in enumerate(list(export.messages), start=1):
                try:
                    producer.send(TOPIC, message, on_delivery=delivered)
                except PermanentError as exc:
                    export.messages.remove(message)
                    export.left_out.append(LeftOut(where=f"message {message.message_id}", why=str(exc)))
                if number % 100 == 0:
                    progress.advance(100)
            progress.advance(len(export.messages) % 100)
        producer.flush(settings.kafka_delivery_timeout_s)
    return ends


def _wait(settings: Settings, ends: dict[int, int], *, quiet: bool) -> bool:
    """Wait until ingest has passed ``ends``; False when there is no processor."""
    from rtfm.streams.progress import GroupProgress

    group = GroupProgress(settings, GROUP)
    committed = group.committed(TOPIC, ends)
    started = {partition: committed.get(partition, 0) for partition in ends}
    left = _left(ends, committed)
    alone_since: float | None = None
    with Progress("Indexing", left, quiet) as progress:
        while left:
            if group.members():
                alone_since = None
            else:
                alone_since = alone_since or time.monotonic()
                if time.monotonic() - alone_since >= PATIENCE_S:
                    echo(
                        "No processor is running: the messages wait in Kafka. Start one with `rtfm-cli run processor`.",
                        err=True,
                    )
                    return False
            time.sleep(0.2)
            committed = {**started, **group.committed(TOPIC, ends)}
            now = _left(ends, committed)
            progress.advance(left - now)
            left = now
    return True


def _left(ends: dict[int, int], committed: dict[int, int]) -> int:
    return sum(max(end - committed.get(partition, 0), 0) for partition, end in ends.items())


def _report(exports: Sequence[ChatExport], *, ingested: bool, as_json: bool) -> None:
    sent = sum(len(export.messages) for export in exports)
    left_out = [(export.path, one) for export in exports for one in export.left_out]
    if as_json:
        echo_json(
            {
                "files": len(exports),
                "messages": sent,
                "ingested": ingested,
                "left_out": [{"file": str(path), "where": one.where, "why": one.why} for path, one in left_out],
            }
        )
        return
    for path, one in left_out[:_PLACES_SHOWN]:
        echo(printable(f"Left out: {path}, {one.where}: {one.why}"), err=True)
    if len(left_out) > _PLACES_SHOWN:
        echo(f"Left out: {len(left_out) - _PLACES_SHOWN} more; --json lists all.", err=True)
    reasons = Counter(one.why for _, one in left_out)
    why = f" ({'; '.join(f'{count} × {reason}' for reason, count in reasons.most_common(5))})" if reasons else ""
    state = "imported and searchable" if ingested else "sent"
    files = "1 file" if len(exports) == 1 else f"{len(exports)} files"
    echo(f"{files}: {sent} messages {state}, {len(left_out)} left out{printable(why)}")
