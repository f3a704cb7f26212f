"""Records, and a reader of one topic for the command line, tests and other programs.

The reader joins a group only if its caller names a group. Pipelines do not use the reader.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, cast

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, TopicPartition

from rtfm.contracts import Contracts
from rtfm.errors import PermanentError, RtfmError, TransientError, UndecodableRecord
from rtfm.settings import Settings
from rtfm.streams.connection import REQUEST_TIMEOUT_S, KafkaConfig


class RawRecord(Protocol):
    """A record as confluent_kafka returns it. A method is typed with None only if None occurs in practice."""

    def topic(self) -> str: ...
    def partition(self) -> int: ...
    def offset(self) -> int: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> list[tuple[str, bytes]] | None: ...
    def timestamp(self) -> tuple[int, int]: ...
    def error(self) -> KafkaError | None: ...


class Record(NamedTuple):
    """A record with its decoded value. ``topic`` is without prefix, and ``timestamp_ms`` is Kafka's timestamp.

    ``event`` is None if the topic has no schema, if decoding was not wanted, or if it failed. If decoding failed,
    ``error`` gives the reason. The class is a NamedTuple, because an instance is created for each record, and creating
    an attrs instance takes three times as long.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    timestamp_ms: int
    event: Any
    error: PermanentError | None = None

    def header(self, name: str) -> bytes | None:
        """Return the value of the last header with this ``name``, or None if there is no such header."""
        for key, value in reversed(self.headers):
            if key == name:
                return value
        return None


class EventReader:
    """A reader of ``topic``, which continues at the position of ``group``.

    Without a group, or if the group has no position, the reader starts at the beginning of the topic, or at the end of
    the topic if ``from_end`` is true. Raises Unavailable if Kafka does not answer, ConfigError if the topic does not
    exist.
    """

    def __init__(
        self,
        settings: Settings,
        contracts: Contracts,
        topic: str,
        *,
        group: str | None = None,
        from_end: bool = False,
    ) -> None:
        self._kafka = KafkaConfig.of(settings)
        self._contracts = contracts
        self._topic = topic
        self._consumer = Consumer(
            {
                **self._kafka.consumer_config(group or f"rtfm-reader-{settings.instance_id}"),
                "auto.offset.reset": "latest" if from_end else "earliest",
                "session.timeout.ms": 6000,  # If a reader is killed, nobody else gets its partitions for this long.
                "fetch.wait.max.ms": 50,
            }
        )
        self._ends: set[int] = set()
        name = self._kafka.topic(topic)
        try:
            self._partitions = self._kafka.list_partitions(self._consumer, name)
            with self._kafka.translating(f"reading {name}"):
                if group is not None:
                    self._consumer.subscribe([name])
                else:
                    self._consumer.assign(
                        [TopicPartition(name, p, self._start(name, p, from_end)) for p in self._partitions]
                    )
        except RtfmError:
            self._consumer.close()
            raise

    def _start(self, name: str, partition: int, from_end: bool) -> int:
        if not from_end:
            return int(OFFSET_BEGINNING)
        # The offset is read now. OFFSET_END would be resolved at the first poll, and records that the caller produces
        # before the first poll would be skipped.
        _, end = self._consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=REQUEST_TIMEOUT_S)
        return int(end) if end >= 0 else int(OFFSET_END)

    def poll(self, timeout_s: float) -> Record | None:
        """Return the next record, or None if none arrives within ``timeout_s`` or the end of a partition is reached.

        Raises Unavailable if Kafka does not answer, or if a schema is needed from the registry and the registry does
        not answer. The next call then continues with the record that could not be read.
        """
        raw_record = cast("RawRecord | None", self._consumer.poll(timeout_s))
        if raw_record is None:
            return None
        if (error := raw_record.error()) is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                self._ends.add(raw_record.partition())
                return None
            raise self._kafka.translate_error(error, f"reading {self._topic}")
        try:
            return to_record(self._topic, raw_record, self._contracts)
        except TransientError:
            # Without the seek, the next call would return the record after ``raw_record``.
            self._consumer.seek(TopicPartition(raw_record.topic(), raw_record.partition(), raw_record.offset()))
            raise

    def read_to_end(self) -> Iterator[Record]:
        """Yield the records that were not read yet, up to the end of the topic. Raises Unavailable."""
        self._ends.clear()
        idle = 0
        while len(self._ends) < len(self._partitions):
            record = self.poll(REQUEST_TIMEOUT_S)
            if record is not None:
                yield record
            idle = idle + 1 if record is None else 0
            if idle > len(self._partitions) + 3:
                raise self._kafka.translate_error(KafkaError(KafkaError._TIMED_OUT), f"reading {self._topic}")

    def commit(self, record: Record) -> None:
        """Commit the offset after ``record`` as the group's position in its partition. Raises Unavailable."""
        name = self._kafka.topic(record.topic)
        with self._kafka.translating(f"committing {name}"):
            self._consumer.commit(
                offsets=[TopicPartition(name, record.partition, record.offset + 1)], asynchronous=False
            )

    def close(self) -> None:
        """Leave the group if the reader joined one, and disconnect."""
        self._consumer.close()

    def __iter__(self) -> Iterator[Record]:
        while True:
            record = self.poll(1.0)
            if record is not None:
                yield record

    def __enter__(self) -> EventReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def to_record(topic: str, raw_record: RawRecord, contracts: Contracts | None) -> Record:
    """Return ``raw_record`` with its value decoded. If decoding fails, the result has an ``error``.

    If ``contracts`` is None, nothing is decoded. Raises Unavailable if a schema is needed from the registry and the
    registry does not answer.
    """
    value, event, error = raw_record.value(), None, None
    contract = contracts.catalogue.topics.get(topic) if contracts is not None else None
    if contracts is not None and contract is not None and contract.schema is not None:
        try:
            if value is None:
                raise UndecodableRecord("the record has no value (a tombstone)")
            event = contracts.decode(topic, value)
        except PermanentError as exc:
            error = exc
    return Record(
        topic,
        raw_record.partition(),
        raw_record.offset(),
        raw_record.key(),
        value,
        raw_record.headers() or [],
        raw_record.timestamp()[1],
        event,
        error,
    )
