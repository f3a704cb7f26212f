"""Handling: decodes records, calls the handler, encodes its outputs, and tells failures apart.

This module decides what follows a failure. A record that can never succeed becomes a dead letter. If a dependency is
unavailable, handling waits and tries again. A defect is raised, unless the quarantine says that its record must become
a dead letter. All of this runs in the pool's threads and does not use positions or transactions.
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
from rtfm.streams.dead_letters.letters import DeadLetterBuilder, OutgoingLetter
from rtfm.streams.position import PartitionState
from rtfm.streams.producer import event_headers
from rtfm.streams.quarantine import FATAL_CRASHES, KilledProcess, Quarantine
from rtfm.streams.transactions import ProducerRecord
from rtfm.telemetry import PIPELINE_PAUSED, PROCESS_SECONDS, child_traceparent, get_logger

FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 10.0
MAX_WAIT_S = 60.0
"""Longest wait after a dependency has throttled a request.

The wait is cut to this length even if the dependency asks for a longer wait, because the dependency's limits may change
meanwhile.
"""

STOP_CHECK_S = 0.5
"""How often a waiting thread checks whether it should stop."""

MAX_OUTPUT_BYTES = 1_000_000
"""Largest allowed size of an event with its headers, in bytes.

Kafka's default limit for a record is 1,048,588 bytes, headers and framing included.
"""

_log = get_logger(__name__)


@frozen(kw_only=True)
class Output:
    """An event to be produced to ``topic``, which is named without prefix."""

    topic: str
    event: Any
    headers: Mapping[str, bytes | str] = field(factory=dict)


Handler = Callable[[Sequence[Record]], Sequence[Output | ProducerRecord]]
"""A function that handles a batch of records and returns the outputs, as events or as bytes.

A handler may be called again with the same records, so its effects must be idempotent. The errors that a handler raises
have these consequences:

- TransientError: a dependency is unavailable. The handler is called again with the batch.
- PermanentError: a record of the batch can never succeed. If the batch is a single record, the record becomes a dead
  letter. If the batch is larger, the handler is called with each record alone.
- Any other RtfmError ends the pipeline.
- Any other exception is a defect and ends the pipeline, too. A crash journal counts the defects of each record across
  restarts. At its fourth defect the record becomes a dead letter, and the pipeline continues.
