"""The pipeline of a service: poll, decode, handle, produce, commit.

Promises at least once: an offset is committed when its record's outputs, or its dead letter, are acknowledged.
What can never succeed becomes a dead letter; what is down for everyone pauses the pipeline, which keeps polling and
tries again with backoff, so nothing is skipped and no member is evicted for slow work.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from attrs import field, frozen
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, TopicPartition

from rtfm.contracts import Contracts
from rtfm.errors import ConfigError, PermanentError, RtfmError, TransientError, Unavailable
from rtfm.settings import Settings
from rtfm.streams import dead_letters
from rtfm.streams.connection import REQUEST_TIMEOUT_S, client_config, group_name, topic_name, translated
from rtfm.streams.consumer import Record, record_of
from rtfm.streams.producer import EventProducer
from rtfm.telemetry import (
    CONSUMED,
    DEAD_LETTERS,
    LOST_RECORDS,
    PIPELINE_PAUSED,
    PROCESS_SECONDS,
    Health,
    child_traceparent,
    get_logger,
)

POLL_S = 0.2
FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 10.0

_log = get_logger(__name__)
T = TypeVar("T")

__all__ = ["Handler", "Output", "Pipeline", "Record"]


@frozen(kw_only=True)
class Output:
    """An event that a handler wants produced; ``topic`` is without prefix."""

    topic: str
    event: Any
    headers: Mapping[str, bytes | str] = field(factory=dict)


Handler = Callable[[Sequence[Record]], Sequence[Output]]
"""Does a batch's work and gives what is to be produced.

