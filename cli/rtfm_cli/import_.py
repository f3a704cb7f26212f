"""`rtfm-cli import`: produces the messages of chat exports to discord-messages."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
from attrs import asdict, define, field

from rtfm.contracts import catalogue, open_contracts
from rtfm.errors import InvalidEvent, PermanentError
from rtfm.knowledge.imports import MAX_EVENT_BYTES, ChatExport, read_export
from rtfm.names import MESSAGES
from rtfm.settings import Settings
from rtfm.streams.producer import Delivery, EventProducer, event_headers
from rtfm.streams.progress import GroupProgress
from rtfm_cli.options import echo_json, examples, json_option, kafka_and_registry_settings, pluralize
from rtfm_cli.printing import echo, escape_unprintable
from rtfm_cli.progress import Progress

NO_PROCESSOR_TIMEOUT_S = 10.0
"""If no processor has been running for this many seconds, a command stops waiting for ingest."""

_PLACES_SHOWN = 10


@examples("""
rtfm-cli import export/*.json
rtfm-cli import --no-wait general.json
""")
@click.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--no-wait", is_flag=True, help="Do not wait until the messages are searchable.")
@kafka_and_registry_settings
@json_option
def import_(
    files: tuple[Path, ...],
    no_wait: bool,
    settings: Settings,
    as_json: bool,
) -> None:
    """Import chat exports (DiscordChatExporter's JSON) through discord-messages.

    All files are checked before anything is sent. System messages (such as joins and pins) and invalid messages are
    left out; the report counts them by reason. Importing a file again changes nothing.
    """
    exports = [read_export(path) for path in files]
    produced, sent = _produce(settings, exports, quiet=as_json)
    ingested = not no_wait and bool(produced) and wait_until_ingested(settings, produced, quiet=as_json)
    _report(exports, sent, ingested=ingested, as_json=as_json)


@define
class ProducedEnds:
    """For each partition, the offset after the last record that was produced to it."""

    ends: dict[int, int] = field(factory=dict)
    _lock: threading.Lock = field(factory=threading.Lock)

    def record_delivery(self, delivery: Delivery) -> None:
        """Note where a record was delivered; may be called from any thread."""
        if delivery.error is None:
            with self._lock:
                self.ends[delivery.partition] = max(self.ends.get(delivery.partition, 0), delivery.offset + 1)


def _produce(settings: Settings, exports: Sequence[ChatExport], *, quiet: bool) -> tuple[dict[int, int], int]:
    """Send all valid messages. Return for each partition the offset after its last message, and the number sent.

    Raises RtfmError if a message was not delivered.
    """
    produced = ProducedEnds()
    contracts = open_contracts(settings)
    total = sum(export.count for export in exports)
    sent: list[int] = []
    with EventProducer(settings, contracts) as producer, Progress("Sending", total, quiet) as progress:
        for export in exports:
            left_out = export.left_out.count
            for number, message in enumerate(export.messages(), start=1):
                try:
                    value = contracts.encode(MESSAGES, message)
                    if len(value) > MAX_EVENT_BYTES:
                        raise InvalidEvent(f"more than the {MAX_EVENT_BYTES} bytes that an event can have")
                    key = contracts.key(MESSAGES, message)
                    producer.send_raw(MESSAGES, key, value, event_headers(None), on_delivery=produced.record_delivery)
                except PermanentError as exc:
                    export.left_out.add(f"message {message.message_id}", str(exc))
                if number % 100 == 0:
                    progress.advance(100)
            progress.advance(export.count % 100)
            sent.append(export.count - (export.left_out.count - left_out))
        producer.flush(settings.kafka_delivery_timeout_s)
    return produced.ends, sum(sent)


def wait_until_ingested(settings: Settings, ends: dict[int, int], *, quiet: bool) -> bool:
    """Wait until ingest has committed the offsets ``ends`` and return True.

    Returns False if no processor has been running for ``NO_PROCESSOR_TIMEOUT_S``.
    """
    group = GroupProgress(settings, catalogue.load(settings.schemas_dir).group(MESSAGES))
    committed = group.committed_offsets(MESSAGES, ends)
    started = {partition: committed.get(partition, 0) for partition in ends}
    left = _count_left(ends, committed)
    absent_since: float | None = None
    with Progress("Indexing", left, quiet) as progress:
        while left:
            if group.count_members():
                absent_since = None
            else:
                absent_since = absent_since or time.monotonic()
                if time.monotonic() - absent_since >= NO_PROCESSOR_TIMEOUT_S:
                    echo(
                        "No processor is running: the messages wait in Kafka. Start one with `rtfm-cli run processor`.",
                        err=True,
                    )
                    return False
            time.sleep(0.2)
            committed = {**started, **group.committed_offsets(MESSAGES, ends)}
            now = _count_left(ends, committed)
            progress.advance(left - now)
            left = now
    return True


def _count_left(ends: dict[int, int], committed: dict[int, int]) -> int:
    return sum(max(end - committed.get(partition, 0), 0) for partition, end in ends.items())


def _report(exports: Sequence[ChatExport], sent: int, *, ingested: bool, as_json: bool) -> None:
    first = [(export.path, message) for export in exports for message in export.left_out.first]
    left_out = sum(export.left_out.count for export in exports)
    if as_json:
        echo_json(
            {
                "files": len(exports),
                "messages": sent,
                "ingested": ingested,
                "left_out_count": left_out,
                "left_out": [{"file": str(path), **asdict(message)} for path, message in first],
            }
        )
        return
    for path, message in first[:_PLACES_SHOWN]:
        echo(escape_unprintable(f"Left out: {path}, {message.where}: {message.why}"), err=True)
    if left_out > _PLACES_SHOWN:
        echo(f"Left out: {left_out - _PLACES_SHOWN} more; --json lists the first 1,000 of each file.", err=True)
    reasons = sum((export.left_out.reasons for export in exports), Counter[str]())
    why = f" ({'; '.join(f'{count} × {reason}' for reason, count in reasons.most_common(5))})" if reasons else ""
    state = "imported and searchable" if ingested else "sent"
    files, messages = pluralize(len(exports), "files"), pluralize(sent, "messages")
    echo(f"{files}: {messages} {state}, {left_out} left out{escape_unprintable(why)}")
