"""Handling records in the pool: decode, call the handler, encode its outputs, and tell failures apart.

Owns what becomes of a failure: what can never succeed is a dead letter, what is down is waited for, and a defect is
raised. Knows nothing of offsets, transactions or assignments.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from attrs import define, field, frozen

from rtfm.backoff import Backoff
from rtfm.contracts import Contracts
from rtfm.errors import InvalidEvent, PermanentError, RtfmError, Throttled, TransientError, Unavailable
from rtfm.streams.consumer import Message, Record, record_of
from rtfm.streams.dead_letters.letters import DeadLetter, DeadLetterWriter
from rtfm.streams.position import PartitionState
from rtfm.streams.producer import event_headers
from rtfm.streams.quarantine import FATAL_DEATHS, KilledProcess, Quarantine
from rtfm.streams.transactions import Produced
from rtfm.telemetry import PIPELINE_PAUSED, PROCESS_SECONDS, child_traceparent, get_logger

FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 10.0
MAX_WAIT_S = 60.0
"""However long a dependency asks for: what it says may change, and who waits must notice."""

NOTICE_S = 0.5
MAX_OUTPUT_BYTES = 1_000_000
"""Kafka's default limit of a record is 1,048,588 bytes, headers and framing included."""

_log = get_logger(__name__)


@frozen(kw_only=True)
class Output:
    """An event that a handler wants produced; ``topic`` is without prefix."""

    topic: str
    event: Any
    headers: Mapping[str, bytes | str] = field(factory=dict)


Handler = Callable[[Sequence[Record]], Sequence[Output | Produced]]
"""Does a batch's work and gives what is to be produced, as events or as bytes.

It may be called again with the same records. It raises TransientError for what is down (the batch is tried again) and
PermanentError for what can never succeed (the batch's records are tried one by one, and the failing one is a dead
letter). Anything else is a defect and ends the pipeline; a record on which it ends four times is a dead letter.
"""


class HandlingResult(NamedTuple):
    """What became of records: outputs to produce, and dead letters."""

    produced: Sequence[Produced] = ()
    dead: Sequence[DeadLetter] = ()


NOTHING = HandlingResult()


class GaveUp(Exception):
    """The service is stopping, or the partition went elsewhere, while work waited for a dependency."""


@define
class WaitingState:
    """What a pipeline waits for; its threads note it, readiness and metrics show it."""

    group: str
    _by: dict[object, str] = field(factory=dict)
    _lock: threading.Lock = field(factory=threading.Lock)

    def note(self, who: object, error: TransientError) -> None:
        """``who`` waits for what ``error`` names."""
        dependency = error.dependency if isinstance(error, Unavailable) else "throttled"
        with self._lock:
            if dependency not in self._by.values():
                _log.warning("waiting", group=self.group, dependency=dependency, reason=str(error))
                PIPELINE_PAUSED.labels(self.group, dependency).set(1)
            self._by[who] = dependency

    def clear(self, who: object) -> None:
        """``who`` goes on."""
        if who not in self._by:  # read without the lock: only ``who`` itself adds it
            return
        with self._lock:
            dependency = self._by.pop(who)
            if dependency not in self._by.values():
                _log.info("going on", group=self.group, dependency=dependency)
                PIPELINE_PAUSED.labels(self.group, dependency).set(0)

    @property
    def dependency(self) -> str | None:
        """One of the dependencies that are waited for."""
        with self._lock:
            return next(iter(self._by.values()), None)


