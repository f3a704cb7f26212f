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
from rtfm.streams.consumer import RawRecord, Record, to_record
from rtfm.streams.dead_letters.letters import DeadLetterWriter, OutgoingLetter
from rtfm.streams.position import PartitionState
from rtfm.streams.producer import event_headers
from rtfm.streams.quarantine import FATAL_DEATHS, KilledProcess, Quarantine
from rtfm.streams.transactions import ProducerRecord
from rtfm.telemetry import PIPELINE_PAUSED, PROCESS_SECONDS, child_traceparent, get_logger

FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 10.0
MAX_WAIT_S = 60.0
"""However long a dependency asks for: what it says may change, and waiter waits must notice."""

STOP_CHECK_S = 0.5
MAX_OUTPUT_BYTES = 1_000_000
"""Kafka's default limit of a record is 1,048,588 bytes, headers and framing included."""

_log = get_logger(__name__)


@frozen(kw_only=True)
class Output:
    """An event that a handler wants produced; ``topic`` is without prefix."""

    topic: str
    event: Any
    headers: Mapping[str, bytes | str] = field(factory=dict)


Handler = Callable[[Sequence[Record]], Sequence[Output | ProducerRecord]]
"""Does a batch's work and gives what is to be produced, as events or as bytes.

It may be called again with the same records. It raises TransientError for what is down (the batch is tried again) and
PermanentError for what can never succeed (the batch's records are tried one by one, and the failing one is a dead
letter). Anything else is a defect and ends the pipeline; a record on which it ends four times is a dead letter.
"""


class HandlingResult(NamedTuple):
    """What became of records: outputs to produce, and dead letters."""

    produced: Sequence[ProducerRecord] = ()
    dead_letters: Sequence[OutgoingLetter] = ()


NOTHING = HandlingResult()


class HandlingCancelled(Exception):
    """The service is stopping, or the partition went elsewhere, while work waited for a dependency."""


