"""Letters: the format of the records in dead-letters, for writing and reading.

A dead letter is the original record: key, value and headers byte for byte and in order. After the original headers
follows a block with its origin and the reason. The last header of the block counts the original ones, so that they can
be told apart whatever their names are. A mark is a record without a value that tells what happened to a dead letter.
docs/dead-letters.md lists every header.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence

from attrs import field, frozen

from rtfm import names
from rtfm.contracts import schema_id_of
from rtfm.errors import UndecodableRecord
from rtfm.scrubbing import scrub
from rtfm.streams.consumer import RawRecord, Record
from rtfm.streams.transactions import ProducerRecord

TOPIC = names.DEAD_LETTERS
MAX_STACK_BYTES = 4096
MAX_MESSAGE_BYTES = 1024

OPEN, REPLAYED, DISCARDED = "OPEN", "REPLAYED", "DISCARDED"
STATES = (OPEN, REPLAYED, DISCARDED)
"""The states of a dead letter."""

# Kafka Connect's names, which other tools know
# (https://cwiki.apache.org/confluence/display/KAFKA/KIP-298%3A+Error+Handling+in+Connect).
_CONNECT = "__connect.errors."
_SOURCE_TOPIC, _SOURCE_PARTITION, _SOURCE_OFFSET = f"{_CONNECT}topic", f"{_CONNECT}partition", f"{_CONNECT}offset"
_CONNECTOR, _TASK, _STAGE, _WRITER = (
    f"{_CONNECT}{name}" for name in ("connector.name", "task.id", "stage", "class.name")
)
_CAUSE, _MESSAGE, _STACK = (f"{_CONNECT}exception.{name}" for name in ("class.name", "message", "stacktrace"))

_GROUP, _SCHEMA_ID, _ERROR_CLASS = "rtfm.consumer_group", "rtfm.schema_id", "rtfm.error_class"

# The headers of a replayed record after its original ones, in this order.
_REPLAY_OF, _ATTEMPT, _FIRST = "rtfm.replay_of", "rtfm.attempt", "rtfm.first_failure_ms"
_TIMESTAMP = "rtfm.original.timestamp_ms"
_REPLAY_BLOCK = (_REPLAY_OF, _ATTEMPT, _FIRST, _TIMESTAMP)

# The last header tells a dead letter from a mark.
_HEADER_COUNT = "rtfm.original.header_count"
_MARK, _MARK_OF = "rtfm.mark", "rtfm.mark_of"

Headers = Sequence[tuple[str, bytes]]


@frozen
class OutgoingLetter:
    """A dead letter to produce, and the offset of its original. ``reason`` is the error's class, for the metrics."""

    offset: int
    reason: str
    record: ProducerRecord


@frozen(kw_only=True)
class Replay:
    """The history of a replayed record: its dead letter, the number of failures, and the time of the first one.

    ``timestamp_ms`` is Kafka's timestamp of the original.
    """

    letter_id: str
    attempt: int
    first_failure_ms: int
    timestamp_ms: int

    def headers(self) -> list[tuple[str, bytes]]:
        """Return the headers to append to the original ones."""
        values = (self.letter_id, self.attempt, self.first_failure_ms, self.timestamp_ms)
        return [(name, str(value).encode()) for name, value in zip(_REPLAY_BLOCK, values, strict=True)]

    @classmethod
    def split(cls, headers: Headers) -> tuple[list[tuple[str, bytes]], Replay | None]:
        """Split the headers of a record into the original ones and its replay, if it is one."""
        block = headers[-len(_REPLAY_BLOCK) :]
        if tuple(name for name, _ in block) != _REPLAY_BLOCK:
            return list(headers), None
        try:
            letter_id, attempt, first_failure_ms, timestamp_ms = (value.decode() for _, value in block)
            replay = cls(
                letter_id=letter_id,
                attempt=int(attempt),
                first_failure_ms=int(first_failure_ms),
                timestamp_ms=int(timestamp_ms),
            )
        except (ValueError, AttributeError):  # not written by us, so the headers are original
            return list(headers), None
        return list(headers[: -len(_REPLAY_BLOCK)]), replay


@frozen(kw_only=True)
class DeadLetterBuilder:
    """Builds the dead letters of one group. Removes ``secrets``, and text that looks like one, from errors."""

    group: str
    secrets: tuple[str, ...] = ()
    clock_s: Callable[[], float] = time.time

    def build_letter(self, record: Record, error: BaseException, stage: str) -> OutgoingLetter:
        """Return the dead letter of ``record``; ``stage`` is DECODE, HANDLE, PRODUCE or CRASH.

        For a replayed record that fails again it keeps the original headers and the time of the first failure, and
        counts one attempt more.
        """
        original, replay = Replay.split(record.headers)
        cause = error.__cause__ or error
        now_ms = int(self.clock_s() * 1000)
        # Scrubbed before it is cut, because half a secret is not recognised.
        stack = self._scrub("".join(traceback.format_exception(error)))
        facts = {
            _SOURCE_TOPIC: record.topic,
            _SOURCE_PARTITION: str(record.partition),
            _SOURCE_OFFSET: str(record.offset),
            _CONNECTOR: self.group,
            _TASK: "0",
            _STAGE: stage,
            _WRITER: __name__,
            _CAUSE: f"{type(cause).__module__}.{type(cause).__qualname__}",
            _MESSAGE: _cut(self._scrub(str(error)), MAX_MESSAGE_BYTES),
            _STACK: _cut(stack, MAX_STACK_BYTES, end=True),
            _ATTEMPT: str(replay.attempt + 1 if replay else 1),
            _FIRST: str(replay.first_failure_ms if replay else now_ms),
            _GROUP: self.group,
            _SCHEMA_ID: _schema_id(record),
            _ERROR_CLASS: type(error).__name__,
            _TIMESTAMP: str(replay.timestamp_ms if replay else record.timestamp_ms),
            **({_REPLAY_OF: replay.letter_id} if replay else {}),
            _HEADER_COUNT: str(len(original)),
        }
        headers = [*original, *((name, value.encode("utf-8", "replace")) for name, value in facts.items())]
        return OutgoingLetter(
            record.offset, type(error).__name__, ProducerRecord(TOPIC, record.key, record.value, headers)
        )

    def _scrub(self, text: str) -> str:
        return scrub(text, self.secrets)