"""


class HandlingResult(NamedTuple):
    """The outputs and the dead letters of handled records. ``produced`` contains the outputs as producer records."""

    produced: Sequence[ProducerRecord] = ()
    dead_letters: Sequence[OutgoingLetter] = ()


EMPTY_RESULT = HandlingResult()
"""The result of records that have no outputs and no dead letters."""


class HandlingCancelled(Exception):
    """Handling ended without a result: the service is stopping, or the partition is no longer assigned."""


@define
class WaitingState:
    """The dependencies that a pipeline is waiting for. The pipeline's readiness and metrics show them.

    Several threads may use the same object. A wait after Throttled is shown as the dependency ``throttled``, because
    that error does not name the dependency.
    """

    group: str
    _dependencies: dict[object, str] = field(factory=dict)
    _lock: threading.Lock = field(factory=threading.Lock)

    def note(self, waiter: object, error: TransientError) -> None:
        """Note that ``waiter`` waits because of ``error``. Any hashable object can be a waiter."""
        dependency = error.dependency if isinstance(error, Unavailable) else "throttled"
        with self._lock:
            if dependency not in self._dependencies.values():
                _log.warning("waiting", group=self.group, dependency=dependency, reason=str(error))
                PIPELINE_PAUSED.labels(self.group, dependency).set(1)
            previous = self._dependencies.get(waiter)
            self._dependencies[waiter] = dependency
            if previous is not None:
                self._end_if_unused(previous)

    def clear(self, waiter: object) -> None:
        """Note that ``waiter`` no longer waits."""
        if waiter not in self._dependencies:  # No lock is needed, because only ``waiter`` itself adds this key.
            return
        with self._lock:
            self._end_if_unused(self._dependencies.pop(waiter))

    def _end_if_unused(self, dependency: str) -> None:
        """Note that the pipeline no longer waits for ``dependency``, unless a waiter still does."""
        if dependency not in self._dependencies.values():
            _log.info("no longer waiting", group=self.group, dependency=dependency)
            PIPELINE_PAUSED.labels(self.group, dependency).set(0)

    @property
    def dependency(self) -> str | None:
        """One of the dependencies that the pipeline is waiting for, or None if it is not waiting."""
        with self._lock:
            return next(iter(self._dependencies.values()), None)


class Handling:
    """The handling of one topic's records for one group. Several threads may use the same object."""

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
        """The handler. It must be set before ``handle`` is called."""
        self._contracts = contracts
        self._topic = topic
        self._group = group
        self._builder = DeadLetterBuilder(group=group, secrets=secrets)
        self._quarantine = quarantine
        self._waiting = waiting
        self._stop = stop
        self._seconds = PROCESS_SECONDS.labels(topic)

    def handle(self, raw_records: Sequence[RawRecord], partition: PartitionState) -> HandlingResult:
        """Handle ``raw_records`` of one partition as one batch, and try again while a dependency is unavailable.

        If this thread has to wait, and the service stops or the assignment of the partition ends meanwhile, raises
        HandlingCancelled. A defect of the handler is raised as it is, unless ``Quarantine.count_defect`` says that the
        record must become a dead letter.
        """
        if self._quarantine.is_active and (result := self._dead_letter_if_fatal(raw_records)) is not None:
            return result
        try:
            return self._handle_once(raw_records)
        except TransientError as exc:
            return self._retry(raw_records, partition, exc)

    def _handle_once(self, raw_records: Sequence[RawRecord]) -> HandlingResult:
        """Handle ``raw_records`` once. The quarantine notes that this thread is handling them."""
        quarantine, final = self._quarantine, raw_records[-1]
        location = self._group, final.partition(), raw_records[0].offset(), final.offset()
        if not quarantine.begin(*location):
            raise HandlingCancelled
        try:
            started_s = time.monotonic()
            result = self._decode_and_handle(raw_records)
            self._seconds.observe(time.monotonic() - started_s)
        except RtfmError:  # The cause is a dependency or the configuration, not a record.
            raise
        except Exception as exc:  # a defect of the handler
            if quarantine.count_defect(*location):
                return self._dead_letter(to_record(self._topic, final, None), exc, "HANDLE")
            raise
        else:
            return result
        finally:
            quarantine.finish()

    def _retry(
        self, raw_records: Sequence[RawRecord], partition: PartitionState, error: TransientError
    ) -> HandlingResult:
        """Wait and handle ``raw_records`` again, until no TransientError is raised. ``error`` is the first one."""
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
        """Return a dead letter of ``raw_record``, to replace outputs of this record that a broker refused."""
        return self._dead_letter(to_record(self._topic, raw_record, self._contracts), error, "PRODUCE")

    def _wait(self, wait_s: float, partition: PartitionState) -> None:
        """Wait ``wait_s``. Raises HandlingCancelled if the service stops or the partition is no longer assigned."""
        until_s = time.monotonic() + wait_s
        while (left_s := until_s - time.monotonic()) > 0:
            if self._stop.wait(min(left_s, STOP_CHECK_S)) or not partition.is_assigned:
                break
        if self._stop.is_set() or not partition.is_assigned:
            raise HandlingCancelled

    def _decode_and_handle(self, raw_records: Sequence[RawRecord]) -> HandlingResult:
        """Return dead letters of the records that do not decode, and the handler's outputs for the others."""
        records = [to_record(self._topic, raw_record, self._contracts) for raw_record in raw_records]
        if len(records) == 1 and records[0].error is None:
            return self._call_handler(records)
        failed = [self._dead_letter(record, record.error, "DECODE") for record in records if record.error is not None]
        decoded = [record for record in records if record.error is None]
        return _merge([*failed, self._call_handler(decoded)] if decoded else failed)

    def _call_handler(self, records: Sequence[Record]) -> HandlingResult:
        """Call the handler with ``records``. If it raises PermanentError, call it with each record alone."""
        try:
            outputs = self.handler(records)
            if not outputs:
                return EMPTY_RESULT
            record = records[0] if len(records) == 1 else None
            return HandlingResult(
                [output if isinstance(output, ProducerRecord) else self._encode(output, record) for output in outputs]
            )
        except PermanentError as exc:
            if len(records) == 1:
                return self._dead_letter(records[0], exc, "HANDLE")
        return _merge([self._call_handler([record]) for record in records])

    def _encode(self, output: Output, record: Record | None) -> ProducerRecord:
        """Encode ``output``, and continue the trace of ``record`` in its headers.

        ``record`` is None if the handler got several records. Raises PermanentError if the event is invalid or too
        large.
        """
        topic, event, headers = output.topic, output.event, output.headers
        if record is not None and record.headers and (trace := record.header("traceparent")) is not None:
            headers = {"traceparent": child_traceparent(trace.decode("ascii", "replace")), **headers}
        key, value = self._contracts.key(topic, event), self._contracts.encode(topic, event)
        produced = ProducerRecord(topic, key, value, event_headers(headers))
        if (output.headers or len(value) > MAX_OUTPUT_BYTES // 2) and produced.size > MAX_OUTPUT_BYTES:
            raise InvalidEvent(f"an event for {topic} has {produced.size} bytes, more than {MAX_OUTPUT_BYTES}")
        return produced

    def _dead_letter(self, record: Record, error: Exception, stage: str) -> HandlingResult:
        return HandlingResult(dead_letters=(self._builder.build_letter(record, error, stage),))

    def _dead_letter_if_fatal(self, raw_records: Sequence[RawRecord]) -> HandlingResult | None:
        """Return a dead letter if there is one record and it crashed the process too often. Otherwise return None.

        The record is not decoded, because decoding it may crash the process again.
        """
        crashes = self._quarantine.count_crashes(self._group, raw_records[0].partition(), raw_records[0].offset())
        if len(raw_records) > 1 or crashes < FATAL_CRASHES:
            return None
        error = KilledProcess(f"the process crashed {crashes} times while it handled only this record")
        return self._dead_letter(to_record(self._topic, raw_records[0], None), error, "CRASH")


def _merge(results: Sequence[HandlingResult]) -> HandlingResult:
    return HandlingResult(
        [record for result in results for record in result.produced],
        [letter for result in results for letter in result.dead_letters],
    )