It may be called again with the same records. It raises TransientError for what is down (the batch is tried again) and
PermanentError for what can never succeed (the batch's records are tried one by one, and the failing one is a dead
letter).
"""


class _Stopped(Exception):
    """The service is stopping, or the partitions went elsewhere, while work waited for a dependency."""


class Pipeline:
    """Reads one topic as one consumer group and hands its records to ``handler``.

    With ``concurrency`` 1 the handler gets batches of up to ``batch_size`` records in order; with more it gets one
    record a call, records of one key one after another.
    """

    def __init__(
        self,
        settings: Settings,
        contracts: Contracts,
        *,
        group: str,
        topic: str,
        handler: Handler,
        health: Health,
        batch_size: int = 500,
        concurrency: int = 1,
        stop: threading.Event,
    ) -> None:
        if topic not in contracts.catalogue.topics:
            raise ConfigError(f"there is no topic {topic} in contracts.toml")
        self._settings = settings
        self._contracts = contracts
        self._group = group
        self._topic = topic
        self._handler = handler
        self._health = health
        self._batch_size = batch_size
        self._concurrency = concurrency
        self._stop = stop
        self._assigned: set[int] = set()
        self._generation = 0
        self.paused_for: str | None = None
        """The dependency that the pipeline waits for, or None."""

    def run(self) -> None:
        """Work until ``stop`` is set, then finish what is in hand, commit and leave the group.

        Raises ConfigError for a topic that does not exist, or a fatal error of the client.
        """
        self._health.ready_when(self._group, self._not_ready)
        producer = EventProducer(self._settings, self._contracts)
        consumer = Consumer(
            {
                **client_config(self._settings),
                "group.id": group_name(self._settings, self._group),
                "partition.assignment.strategy": "cooperative-sticky",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "session.timeout.ms": 6000,
                "heartbeat.interval.ms": 1000,
                "max.poll.interval.ms": 40000,
                "fetch.wait.max.ms": 50,
            }
        )
        work = ThreadPoolExecutor(1, thread_name_prefix=f"{self._group}-work")
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix=self._group) if self._concurrency > 1 else None
        try:
            consumer.subscribe(
                [topic_name(self._settings, self._topic)], on_assign=self._on_assign, on_revoke=self._on_revoke,
                on_lost=self._on_revoke,
            )  # fmt: skip
            while not self._stop.is_set():
                self._health.beat(self._group)
                messages = self._take(consumer)
                if messages:
                    self._process(consumer, producer, work, pool, messages)
        finally:
            work.shutdown()
            if pool is not None:
                pool.shutdown()
            consumer.close()
            producer.close()

    def _take(self, consumer: Consumer) -> list[Any]:
        # consume(n, t) waits for all of t unless n records come; a poll for the first does not.
        first = consumer.poll(POLL_S)
        if first is None:
            return []
        messages = [first, *consumer.consume(self._batch_size - 1, 0)] if self._batch_size > 1 else [first]
        good = []
        for message in messages:
            error = message.error()
            if error is None:
                good.append(message)
            elif error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC) or error.fatal():
                raise translated(error, self._settings, f"reading {self._topic}")
            else:
                _log.warning("kafka", group=self._group, error=error.str())
        CONSUMED.labels(self._topic, self._group).inc(len(good))
        return good

    def _process(
        self,
        consumer: Consumer,
        producer: EventProducer,
        work: ThreadPoolExecutor,
        pool: ThreadPoolExecutor | None,
        messages: list[Any],
    ) -> None:
        """Do the batch's work in another thread while this one keeps polling, then commit."""
        generation = self._generation
        future = work.submit(self._work, producer, pool, messages, lambda: self._generation != generation)
        self._poll_until(consumer, future)
        try:
            future.result()
        except _Stopped:
            self._rewind(consumer, messages)
            return
        self._commit(consumer, messages)

    def _poll_until(self, consumer: Consumer, future: Future[None]) -> None:
        """Wait for the work; past a second, poll with the partitions paused so that the group keeps this member."""
        started = time.monotonic()
        paused: list[TopicPartition] = []
        while not future.done():
            if time.monotonic() - started < 1.0:
                _wait(future, 0.05)
                continue
            if not paused:
                paused = consumer.assignment()
                consumer.pause(paused)
            self._health.beat(self._group)
            stray: Any = consumer.poll(0)
            if stray is not None and stray.error() is None:
                # Of a partition that was assigned meanwhile: put it back and let it wait with the others.
                part = TopicPartition(stray.topic(), stray.partition(), stray.offset())
                consumer.pause([part])
                consumer.seek(part)
                paused.append(part)
            _wait(future, 0.1)
        if paused:
            current = {(part.topic, part.partition) for part in consumer.assignment()}
            consumer.resume([part for part in paused if (part.topic, part.partition) in current])

    def _work(
        self,
        producer: EventProducer,
        pool: ThreadPoolExecutor | None,
        messages: list[Any],
        moved: Callable[[], bool],
    ) -> None:
        def steadily(action: Callable[[], T]) -> T:
            return self._until_available(action, moved)

        started = time.monotonic()
        records = [steadily(partial(record_of, self._topic, message, self._contracts)) for message in messages]
        for record in records:
            if record.error is not None:
                self._bury(producer, record, record.error, "DECODE")
        good = [record for record in records if record.error is None]
        if pool is None:
            if good:
                self._handle(producer, good, steadily)
        else:
            lanes: dict[bytes | None, list[Record]] = {}
            for record in good:
                lanes.setdefault(record.key, []).append(record)
            futures = [pool.submit(self._lane, producer, lane, steadily) for lane in lanes.values()]
            for future in futures:
                future.result()
        self._deliver(producer)
        PROCESS_SECONDS.labels(self._topic).observe(time.monotonic() - started)

    def _deliver(self, producer: EventProducer) -> None:
        try:
            producer.flush()
        except Unavailable as exc:
            # What was not delivered is gone from the producer: only doing the batch again brings it back.
            self._note_waiting(exc)
            self._stop.wait(FIRST_BACKOFF_S)
            raise _Stopped from exc
        self._note_going_on()

    def _lane(self, producer: EventProducer, records: list[Record], steadily: Callable[..., Any]) -> None:
        for record in records:
            self._handle(producer, [record], steadily)

    def _handle(self, producer: EventProducer, records: list[Record], steadily: Callable[..., Any]) -> None:
        try:
            outputs = steadily(lambda: self._handler(records))
        except PermanentError as exc:
            if len(records) == 1:
                self._bury(producer, records[0], exc, "HANDLE")
                return
            for record in records:
                self._handle(producer, [record], steadily)
            return
        trace = records[0].header("traceparent") if len(records) == 1 else None
        for output in outputs:
            headers = dict(output.headers)
            if trace is not None:
                headers.setdefault("traceparent", child_traceparent(trace.decode("ascii", "replace")))
            steadily(partial(producer.send, output.topic, output.event, headers=headers))

    def _bury(self, producer: EventProducer, record: Record, error: PermanentError, stage: str) -> None:
        headers = dead_letters.headers_for(record, error, group=self._group, stage=stage)
        producer.send_raw(dead_letters.TOPIC, record.key, record.value, headers)
        DEAD_LETTERS.labels(self._topic, dead_letters.reason(error)).inc()
        _log.warning(
            "dead letter", topic=self._topic, partition=record.partition, offset=record.offset, reason=str(error)
        )

    def _until_available(self, action: Callable[[], T], moved: Callable[[], bool]) -> T:
        """The result of ``action``, tried again while a dependency is down."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                result = action()
            except TransientError as exc:
                self._note_waiting(exc)
                wait_s = getattr(exc, "retry_after_s", 0) or backoff_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
                if self._stop.wait(wait_s) or moved():
                    raise _Stopped from exc
                backoff_s = min(MAX_BACKOFF_S, backoff_s * 2)
                continue
            if self.paused_for != "kafka":  # whether it takes records again is known at the next delivery
                self._note_going_on()
            return result

    def _note_waiting(self, exc: TransientError) -> None:
        dependency = exc.dependency if isinstance(exc, Unavailable) else "throttled"
        if self.paused_for is None:
            _log.warning("waiting", group=self._group, dependency=dependency, reason=str(exc))
            PIPELINE_PAUSED.labels(self._group, dependency).set(1)
        self.paused_for = dependency

    def _note_going_on(self) -> None:
        if self.paused_for is not None:
            _log.info("going on", group=self._group, dependency=self.paused_for)
            PIPELINE_PAUSED.labels(self._group, self.paused_for).set(0)
            self.paused_for = None

    def _commit(self, consumer: Consumer, messages: list[Any]) -> None:
        ends: dict[int, int] = {}
        for message in messages:
            ends[message.partition()] = max(ends.get(message.partition(), 0), message.offset() + 1)
        name = topic_name(self._settings, self._topic)
        offsets = [TopicPartition(name, part, end) for part, end in ends.items() if part in self._assigned]
        if not offsets:
            return
        try:
            consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as exc:
            # The records are done; whoever has the partition now does them again, which is at least once.
            _log.warning("commit refused", group=self._group, reason=str(exc.args[0]))

    def _rewind(self, consumer: Consumer, messages: list[Any]) -> None:
        """Forget an unfinished batch: what is still assigned is read again."""
        starts: dict[int, int] = {}
        for message in messages:
            starts[message.partition()] = min(starts.get(message.partition(), message.offset()), message.offset())
        name = topic_name(self._settings, self._topic)
        for part, offset in starts.items():
            if part in self._assigned and not self._stop.is_set():
                consumer.seek(TopicPartition(name, part, offset))

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        try:
            self._assigned |= {part.partition for part in partitions}
            self._report_lost(consumer, partitions)
            _log.info("assigned", group=self._group, partitions=sorted(self._assigned))
        except (KafkaException, RtfmError) as exc:  # out of here it would become a SystemError of poll()
            _log.warning("assignment not checked", group=self._group, reason=str(exc))

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._assigned -= {part.partition for part in partitions}
        self._generation += 1
        _log.info("revoked", group=self._group, partitions=sorted(part.partition for part in partitions))

    def _report_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for part in consumer.committed(partitions, timeout=REQUEST_TIMEOUT_S):
            if part.offset == OFFSET_INVALID or part.offset < 0:
                continue
            low, _ = consumer.get_watermark_offsets(part, timeout=REQUEST_TIMEOUT_S)
            if part.offset < low:
                LOST_RECORDS.labels(self._topic, self._group).inc(low - part.offset)
                _log.error(
                    "retention removed records before they were read",
                    group=self._group,
                    partition=part.partition,
                    records=low - part.offset,
                )

    def _not_ready(self) -> str | None:
        if self.paused_for is not None:
            return f"waiting for {self.paused_for}"
        return None


def _wait(future: Future[None], timeout_s: float) -> None:
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    done.wait(timeout_s)
