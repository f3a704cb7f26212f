"""Letters: the format of the records in dead-letters, for writing and reading.

A dead letter has the key, the value and the headers of the original record, byte for byte and in order. After the
original headers come added headers with the origin and the reason. The last header is the number of original headers,
so that original and added headers can be told apart even if they have the same names. A mark is a record without a
value. It says that a dead letter was replayed or discarded. docs/dead-letters.md lists the headers of dead letters,
docs/decisions/0009-dead-letter-marks.md those of marks.
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
"""Largest allowed size of an error's stack in a dead letter, in bytes. Of a longer stack, the end is kept."""

MAX_MESSAGE_BYTES = 1024
"""Largest allowed size of an error's message in a dead letter, in bytes. Of a longer message, the beginning is kept."""

OPEN, REPLAYED, DISCARDED = "OPEN", "REPLAYED", "DISCARDED"
STATES = (OPEN, REPLAYED, DISCARDED)
"""The states of a dead letter."""

# The names of these headers are those of Kafka Connect, so other tools know them
# (https://cwiki.apache.org/confluence/display/KAFKA/KIP-298%3A+Error+Handling+in+Connect).
_CONNECT = "__connect.errors."
_SOURCE_TOPIC, _SOURCE_PARTITION, _SOURCE_OFFSET = f"{_CONNECT}topic", f"{_CONNECT}partition", f"{_CONNECT}offset"
_CONNECTOR, _TASK, _STAGE, _WRITER = (
    f"{_CONNECT}{name}" for name in ("connector.name", "task.id", "stage", "class.name")
)
_CAUSE, _MESSAGE, _STACK = (f"{_CONNECT}exception.{name}" for name in ("class.name", "message", "stacktrace"))

_GROUP, _SCHEMA_ID, _ERROR_CLASS = "rtfm.consumer_group", "rtfm.schema_id", "rtfm.error_class"

# A replayed record has these headers after its original ones, in this order.
_REPLAY_OF, _ATTEMPT, _FIRST = "rtfm.replay_of", "rtfm.attempt", "rtfm.first_failure_ms"
_TIMESTAMP = "rtfm.original.timestamp_ms"
_REPLAY_BLOCK = (_REPLAY_OF, _ATTEMPT, _FIRST, _TIMESTAMP)

# The last header of a dead letter is _HEADER_COUNT. The last header of a mark is _MARK.
_HEADER_COUNT = "rtfm.original.header_count"
_MARK, _MARK_OF = "rtfm.mark", "rtfm.mark_of"

Headers = Sequence[tuple[str, bytes]]


@frozen
class OutgoingLetter:
    """A dead letter to be produced.

    ``offset`` is that of the record that failed. ``reason`` is the name of the error's class.
    """

    offset: int
    reason: str
    record: ProducerRecord


@frozen(kw_only=True)
class Replay:
    """The added headers of a replayed record.

    ``letter_id`` is the id of the dead letter that was replayed. ``attempt`` is the number of times that the record has
    failed, and ``first_failure_ms`` the time of the first failure. ``timestamp_ms`` is Kafka's timestamp of the
    original.
    """

    letter_id: str
    attempt: int
    first_failure_ms: int
    timestamp_ms: int

    def headers(self) -> list[tuple[str, bytes]]:
        """Return the headers to add after the original ones."""
        values = (self.letter_id, self.attempt, self.first_failure_ms, self.timestamp_ms)
        return [(name, str(value).encode()) for name, value in zip(_REPLAY_BLOCK, values, strict=True)]

    @classmethod
    def split(cls, headers: Headers) -> tuple[list[tuple[str, bytes]], Replay | None]:
        """Return the original headers of a record, and its Replay, which is None if the record is not a replay."""
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
        except (ValueError, AttributeError):  # Another program wrote these headers, so they belong to the original.
            return list(headers), None
        return list(headers[: -len(_REPLAY_BLOCK)]), replay