@define
class WaitingState:
    """What a pipeline waits for; its threads note it, readiness and metrics show it."""

    group: str
    _dependencies: dict[object, str] = field(factory=dict)
    _lock: threading.Lock = field(factory=threading.Lock)

    def note(self, waiter: object, error: TransientError) -> None:
        """``waiter`` waits for what ``error`` names."""
        dependency = error.dependency if isinstance(error, Unavailable) else "throttled"
        with self._lock:
            if dependency not in self._dependencies.values():
                _log.warning("waiting", group=self.group, dependency=dependency, reason=str(error))
                PIPELINE_PAUSED.labels(self.group, dependency).set(1)
            self._dependencies[waiter] = dependency

    def clear(self, waiter: object) -> None:
        """``waiter`` goes on."""
        if waiter not in self._dependencies:  # read without the lock: only ``waiter`` itself adds it
            return
        with self._lock:
            dependency = self._dependencies.pop(waiter)
            if dependency not in self._dependencies.values():
                _log.info("going on", group=self.group, dependency=dependency)
                PIPELINE_PAUSED.labels(self.group, dependency).set(0)

    @property
    def dependency(self) -> str | None:
        """One of the dependencies that are waited for."""
        with self._lock:
            return next(iter(self._dependencies.values()), None)


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

    def handle(self, raw_records: Sequence[RawRecord], partition: PartitionState) -> HandlingResult:
        """Handle ``raw_records`` of one partition as one batch, again and again while a dependency is down.

        Raises HandlingCancelled when stopped, or no longer assigned, while waiting; and whatever defect the handler has.
        """
        if self._quarantine.is_active and (letter := self._dead_letter_if_fatal(raw_records)) is not None:
            return letter
        try:
            return self._handle_once(raw_records)
        except TransientError as exc:
            return self._retry(raw_records, partition, exc)

    def _handle_once(self, raw_records: Sequence[RawRecord]) -> HandlingResult:
        """Handle ``raw_records`` once; what ends the process meanwhile is written down."""
        quarantine, final = self._quarantine, raw_records[-1]
        location = self._group, final.partition(), raw_records[0].offset(), final.offset()
        if not quarantine.begin(*location):
            raise HandlingCancelled
        try:
            started_s = time.monotonic()
            result = self._decode_and_handle(raw_records)
            self._seconds.observe(time.monotonic() - started_s)
            return result
        except RtfmError:  # what is down, or for the operator to mend, whichever record it was
            raise
        except Exception as exc:  # a defect of the handler, of any kind
            if quarantine.blame(*location):
                return self._dead_letter(to_record(self._topic, final, None), exc, "HANDLE")
            raise
        finally:
            quarantine.finish()

    def _retry(
        self, raw_records: Sequence[RawRecord], partition: PartitionState, error: TransientError
    ) -> HandlingResult:
        """Handle ``raw_records`` when what ``error`` names is there again."""
        backoff = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S)
        try:
            while True:
                self._waiting.note(threading.get_ident(), error)
                wait_s = backoff.next_s()
                if isinstance(error, Throttled):
                    wait_s = min(error.retry_after_s, MAX_WAIT_S)
                self._wait(wait_s, partition)
                try:
                    return self._handle_once(raw_records)
                except TransientError as exc:
                    error = exc
        finally:
            self._waiting.clear(threading.get_ident())

    def dead_letter_output(self, raw_record: RawRecord, error: PermanentError) -> HandlingResult:
        """A dead letter in location of outputs that no broker takes."""
        return self._dead_letter(to_record(self._topic, raw_record, self._contracts), error, "PRODUCE")

    def _wait(self, wait_s: float, partition: PartitionState) -> None:
        until_s = time.monotonic() + wait_s
        while (left_s := until_s - time.monotonic()) > 0:
            if self._stop.wait(min(left_s, STOP_CHECK_S)) or not partition.is_assigned:
                break
        if self._stop.is_set() or not partition.is_assigned:
            raise HandlingCancelled

    def _decode_and_handle(self, raw_records: Sequence[RawRecord]) -> HandlingResult:
        records = [to_record(self._topic, raw_record, self._contracts) for raw_record in raw_records]
        if len(records) == 1 and records[0].error is None:
            return self._call_handler(records)
        bad = [self._dead_letter(record, record.error, "DECODE") for record in records if record.error is not None]
        good = [record for record in records if record.error is None]
        return _merge([*bad, self._call_handler(good)] if good else bad)

    def _call_handler(self, records: Sequence[Record]) -> HandlingResult:
        try:
            outputs = self.handler(records)
            if not outputs:
                return NOTHING
            cause = records[0] if len(records) == 1 else None
            return HandlingResult(
                [output if isinstance(output, ProducerRecord) else self._encode(output, cause) for output in outputs]
            )
        except PermanentError as exc:
            if len(records) == 1:
                return self._dead_letter(records[0], exc, "HANDLE")
        return _merge([self._call_handler([record]) for record in records])

    def _encode(self, output: Output, cause: Record | None) -> ProducerRecord:
        topic, event, headers = output.topic, output.event, output.headers
        if cause is not None and cause.headers and (trace := cause.header("traceparent")) is not None:
            headers = {"traceparent": child_traceparent(trace.decode("ascii", "replace")), **headers}
        key, value = self._contracts.key(topic, event), self._contracts.encode(topic, event)
        produced = ProducerRecord(topic, key, value, event_headers(headers))
        if (output.headers or len(value) > MAX_OUTPUT_BYTES // 2) and produced.size > MAX_OUTPUT_BYTES:
            raise InvalidEvent(f"an event for {topic} has {produced.size} bytes, more than {MAX_OUTPUT_BYTES}")
        return produced

    def _dead_letter(self, record: Record, error: Exception, stage: str) -> HandlingResult:
        letter = self._writer.build_letter(record, error, stage)
        _log.warning(
            "dead letter",
            topic=self._topic,
            partition=record.partition,
            offset=record.offset,
            reason=letter.reason,
        )
        return HandlingResult(dead_letters=(letter,))

    def _dead_letter_if_fatal(self, raw_records: Sequence[RawRecord]) -> HandlingResult | None:
        """The dead letter of a record that killed the process too often; it is not even decoded again."""
        deaths = self._quarantine.deaths(self._group, raw_records[0].partition(), raw_records[0].offset())
        if len(raw_records) > 1 or deaths < FATAL_DEATHS:
            return None
        error = KilledProcess(f"the process died {deaths} times while it had nothing but this record in hand")
        return self._dead_letter(to_record(self._topic, raw_records[0], None), error, "CRASH")


def _merge(results: Sequence[HandlingResult]) -> HandlingResult:
    return HandlingResult(
        [record for result in results for record in result.produced],
        [letter for result in results for letter in result.dead_letters],
    )
