"""Transactions: records and positions of a group that become visible together or not at all.

This module owns the transactional producer. If ``commit`` returns, the whole transaction is committed. If ``commit``
raises NotCommitted, nothing is committed. If ``commit`` raises OutcomeUnknown, the caller must call ``open``, which
ends the transaction, and then read the group's positions to find out whether the transaction was committed. The caller
decides when to try again.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from attrs import frozen
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from rtfm.deadline import run_within
from rtfm.errors import RtfmError
from rtfm.streams.connection import KafkaConfig
from rtfm.telemetry import SENT

OPEN_TIMEOUT_S = 5.0
"""Time limit for opening a producer."""

COMMIT_TIMEOUT_S = 8.0
"""Time limit for a whole transaction. It is less than EXPIRY_S, so that a broker does not end the transaction first."""

ABORT_TIMEOUT_S = 8.0
"""Time limit for aborting a transaction."""

CALL_GRACE_S = 0.5
"""A call of librdkafka is abandoned if it exceeds its own time limit by more than this."""

EXPIRY_S = 10.0
"""If a transaction is open for this long, a broker aborts the transaction and fences its producer."""

STATISTICS_MS = 250
"""Interval of librdkafka's statistics, which show whether a connection was lost."""

CLOCK_JITTER_US = 10_000
"""The start that is computed for one connection may differ by this many microseconds between two sets of statistics.

The reason is that librdkafka reads the clock twice for each set. If the start is later by more than this, the
connection is a new one.
"""

CLOCK_TOLERANCE_S = 1.0
"""By this process's clock, a broker may abort a transaction up to this much earlier than EXPIRY_S."""

MAX_RECORD_BYTES = 2_000_000
"""Largest allowed size of a record, in bytes.

A dead letter contains its original, which by default has up to a megabyte, and added headers.
"""

_PURGED = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}
_REBALANCING = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError._STATE,
}


