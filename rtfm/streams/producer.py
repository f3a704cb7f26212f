"""Producer: sends events outside of transactions.

A record is delivered when all in-sync replicas have acknowledged it. Retries do not duplicate records. The partitioner
is the one of Kafka's Java clients. The queue is bounded. If the queue is full, a call waits for room, and raises
Unavailable after the delivery timeout.

If a queued record is not delivered, ``on_delivery`` and the next ``flush`` report that. Records that are still queued
after ``close`` has waited for them are dropped. ``on_delivery``, the log and the metrics report them. If ``flush`` is
never called, failures do not fill the memory, because the producer keeps only their number for each reason.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from rtfm.contracts import Contracts
from rtfm.errors import RtfmError, Unavailable
from rtfm.settings import Settings
from rtfm.streams.connection import KafkaConfig
from rtfm.telemetry import SENT, get_logger, new_traceparent

CONTENT_TYPE = b"application/vnd.confluent.avro"
_POLL_S = 0.1
_REPORT_TIMEOUT_S = 2.0
"""Time limit for reporting dropped records when the producer is closed. These reports need no broker."""

_log = get_logger(__name__)

Headers = list[tuple[str, bytes]]
Report = Callable[[KafkaError | None, Message], None]


@frozen(kw_only=True)
class Delivery:
    """The delivery report of one record. ``error`` is None if the record was delivered. ``topic`` is without prefix."""

    topic: str
    partition: int
    offset: int
    error: str | None


class EventProducer:
    """A producer of events for the topics of the catalogue. It is safe to use from several threads."""

    def __init__(
        self, settings: Settings, contracts: Contracts, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._kafka = KafkaConfig.of(settings)
        self._contracts = contracts
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = Counter[str]()
        # Maps a topic to its name on the cluster and to the report callback for records without ``on_delivery``. Both
        # are cached, because building them for each record took a twelfth of the time that sending a question takes.
        self._routes: dict[str, tuple[str, Report]] = {}
        self._producer: Any = Producer(
            {
                **self._kafka.producer_config(),
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 10,
                "queue.buffering.max.messages": settings.kafka_queue_max_messages,
                "message.timeout.ms": int(settings.kafka_delivery_timeout_s * 1000),
                "message.max.bytes": 1_000_000,
            }
        )
        self._closed = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="producer-poll", daemon=True)
        self._poller.start()

    def send(
        self,
        topic: str,
        event: Any,
        *,
        headers: Mapping[str, bytes | str] | None = None,
        on_delivery: Callable[[Delivery], None] | None = None,
    ) -> None:
        """Queue ``event`` for ``topic``. If the queue is full, wait for room.

        Raises InvalidEvent if the event does not fit the schema, ConfigError if the schema is not registered, and
        Unavailable if the queue stays full for the delivery timeout or the registry does not answer.
        """
        value = self._contracts.encode(topic, event)
        self.send_raw(topic, self._contracts.key(topic, event), value, event_headers(headers), on_delivery=on_delivery)

    def send_raw(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        *,
        on_delivery: Callable[[Delivery], None] | None = None,
    ) -> None:
        """Queue bytes as they are. Raises Unavailable if the queue stays full for the delivery timeout."""
        if self._closed.is_set():
            raise RtfmError(f"{topic}: the producer is closed")
        try:
            name, report = self._routes[topic]
        except KeyError:
            name, report = self._routes[topic] = self._kafka.topic(topic), self._build_report(topic, None)
        if on_delivery is not None:
            report = self._build_report(topic, on_delivery)
        deadline = self._clock() + self._settings.kafka_delivery_timeout_s
        while True:
            try:
                self._producer.produce(name, value, key, headers=headers, on_delivery=report)
            except BufferError as exc:
                if self._clock() >= deadline:
                    raise self._kafka.unreachable_error(
                        f"{topic}: the queue of {len(self._producer)} stays full"
                    ) from exc
                self._producer.poll(_POLL_S)
            except KafkaException as exc:
                raise self._kafka.translate_error(exc, f"producing to {topic}") from exc
            else:
                return

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait up to ``timeout_s`` until all sent records are acknowledged.

        By default the time is a second longer than the delivery timeout. Raises Unavailable if records are not
        acknowledged in this time, or if records failed since the last flush. The error gives the number of all these
        records, and the reason for one of them.
        """
        waiting = self._producer.flush(self._settings.kafka_delivery_timeout_s + 1 if timeout_s is None else timeout_s)
        with self._lock:
            failures, self._failures = self._failures, Counter()
        if waiting or failures:
            raise Unavailable(
                "kafka",
                f"{waiting + failures.total()} records were not delivered to Kafka at"
                f" {self._settings.kafka_bootstrap_servers}: {next(iter(failures), 'no acknowledgement yet')}",
                hint="check that Kafka runs and its topics exist (`rtfm-cli topics check`)",
            )

    def __len__(self) -> int:
        """Return the number of records that are not acknowledged yet."""
        return len(self._producer)

    def close(self, timeout_s: float | None = None) -> None:
        """Wait up to ``timeout_s`` until the queued records are delivered, then stop. The default is that of ``flush``.

        Records that are not delivered in time are dropped. Each dropped record is reported to its ``on_delivery`` and
        counted in the metrics. The log gets their number.
        """
        if self._closed.is_set():
            return
        try:
            self.flush(timeout_s)
        except Unavailable as exc:
            _log.error("closing the producer, undelivered records are lost", reason=str(exc))
        self._producer.purge()
        self._producer.flush(_REPORT_TIMEOUT_S)
        self._closed.set()
        self._poller.join(timeout=2)

    def __enter__(self) -> EventProducer:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # If the ``with`` block raised an error, do not wait for Kafka.
        self.close(None if error is None else 0)

    def _poll(self) -> None:
        # poll() calls the report callbacks. This thread calls poll(), so that a caller need not do more than send.
        while not self._closed.is_set():
            self._producer.poll(_POLL_S)

    def _build_report(self, topic: str, on_delivery: Callable[[Delivery], None] | None) -> Report:
        count = SENT.labels(topic, "").inc

        def report(error: KafkaError | None, record: Message) -> None:
            if error is None:
                count()
            else:
                SENT.labels(topic, error.name()).inc()
                with self._lock:
                    self._failures[error.str()] += 1
            if on_delivery is None:
                return
            try:
                on_delivery(
                    Delivery(
                        topic=topic,
                        partition=-1 if (partition := record.partition()) is None else partition,
                        offset=-1 if (offset := record.offset()) is None else offset,
                        error=None if error is None else error.str(),
                    )
                )
            except Exception:  # Otherwise poll() or flush() would raise the error, perhaps in an unrelated caller.
                _log.exception("on_delivery failed", topic=topic)

        return report


def event_headers(given: Mapping[str, bytes | str] | None) -> Headers:
    """Return ``given`` as the headers of an event's record, with a trace and a content type added if missing."""
    if not given:
        return [("traceparent", new_traceparent().encode()), ("content-type", CONTENT_TYPE)]
    headers = {key: value.encode() if isinstance(value, str) else value for key, value in given.items()}
    if "traceparent" not in headers:
        headers["traceparent"] = new_traceparent().encode()
    headers.setdefault("content-type", CONTENT_TYPE)
    return list(headers.items())
