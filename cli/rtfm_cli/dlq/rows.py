"""Converts dead letters for display: a dead letter to a row of `dlq list --json`, and bytes and times to text."""

from __future__ import annotations

from typing import Any

from rtfm.events import TimestampMillis, to_datetime
from rtfm.streams.dead_letters.store import FiledLetter


def to_row(found: FiledLetter) -> dict[str, Any]:
    """Return the row of a dead letter in `dlq list --json`. Times are milliseconds since the epoch."""
    letter = found.letter
    partition, offset = letter.origin
    return {
        "id": letter.id,
        "state": found.state.lower(),
        "topic": letter.topic,
        "partition": partition,
        "offset": offset,
        "key": to_text(letter.key),
        "stage": letter.stage,
        "error_class": letter.error_class,
        "message": letter.message,
        "group": letter.group,
        "schema_id": letter.schema_id,
        "attempt": letter.attempt,
        "first_failure_ms": letter.first_failure_ms,
        "dead_since_ms": letter.timestamp_ms,
        "marked_ms": found.marked_ms,
        "size_bytes": len(letter.value or b""),
    }


def to_text(value: bytes | None) -> str | None:
    """Return bytes as text, with escapes for bytes that are not UTF-8."""
    return None if value is None else value.decode("utf-8", "backslashreplace")


def format_time(at_ms: int) -> str:
    """Return a time in UTC as text for people."""
    return to_datetime(TimestampMillis(at_ms)).strftime("%Y-%m-%d %H:%M:%S")