class ProducerRecord(NamedTuple):
    """A record to be produced. ``topic`` is without prefix. With ``partition`` -1 the key decides the partition."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    partition: int = -1

    @property
    def size(self) -> int:
        """The size of key, value and headers before compression, in bytes."""
        headers = sum(len(name) + len(value or b"") for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers


class Fenced(RtfmError):
    """The transactional producer can no longer be used, usually because another process uses this instance's name.

    This process must end. It may be started again.
    """


class NotCommitted(RtfmError):
    """Nothing of the transaction was committed.

    ``rebalancing`` is true if the reason is a rebalance of the group, which is normal. If a broker refused a record
    because of its size, ``too_large_for`` is the topic of that record.
    """

    def __init__(self, message: str, *, rebalancing: bool = False, too_large_for: str | None = None) -> None:
        super().__init__(message)
        self.rebalancing = rebalancing
        self.too_large_for = too_large_for


class OutcomeUnknown(RtfmError):
    """It is unknown whether the transaction was committed."""


@frozen
class _Refusal:
    """A record that a broker refused: its topic, the code of the error, and the error as text."""

    topic: str
    code: int
    reason: str


class Transactions:
    """The transactional producer of one instance in one group. Only one thread may use it.

    Of all producers with the same ``name``, only the last one that was opened can commit.
    """

    def __init__(self, kafka: KafkaConfig, name: str) -> None:
        self._kafka = kafka
        self._id = self._kafka.group(name)
        self._prefix = self._kafka.topic("")
        self._producer: Any = None
        self._refused: _Refusal | None = None
        self._transaction_number = 0
        self._started_s = 0.0
        self._up_since_us: dict[int, int] = {}
        """By broker id, the time at which the current connection was made, in microseconds of librdkafka's clock."""
        self._has_lost_connection = False
        self._needs_open = True

    @property
    def needs_open(self) -> bool:
        """Whether ``open`` must be called before anything else is sent, because the producer needs a new epoch.

        A new epoch is needed if the outcome of a transaction is unknown, if a transaction was aborted for another
        reason than a rebalance, or if a connection was lost. A request that was sent on a lost connection may still
        reach the broker, after the client has repeated the request on a new connection. The broker checks such a late
        request only against the producer's epoch. With an unchanged epoch the broker would add the positions in the
        late request to a later transaction. (KIP-890 introduces an epoch for each transaction, but librdkafka 2.16 does
        not implement KIP-890.)
        """
        if self._producer is not None:
            try:
                self._producer.poll(0)  # This calls ``_on_statistics`` if statistics are due.
            except KafkaException:  # After a fatal error every call raises.
                self._needs_open = True
        return self._needs_open or self._has_lost_connection

    def open(self) -> None:
        """Create a new producer. This ends a transaction that an earlier producer of the same name left open.

        Raises Unavailable if Kafka does not answer, Fenced if another process opens a producer of the same name at the
        same time.
        """
        self._needs_open = True
        self.close()
        producer: Any = Producer(
            {
                **self._kafka.producer_config(),
                "transactional.id": self._id,
                "transaction.timeout.ms": int(EXPIRY_S * 1000),
                "message.timeout.ms": 9_000,
                "linger.ms": 5,
                # While the broker still writes the markers of the last transaction, it refuses a request, and
                # librdkafka repeats the request after this time. The default is 100 ms.
                "retry.backoff.ms": 10,
                "message.max.bytes": MAX_RECORD_BYTES,
                # A successful commit confirms that all records were delivered, so only failures are reported.
                "delivery.report.only.error": True,
                # How long to wait for a missing topic to appear. The default of 30 s is longer than EXPIRY_S.
                "topic.metadata.propagation.max.ms": 3_000,
                "statistics.interval.ms": STATISTICS_MS,
                "stats_cb": self._on_statistics,
            }
        )
        try:
            producer.init_transactions(OPEN_TIMEOUT_S)
        except KafkaException as exc:
            error = exc.args[0]
            if _is_fenced(error):
                raise self._fenced_error(error) from exc
            raise self._kafka.translate_error(exc, f"starting transactions of {self._id}") from exc
        self._producer = producer
        self._up_since_us.clear()
        self._needs_open = self._has_lost_connection = False

    def commit(
        self, records: Iterable[ProducerRecord], positions: Sequence[TopicPartition] = (), member: object = None
    ) -> None:
        """Produce ``records`` and commit ``positions`` in one transaction.

        ``member`` is the group metadata of the consumer and is required if there are positions. Raises NotCommitted,
        OutcomeUnknown, Fenced.
        """
        self._begin()
        counts: dict[str, int] = {}
        deadline_s = self._started_s + COMMIT_TIMEOUT_S
        try:
            self._producer.begin_transaction()
            self._produce(records, counts, deadline_s)
            if positions:
                self._send_offsets(list(positions), member, _left_s(deadline_s))
            self._producer.commit_transaction(_left_s(deadline_s))
        except KafkaException as exc:
            self._raise_failure(exc.args[0], exc)
        self._needs_open = False
        for topic, count in counts.items():
            SENT.labels(topic, "").inc(count)

    def confirm_name(self, position: TopicPartition) -> None:
        """Raise Fenced if another process uses this name.

        This method begins a transaction, sends ``position`` and aborts the transaction. If no broker answers, the
        method returns without an error. The position is sent for a group that no consumer uses, so that a late request
        can do no harm. After the call ``needs_open`` is true.
        """
        own = Consumer({**self._kafka.client_config(), "group.id": self._id})
        self._begin()
        try:
            self._producer.begin_transaction()
            self._send_offsets([position], own.consumer_group_metadata(), OPEN_TIMEOUT_S)
            self._producer.abort_transaction(ABORT_TIMEOUT_S)
        except OutcomeUnknown:
            pass
        except KafkaException as exc:
            with suppress(NotCommitted, OutcomeUnknown):
                self._raise_failure(exc.args[0], exc)
        finally:
            self._needs_open = True
            own.close()

    def close(self) -> None:
        """Drop the producer. A transaction that is open stays open until a broker or the next ``open`` ends it."""
        if self._producer is not None:
            self._producer.purge()
            self._producer = None

    def _begin(self) -> None:
        self._refused, self._needs_open = None, True
        self._transaction_number += 1
        self._started_s = time.monotonic()

    def _produce(self, records: Iterable[ProducerRecord], counts: dict[str, int], deadline_s: float) -> None:
        """Queue ``records`` in the producer, and count them by topic in ``counts``. The loop must be fast."""
        delivered = partial(self._on_delivery, self._transaction_number)
        produce, prefix = self._producer.produce, self._prefix
        for topic, key, value, headers, partition in records:
            counts[topic] = counts.get(topic, 0) + 1
            while True:
                try:
                    produce(prefix + topic, value, key, partition, delivered, headers=headers or None)
                    break
                except BufferError as exc:
                    if time.monotonic() > deadline_s:
                        raise OutcomeUnknown("the producer's queue stays full") from exc
                    self._producer.poll(0.05)

    def _on_statistics(self, text: str) -> None:
        # Only connections to brokers with an id are considered. The logical connection to the coordinator has no id. It
        # carries no positions, and changes when the coordinator moves. If the present connection to a broker started
        # later than the connection that was seen first, the first connection was lost. The count of disconnects is not
        # used, because it starts at 0 again when librdkafka replaces a broker.
        statistics = json.loads(text)
        for broker in statistics["brokers"].values():
            if (node := broker["nodeid"]) < 0:
                continue
            if broker["state"] == "UP":
                since_us = statistics["ts"] - broker["stateage"]
                has_lost = since_us - self._up_since_us.setdefault(node, since_us) > CLOCK_JITTER_US
            else:
                has_lost = node in self._up_since_us
            self._has_lost_connection |= has_lost

    def _send_offsets(self, positions: list[TopicPartition], member: object, limit_s: float) -> None:
        """Send ``positions``. Raises OutcomeUnknown if librdkafka's call does not return in time.

        librdkafka does not keep its own time limit while the group's coordinator is away (librdkafka issue 5456). So
        the call runs in a thread of its own. If the call does not return, the thread and the producer are abandoned.
        """
        send = partial(self._producer.send_offsets_to_transaction, positions, member, limit_s)
        try:
            run_within(limit_s + CALL_GRACE_S, send)
        except TimeoutError as exc:
            raise OutcomeUnknown(f"sending the positions did not return within {limit_s + CALL_GRACE_S:.1f} s") from exc

    def _on_delivery(self, number: int, error: KafkaError | None, record: Message) -> None:
        if error is None:
            return
        topic = (record.topic() or "").removeprefix(self._kafka.topic_prefix)
        SENT.labels(topic, error.name()).inc()
        # An abort purges queued records. The reports of purged records do not tell the cause of the abort, so these
        # reports are ignored. Reports of an earlier transaction may arrive during this one and are ignored, too.
        if number == self._transaction_number and error.code() not in _PURGED:
            self._refused = self._refused or _Refusal(topic, error.code(), f"{record.topic()}: {error.str()}")

    def _raise_failure(self, error: KafkaError, exc: KafkaException) -> None:
        """Abort the transaction if possible, and raise NotCommitted, OutcomeUnknown or Fenced because of ``error``."""
        if _is_fenced(error):
            raise self._expired_or_fenced(error) from exc
        if not error.txn_requires_abort():
            raise OutcomeUnknown(error.str()) from exc
        try:
            self._producer.abort_transaction(ABORT_TIMEOUT_S)
        except KafkaException as abort_error:
            if _is_fenced(abort_error.args[0]):
                raise self._expired_or_fenced(abort_error.args[0]) from abort_error
            raise OutcomeUnknown(error.str()) from abort_error
        # If a record was refused, its report may come after ``error``, but comes before the abort returns. So
        # ``_refused`` is read only now, after the abort.
        refused = self._refused
        reason = error.str() if refused is None else refused.reason
        # If a request of this transaction may still reach a broker, a new epoch is needed, because the broker would add
        # the request to the producer's next transaction. If a record was refused, a new epoch is needed, too, because
        # the refusal leaves a gap in the sequence numbers. If only the group refused the positions, no new epoch is
        # needed.
        self._needs_open = refused is not None or error.code() not in _REBALANCING
        too_large = refused is not None and refused.code == KafkaError.MSG_SIZE_TOO_LARGE
        raise NotCommitted(
            reason,
            rebalancing=error.code() in _REBALANCING,
            too_large_for=refused.topic if refused is not None and too_large else None,
        ) from exc

    def _expired_or_fenced(self, error: KafkaError) -> RtfmError:
        """Return OutcomeUnknown if the transaction was open for so long that a broker ended it, otherwise Fenced.

        Brokers send the same error in both cases. A transaction can expire because brokers are down or because this
        process is frozen, and the process need not end for that. If another process also uses the name, one of the two
        processes is fenced later.
        """
        if time.monotonic() - self._started_s >= EXPIRY_S - CLOCK_TOLERANCE_S:
            return OutcomeUnknown(f"a transaction was open for longer than {EXPIRY_S:g} s: {error.str()}")
        return self._fenced_error(error)

    def _fenced_error(self, error: KafkaError) -> Fenced:
        return Fenced(
            f"another process took the place of {self._id}, or its producer had a fatal error: {error.str()}",
            hint="RTFM_INSTANCE_ID must differ between instances. If it does, the error above is the cause.",
        )


def is_member(metadata: bytes) -> bool:
    """Return whether a consumer with this group ``metadata`` is a member of its group.

    If a consumer is not a member, its generation is -1. Positions must not be committed with the generation -1, because
    a broker accepts such positions without a check even if the group has members. librdkafka writes the metadata as a
    signature and then the generation (rd_kafka_consumer_group_metadata_write).
    """
    (generation,) = struct.unpack_from("<i", metadata, len("CGMDv2:"))
    return bool(generation >= 0)


def member_id(metadata: bytes) -> bytes:
    """Return the member id in group ``metadata``, which is empty if the consumer is not a member.

    In the metadata, the id follows the name of the group. A classic group gives a new id to each member that joins. So
    if the id has not changed, the member was not readmitted.
    """
    _, _, rest = metadata[len("CGMDv2:") + 4 :].partition(b"\0")
    return rest.partition(b"\0")[0]


def _left_s(deadline_s: float) -> float:
    return max(0.1, deadline_s - time.monotonic())


def _is_fenced(error: KafkaError) -> bool:
    return bool(error.fatal()) or error.code() in (KafkaError._FENCED, KafkaError._FATAL)
