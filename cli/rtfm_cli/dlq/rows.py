"""How a dead letter is shown: the row that `list --json` has, bytes as text, times."""

from __future__ import annotations

from typing import Any

from rtfm.events import TimestampMillis, to_datetime
from rtfm.streams.dead_letters.store import FiledLetter


def row_of(found: FiledLetter) -> dict[str, Any]:
    """A letter as `list --json` has it. Times are milliseconds since the epoch."""
    letter = found.letter
    partition, offset = letter.origin
    return {
        "id": letter.id,
        "state": found.state.lower(),
        "topic": letter.topic,
        "partition": partition,
        "offset": offset,
        "key": text_of(letter.key),
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


def text_of(value: bytes | None) -> str | None:
    """Bytes as text; bytes that are not UTF-8 are escaped."""
    return None if value is None else value.decode("utf-8", "backslashreplace")


def day(at_ms: int) -> str:
    """A time for people, in UTC."""
    return to_datetime(TimestampMillis(at_ms)).strftime("%Y-%m-%d %H:%M:%S")