@frozen(kw_only=True)
class Letter:
    """A dead letter as read from dead-letters. ``headers`` are the original ones.

    If another program wrote the record, ``headers`` is None, because they cannot be told apart, and ``facts`` come from
    Connect's headers.
    """

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] | None
    facts: dict[str, str] = field(repr=False)

    @property
    def id(self) -> str:
        """Its partition and offset in dead-letters, which never change."""
        return f"{self.partition}-{self.offset}"

    @property
    def topic(self) -> str:
        """The topic of the original, without prefix."""
        return self.facts.get(_SOURCE_TOPIC, "")

    @property
    def origin(self) -> tuple[int, int]:
        """The partition and offset of the record that failed; -1 if unknown."""
        return self.number(_SOURCE_PARTITION), self.number(_SOURCE_OFFSET)

    @property
    def stage(self) -> str:
        """DECODE, HANDLE, PRODUCE or CRASH; another program may use its own names."""
        return self.facts.get(_STAGE, "")

    @property
    def error_class(self) -> str:
        """The class of the error, without its module."""
        return self.facts.get(_ERROR_CLASS) or self.facts.get(_CAUSE, "").rpartition(".")[2]

    @property
    def message(self) -> str:
        """The message of the error."""
        return self.facts.get(_MESSAGE, "")

    @property
    def attempt(self) -> int:
        """How often the record failed; each replay that fails counts once."""
        return max(1, self.number(_ATTEMPT))

    @property
    def group(self) -> str:
        """The consumer group that could not handle it."""
        return self.facts.get(_GROUP) or self.facts.get(_CONNECTOR, "")

    @property
    def schema_id(self) -> str:
        """The schema id in the value; empty if there is none."""
        return self.facts.get(_SCHEMA_ID, "")

    @property
    def first_failure_ms(self) -> int:
        """When the record failed for the first time, in milliseconds since the epoch."""
        found = self.number(_FIRST)
        return found if found >= 0 else self.timestamp_ms

    def to_replay(self) -> Replay:
        """Return the history that a replay of this letter carries."""
        return Replay(
            letter_id=self.id,
            attempt=self.attempt,
            first_failure_ms=self.first_failure_ms,
            timestamp_ms=self.number(_TIMESTAMP),
        )

    def number(self, name: str) -> int:
        """Return the number in the header ``name``, or -1 if there is none."""
        try:
            return int(self.facts.get(name, ""))
        except ValueError:
            return -1


@frozen
class Mark:
    """A mark: the dead letter ``letter_id`` was replayed or discarded (``kind``) at ``at_ms``."""

    letter_id: str
    kind: str
    at_ms: int

    @staticmethod
    def build_record(letter: Letter, kind: str) -> ProducerRecord:
        """Return the record of a mark, for the letter's partition, so that retention removes it after the letter."""
        headers = [(_MARK_OF, letter.id.encode()), (_MARK, kind.encode())]
        return ProducerRecord(TOPIC, f"mark-{letter.id}".encode(), None, headers, partition=letter.partition)


def parse_letter(raw_record: RawRecord) -> Letter | Mark:
    """Return the dead letter or mark that a record from dead-letters holds."""
    headers: list[tuple[str, bytes]] = list(raw_record.headers() or [])
    last, value = headers[-1] if headers else ("", b"")
    if last == _MARK and raw_record.value() is None:
        return Mark(_text(dict(headers).get(_MARK_OF)), _text(value), raw_record.timestamp()[1])
    count = -1
    if last == _HEADER_COUNT and _text(value).isdigit():
        count = int(_text(value))
    known = 0 <= count < len(headers)
    return Letter(
        partition=raw_record.partition(),
        offset=raw_record.offset(),
        timestamp_ms=raw_record.timestamp()[1],
        key=raw_record.key(),
        value=raw_record.value(),
        headers=headers[:count] if known else None,
        facts={name: _text(value) for name, value in (headers[count:] if known else headers)},
    )


def _cut(text: str, limit: int, *, end: bool = False) -> str:
    """Return the beginning of ``text``, or its ``end``, in at most ``limit`` bytes of UTF-8."""
    data = text.encode("utf-8", "replace")
    return (data[-limit:] if end else data[:limit]).decode("utf-8", "ignore")


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "backslashreplace")


def _schema_id(record: Record) -> str:
    try:
        return str(schema_id_of(record.value or b""))
    except UndecodableRecord:
        return ""