class Handling:
    """Handles records of one topic for one group. Safe to use from several threads."""

    def __init__(
        self,
        contracts: Contracts,
        *,
        topic: str,
        group: str,
        waiting: WaitingState,
        secrets: tuple[str, ...],
        quarantine: Quarantine,
        stop: threading.Event,
    ) -> None:
        self.handler: Handler
        """To be set before the first record is handled."""
        self._contracts = contracts
        self._topic = topic
        self._group = group
        self._writer = DeadLetterWriter(group=group, secrets=secrets)
        self._quarantine = quarantine
        self._waiting = waiting
        self._stop = stop
        self._seconds = PROCESS_SECONDS.labels(topic)

    def handle(self, messages: Sequence[Message], part: PartitionState) -> HandlingResult:
        """Handle ``messages`` of one partition as one batch, again and again while a dependency is down.

        Raises GaveUp when stopped, or no longer assigned, while waiting; and whatever defect the handler has.
        """
        if self._quarantine.active and (letter := self._killer(messages)) is not None:
            return letter
        try:
            return self._tried(messages)
        except TransientError as exc:
            return self._later(messages, part, exc)

    def _tried(self, messages: Sequence[Message]) -> HandlingResult:
        """Handle ``messages`` once; what ends the process meanwhile is written down."""
        quarantine, final = self._quarantine, messages[-1]
        place = self._group, final.partition(), messages[0].offset(), final.offset()
        if not quarantine.begin(*place):
            raise GaveUp
        try:
            started_s = time.monotonic()
            result = self._handled_with_bad(messages)
            self._seconds.observe(time.monotonic() - started_s)
            return result
        except RtfmError:  # what is down, or for the operator to mend, whichever record it was
            raise
        except Exception as exc:  # a defect of the handler, of any kind
            if quarantine.blame(*place):
                return self._buried(record_of(self._topic, final, None), exc, "HANDLE")
            raise
        finally:
            quarantine.finish()

    def _later(self, messages: Sequence[Message], part: PartitionState, error: TransientError) -> HandlingResult:
        """Handle ``messages`` when what ``error`` names is there again."""
        backoff = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S)
        try:
            while True:
                self._waiting.note(threading.get_ident(), error)
                wait_s = backoff.next_s()
                if isinstance(error, Throttled):
                    wait_s = min(error.retry_after_s, MAX_WAIT_S)
                self._wait(wait_s, part)
                try:
                    return self._tried(messages)
                except TransientError as exc:
                    error = exc
        finally:
            self._waiting.clear(threading.get_ident())

    def buried(self, message: Message, error: PermanentError) -> HandlingResult:
        """A dead letter in place of outputs that no broker takes."""
        return self._buried(record_of(self._topic, message, self._contracts), error, "PRODUCE")

    def _wait(self, wait_s: float, part: PartitionState) -> None:
        until_s = time.monotonic() + wait_s
        while (left_s := until_s - time.monotonic()) > 0:
            if self._stop.wait(min(left_s, NOTICE_S)) or not part.live:
                break
        if self._stop.is_set() or not part.live:
            raise GaveUp

    def _handled_with_bad(self, messages: Sequence[Message]) -> HandlingResult:
        records = [record_of(self._topic, message, self._contracts) for message in messages]
        if len(records) == 1 and records[0].error is None:
            return self._handled(records)
        bad = [self._buried(record, record.error, "DECODE") for record in records if record.error is not None]
        good = [record for record in records if record.error is None]
        return _merged([*bad, self._handled(good)] if good else bad)

    def _handled(self, records: Sequence[Record]) -> HandlingResult:
        try:
            outputs = self.handler(records)
            if not outputs:
                return NOTHING
            cause = records[0] if len(records) == 1 else None
            return HandlingResult(
                [output if isinstance(output, Produced) else self._encoded(output, cause) for output in outputs]
            )
        except PermanentError as exc:
            if len(records) == 1:
                return self._buried(records[0], exc, "HANDLE")
        return _merged([self._handled([record]) for record in records])

    def _encoded(self, output: Output, cause: Record | None) -> Produced:
        topic, event, given = output.topic, output.event, output.headers
        if cause is not None and cause.headers and (trace := cause.header("traceparent")) is not None:
            given = {"traceparent": child_traceparent(trace.decode("ascii", "replace")), **given}
        key, value = self._contracts.key(topic, event), self._contracts.encode(topic, event)
        produced = Produced(topic, key, value, event_headers(given))
        if (output.headers or len(value) > MAX_OUTPUT_BYTES // 2) and produced.size > MAX_OUTPUT_BYTES:
            raise InvalidEvent(f"an event for {topic} has {produced.size} bytes, more than {MAX_OUTPUT_BYTES}")
        return produced

    def _buried(self, record: Record, error: Exception, stage: str) -> HandlingResult:
        letter = self._writer.letter(record, error, stage)
        _log.warning(
            "dead letter",
            topic=self._topic,
            partition=record.partition,
            offset=record.offset,
            reason=letter.reason,
        )
        return HandlingResult(dead=(letter,))

    def _killer(self, messages: Sequence[Message]) -> HandlingResult | None:
        """The dead letter of a record that killed the process too often; it is not even decoded again."""
        deaths = self._quarantine.deaths(self._group, messages[0].partition(), messages[0].offset())
        if len(messages) > 1 or deaths < FATAL_DEATHS:
            return None
        error = KilledProcess(f"the process died {deaths} times while it had nothing but this record in hand")
        return self._buried(record_of(self._topic, messages[0], None), error, "CRASH")


def _merged(parts: Sequence[HandlingResult]) -> HandlingResult:
    return HandlingResult(
        [record for part in parts for record in part.produced],
        [letter for part in parts for letter in part.dead],
    )