@frozen(kw_only=True)
class DeadLetterBuilder:
    """A builder of the dead letters of one group.

    It removes ``secrets``, and other text that looks like a secret, from error messages and stacks.
    """

    group: str
    secrets: tuple[str, ...] = ()
    clock_s: Callable[[], float] = time.time

    def build_letter(self, record: Record, error: BaseException, stage: str) -> OutgoingLetter:
        """Return the dead letter of ``record``. ``stage`` is DECODE, HANDLE, PRODUCE or CRASH.

        If ``record`` is a replay, the dead letter has the headers of the original and the time of the first failure.
        Its number of attempts is one higher than that of the replay.
        """
        original, replay = Replay.split(record.headers)
        cause = error.__cause__ or error
        now_ms = int(self.clock_s() * 1000)
        # Secrets are removed before the text is cut, because a part of a secret would not be recognised.
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
    """A dead letter as read from dead-letters. ``headers`` are the original headers, ``facts`` the added ones.

    If another program wrote the record, original and added headers cannot be told apart. Then ``headers`` is None, and
    ``facts`` contains all headers, so that any headers of Kafka Connect among them can be used.
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
        """The id: the partition and the offset of the dead letter in dead-letters. It never changes."""
        return f"{self.partition}-{self.offset}"

    @property
    def topic(self) -> str:
        """The topic of the original, without prefix."""
        return self.facts.get(_SOURCE_TOPIC, "")

    @property
    def origin(self) -> tuple[int, int]:
        """The partition and offset of the record that failed last, which may be a replay. Each is -1 if unknown."""
        return self.number(_SOURCE_PARTITION), self.number(_SOURCE_OFFSET)

    @property
    def stage(self) -> str:
        """The stage: DECODE, HANDLE, PRODUCE or CRASH. A dead letter of another program may have another stage."""
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
        """The number of times that the record has failed. Each replay that fails adds one."""
        return max(1, self.number(_ATTEMPT))

    @property
    def group(self) -> str:
        """The consumer group that could not handle the record."""
        return self.facts.get(_GROUP) or self.facts.get(_CONNECTOR, "")

    @property
    def schema_id(self) -> str:
        """The schema id in the value, or an empty text if the value has no schema id."""
        return self.facts.get(_SCHEMA_ID, "")

    @property
    def first_failure_ms(self) -> int:
        """The time when the record failed for the first time, in milliseconds since the epoch."""
        found = self.number(_FIRST)
        return found if found >= 0 else self.timestamp_ms

    def to_replay(self) -> Replay:
        """Return the added headers for a replay of this dead letter."""
        return Replay(
            letter_id=self.id,
            attempt=self.attempt,
            first_failure_ms=self.first_failure_ms,
            timestamp_ms=self.number(_TIMESTAMP),
        )

    def number(self, name: str) -> int:
        """Return the number in the added header ``name``, or -1 if the header is missing or not a number."""
        try:
            return int(self.facts.get(name, ""))
        except ValueError:
            return -1


@frozen
class Mark:
    """A mark, which says that the dead letter ``letter_id`` was replayed or discarded at ``at_ms``.

    ``kind`` is REPLAYED or DISCARDED.
    """

    letter_id: str
    kind: str
    at_ms: int

    @staticmethod
    def build_record(letter: Letter, kind: str) -> ProducerRecord:
        """Return the record of a mark for ``letter``.

        The mark goes to the partition of the dead letter, so that retention does not remove the mark before the dead
        letter.
        """
        headers = [(_MARK_OF, letter.id.encode()), (_MARK, kind.encode())]
        return ProducerRecord(TOPIC, f"mark-{letter.id}".encode(), None, headers, partition=letter.partition)


def parse_letter(raw_record: RawRecord) -> Letter | Mark:
    """Return ``raw_record``, a record of the topic dead-letters, as a dead letter or as a mark."""
    headers: list[tuple[str, bytes]] = list(raw_record.headers() or [])
    last, value = headers[-1] if headers else ("", b"")
    if last == _MARK and raw_record.value() is None:
        return Mark(_text(dict(headers).get(_MARK_OF)), _text(value), raw_record.timestamp()[1])
    count = -1
    if last == _HEADER_COUNT and _text(value).isdecimal():
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
    """Return at most ``limit`` bytes (in UTF-8) from the beginning of ``text``, or from its end."""
    data = text.encode("utf-8", "replace")
    return (data[-limit:] if end else data[:limit]).decode("utf-8", "ignore")


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "backslashreplace")


def _schema_id(record: Record) -> str:
    try:
        return str(schema_id_of(record.value or b""))
    except UndecodableRecord:
        return ""
