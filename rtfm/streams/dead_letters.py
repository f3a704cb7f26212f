"""Dead letters: the original record byte for byte, with where and why in its headers.

The ``__connect.errors.*`` names are Kafka Connect's, which user interfaces know
(https://cwiki.apache.org/confluence/display/KAFKA/KIP-298%3A+Error+Handling+in+Connect).
"""

from __future__ import annotations

import time
import traceback

from rtfm.contracts import schema_id_of
from rtfm.errors import PermanentError, UndecodableRecord
from rtfm.streams.consumer import Record

TOPIC = "dead-letters"
MAX_STACK_BYTES = 4096


def headers_for(record: Record, error: BaseException, *, group: str, stage: str) -> list[tuple[str, bytes]]:
    """The original headers, in order, then what went wrong. ``stage`` is DECODE or HANDLE."""
    stack = "".join(traceback.format_exception(error)).encode()[-MAX_STACK_BYTES:]
    cause = error.__cause__ or error
    facts = {
        "__connect.errors.topic": record.topic,
        "__connect.errors.partition": str(record.partition),
        "__connect.errors.offset": str(record.offset),
        "__connect.errors.connector.name": group,
        "__connect.errors.task.id": "0",
        "__connect.errors.stage": stage,
        "__connect.errors.class.name": __name__,
        "__connect.errors.exception.class.name": _class_name(cause),
        "__connect.errors.exception.message": str(error),
        "rtfm.error_class": type(error).__name__,
        "rtfm.consumer_group": group,
        "rtfm.first_failure_ms": str(int(time.time() * 1000)),
        "rtfm.attempt": "1",
        "rtfm.original.timestamp_ms": str(record.timestamp_ms),
        "rtfm.schema_id": _schema_id(record),
    }
    return [
        *record.headers,
        *((name, value.encode()) for name, value in facts.items()),
        ("__connect.errors.exception.stacktrace", stack),
    ]


def reason(error: PermanentError) -> str:
    """The label that dead letters are counted by."""
    return type(error).__name__


def _class_name(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}"


def _schema_id(record: Record) -> str:
    try:
        return str(schema_id_of(record.value or b""))
    except UndecodableRecord:
        return ""
