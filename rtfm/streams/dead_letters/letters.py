"""Dead letters: the form of the records in dead-letters, written and read.

A dead letter is the original record, key, value and headers byte for byte and in order, and behind its headers a block
that says where it stood and why it is here; the block's last header counts the original ones, so that they are told
apart whatever their names. A mark is a record without a value that says what became of a dead letter. Pure but for the
clock that is given. docs/dead-letters.md has every header.
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
"""What may have become of a letter."""

# Kafka Connect's names, which user interfaces know
# (https://cwiki.apache.org/confluence/display/KAFKA/KIP-298%3A+Error+Handling+in+Connect).
_CONNECT = "__connect.errors."
_SOURCE_TOPIC, _SOURCE_PARTITION, _SOURCE_OFFSET = f"{_CONNECT}topic", f"{_CONNECT}partition", f"{_CONNECT}offset"
_CONNECTOR, _TASK, _STAGE, _WRITER = (
    f"{_CONNECT}{name}" for name in ("connector.name", "task.id", "stage", "class.name")
)
_CAUSE, _MESSAGE, _STACK = (f"{_CONNECT}exception.{name}" for name in ("class.name", "message", "stacktrace"))

_GROUP, _SCHEMA_ID, _ERROR_CLASS = "rtfm.consumer_group", "rtfm.schema_id", "rtfm.error_class"

# What a replayed record carries behind its original headers, in this order.
_REPLAY_OF, _ATTEMPT, _FIRST = "rtfm.replay_of", "rtfm.attempt", "rtfm.first_failure_ms"
_TIMESTAMP = "rtfm.original.timestamp_ms"
_REPLAY_BLOCK = (_REPLAY_OF, _ATTEMPT, _FIRST, _TIMESTAMP)

# The last header tells what a record in dead-letters is.
_HEADER_COUNT = "rtfm.original.header_count"
_MARK, _MARK_OF = "rtfm.mark", "rtfm.mark_of"

Headers = Sequence[tuple[str, bytes]]


@frozen
class OutgoingLetter:
    """A dead letter to produce, the offset of its original and the reason that it is counted by."""

    offset: int
    reason: str
    record: ProducerRecord


@frozen(kw_only=True)
class Replay:
    """That a record was replayed: from which dead letter, after how many failures, the first of them when."""

    letter_id: str
    attempt: int
    first_failure_ms: int
    timestamp_ms: int

    def headers(self) -> list[tuple[str, bytes]]:
        """The headers that say so, for behind the original ones."""
        values = (self.letter_id, self.attempt, self.first_failure_ms, self.timestamp_ms)
        return [(name, str(value).encode()) for name, value in zip(_REPLAY_BLOCK, values, strict=True)]

    @classmethod
    def split(cls, headers: Headers) -> tuple[list[tuple[str, bytes]], Replay | None]:
        """The original headers of a record, and its replay if it is one."""
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
        except (ValueError, AttributeError):  # not ours, so it is original
            return list(headers), None
        return list(headers[: -len(_REPLAY_BLOCK)]), replay


@frozen(kw_only=True)
class DeadLetterWriter:
    """Makes dead letters for one group. ``secrets`` are taken out of messages and stacks, as what looks like one is."""

    group: str
    secrets: tuple[str, ...] = ()
    clock_s: Callable[[], float] = time.time

    def build_letter(self, record: Record, error: BaseException, stage: str) -> OutgoingLetter:
        """The dead letter of ``record``; ``stage`` is DECODE, HANDLE or CRASH.

        A replayed record that fails again has its original headers, the first failure's time and one attempt more.
        """
        original, replay = Replay.split(record.headers)
        cause = error.__cause__ or error
        now_ms = int(self.clock_s() * 1000)
        # Scrubbed before it is cut: half a secret is not recognised.
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
    """A dead letter as it stands in dead-letters. ``headers`` are the original ones; None when they cannot be told.

    They cannot where another program wrote the record; its facts are then those that it gives in Connect's headers.
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
        """Where it stands, which never changes."""
        return f"{self.partition}-{self.offset}"

    @property
    def topic(self) -> str:
        """The topic that the original came from, without prefix."""
        return self.facts.get(_SOURCE_TOPIC, "")

    @property
    def origin(self) -> tuple[int, int]:
        """(partition, offset) of the record that failed; -1 for what is not known."""
        return self.number(_SOURCE_PARTITION), self.number(_SOURCE_OFFSET)

    @property
    def stage(self) -> str:
        """DECODE, HANDLE or CRASH; another program's own."""
        return self.facts.get(_STAGE, "")

    @property
    def error_class(self) -> str:
        """The class of the error, without its module."""
        return self.facts.get(_ERROR_CLASS) or self.facts.get(_CAUSE, "").rpartition(".")[2]

    @property
    def message(self) -> str:
        """What went wrong, in a line."""
        return self.facts.get(_MESSAGE, "")

    @property
    def attempt(self) -> int:
        """How often the record failed; each replay is one more."""
        return max(1, self.number(_ATTEMPT))

    @property
    def group(self) -> str:
        """The consumer group that could not handle it."""
        return self.facts.get(_GROUP) or self.facts.get(_CONNECTOR, "")

    @property
    def schema_id(self) -> str:
        """The schema id that its value names; empty when it names none."""
        return self.facts.get(_SCHEMA_ID, "")

    @property
    def first_failure_ms(self) -> int:
        """When the record failed for the first time, UTC."""
        found = self.number(_FIRST)
        return found if found >= 0 else self.timestamp_ms

    def to_replay(self) -> Replay:
        """What a replay of it carries."""
        return Replay(
            letter_id=self.id,
            attempt=self.attempt,
            first_failure_ms=self.first_failure_ms,
            timestamp_ms=self.number(_TIMESTAMP),
        )

    def number(self, name: str) -> int:
        """The number in the header ``name``; -1 when there is none."""
        try:
            return int(self.facts.get(name, ""))
        except ValueError:
            return -1


@frozen
class Mark:
    """What became of the dead letter ``letter_id``: ``kind`` is REPLAYED or DISCARDED. ``at_ms`` is when."""

    letter_id: str
    kind: str
    at_ms: int

    @staticmethod
    def build_record(letter: Letter, kind: str) -> ProducerRecord:
        """The record of a mark; in the letter's own partition, so that retention takes it after the letter."""
        headers = [(_MARK_OF, letter.id.encode()), (_MARK, kind.encode())]
        return ProducerRecord(TOPIC, f"mark-{letter.id}".encode(), None, headers, partition=letter.partition)


def parse_letter(raw_record: RawRecord) -> Letter | Mark:
    """What a message from dead-letters is."""
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
    """``text`` in at most ``limit`` bytes of UTF-8: its beginning, or its ``end``."""
    data = text.encode("utf-8", "replace")
    return (data[-limit:] if end else data[:limit]).decode("utf-8", "ignore")


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "backslashreplace")


def _schema_id(record: Record) -> str:
    try:
        return str(schema_id_of(record.value or b""))
    except UndecodableRecord:
        return ""
