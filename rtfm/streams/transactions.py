"""Transactions: records and offsets of a group that become visible together or not at all.

Owns the transactional producer. If ``commit`` returns, everything is committed; if it raises NotCommitted, nothing is.
After OutcomeUnknown only the group's positions can tell, once ``open`` has ended the transaction. Does not decide when
to try again.
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
COMMIT_TIMEOUT_S = 8.0
"""Time limit for a whole transaction. Less than EXPIRY_S, so that this process ends it and not a broker."""

ABORT_TIMEOUT_S = 8.0
CALL_GRACE_S = 0.5
"""How long a call of librdkafka may exceed its own time limit before it is abandoned."""

EXPIRY_S = 10.0
"""How long a transaction may be open before a broker aborts it and fences its producer."""

STATISTICS_MS = 250
"""How soon a lost connection is noticed."""

CLOCK_JITTER_US = 10_000
"""Difference between two clock readings within one set of statistics; making a new connection takes longer."""

CLOCK_TOLERANCE_S = 1.0
"""How much earlier than EXPIRY_S, by this process's clock, a broker may have aborted a transaction."""

MAX_RECORD_BYTES = 2_000_000
"""A dead letter is a record of up to Kafka's default limit of a megabyte, plus the headers that give the reason."""

_PURGED = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}
_REBALANCING = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError._STATE,
}


class ProducerRecord(NamedTuple):
    """A record to produce. ``topic`` is without prefix; ``partition`` -1 lets the key decide."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    partition: int = -1

    @property
    def size(self) -> int:
        """The bytes of key, value and headers before compression."""
        headers = sum(len(name) + len(value or b"") for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers


class Fenced(RtfmError):
    """Another process uses this instance's name. This process must end, and may be started again."""


class NotCommitted(RtfmError):
    """Nothing of the transaction was committed.

    ``rebalancing``: the group is rebalancing, which is normal. ``too_large_for``: the topic that refused a record
    because of its size.
    """

    def __init__(self, message: str, *, rebalancing: bool = False, too_large_for: str | None = None) -> None:
        super().__init__(message)
        self.rebalancing = rebalancing
        self.too_large_for = too_large_for


class OutcomeUnknown(RtfmError):
    """It is unknown whether the transaction was committed."""


@frozen
class _Refusal:
    topic: str
    code: int
    reason: str


class Transactions:
    """The transactional producer of one instance in one group. Used by one thread.

    Of all producers with the same ``name``, only the one that was opened last can commit.
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
        """Broker id → the time since which the broker has been connected."""
        self._has_lost_connection = False
        self._needs_open = True

    @property
    def needs_open(self) -> bool:
        """Whether ``open`` must be called before anything else is sent, because the producer needs a new epoch.

        That is so if the outcome of a transaction is unknown, if records of an aborted transaction were refused, or if
        a connection was lost, so that a request on it may still be delivered. The client repeats such a request by
        itself. A broker that gets the first one late checks it only against the epoch of the producer, and would add
        its positions to a later transaction. (KIP-890 has an epoch for each transaction; librdkafka 2.16 does not
        implement it.)
        """
        if self._producer is not None:
            try:
                self._producer.poll(0)  # serves the statistics
            except KafkaException:  # after a fatal error every call raises
                self._needs_open = True
        return self._needs_open or self._has_lost_connection

    def open(self) -> None:
        """Create a new producer, which ends any transaction that a predecessor left open.

        Raises Unavailable without an answer, Fenced if another process opens the same name at the same time.
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
                # The wait while the markers of the last transaction are written; the default is 100 ms.
                "retry.backoff.ms": 10,
                "message.max.bytes": MAX_RECORD_BYTES,
                # A commit confirms all deliveries.
                "delivery.report.only.error": True,
                # How long to wait for a missing topic to appear; the default of 30 s outlasts a transaction.
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

        ``member`` is the group metadata of the consumer; it is needed if there are positions. Raises NotCommitted,
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
        """Raise Fenced if another process uses this name, by trying a transaction and aborting it.

        Without an answer from a broker it returns. ``position`` is sent for a group of this name, which no consumer
        uses: if a late request applied it after all, no records would be read again. Afterwards ``needs_open`` is true.
        """
        own = Consumer({**self._kafka.client_config(), "group.id": self._id})
        self._begin()
        try:
            self._producer.begin_transaction()
            self._send_offsets([position], own.consumer_group_metadata(), OPEN_TIMEOUT_S)
            self._producer.abort_transaction(ABORT_TIMEOUT_S)
        except OutcomeUnknown:
            pass  # needs_open is set below
        except KafkaException as exc:
            with suppress(NotCommitted, OutcomeUnknown):
                self._raise_failure(exc.args[0], exc)
        finally:
            self._needs_open = True
            own.close()

    def close(self) -> None:
        """Drop the producer. An open transaction stays open until a broker or the next ``open`` ends it."""
        if self._producer is not None:
            self._producer.purge()
            self._producer = None

    def _begin(self) -> None:
        self._refused, self._needs_open = None, True
        self._transaction_number += 1
        self._started_s = time.monotonic()

    def _produce(self, records: Iterable[ProducerRecord], counts: dict[str, int], deadline_s: float) -> None:
        """Queue ``records`` and count them by topic. Every record passes this loop, so it is kept tight."""
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
        # Only the brokers' own connections count: the logical one to the coordinator carries no positions, and changes
        # when the coordinator moves. The age of a connection is used because the count of disconnects starts again when
        # librdkafka replaces a broker.
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
        """Send ``positions``. Raises OutcomeUnknown if the call does not return; its producer and thread are abandoned.

        librdkafka does not keep its own time limit while the group's coordinator is away (librdkafka issue 5456).
        """
        send = partial(self._producer.send_offsets_to_transaction, positions, member, limit_s)
        try:
            run_within(limit_s + CALL_GRACE_S, send)
        except TimeoutError as exc:
            raise OutcomeUnknown(f"the offsets were not accepted within {limit_s:.1f} s") from exc

    def _on_delivery(self, number: int, error: KafkaError | None, record: Message) -> None:
        if error is None:
            return
        topic = (record.topic() or "").removeprefix(self._kafka.topic_prefix)
        SENT.labels(topic, error.name()).inc()
        # A purge by an abort says nothing about the cause; its reports may come as late as in the next transaction.
        if number == self._transaction_number and error.code() not in _PURGED:
            self._refused = self._refused or _Refusal(topic, error.code(), f"{record.topic()}: {error.str()}")

    def _raise_failure(self, error: KafkaError, exc: KafkaException) -> None:
        """Abort the transaction if that is possible, and raise what ``error`` means for it."""
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
        # The report of a refused record may come after the error that it causes, but not after the abort.
        refused = self._refused
        reason = error.str() if refused is None else refused.reason
        # A new epoch is needed if a request may still be under way: brokers check a late one against the epoch only,
        # and would add it to this producer's next transaction. It is also needed after a refused record, which leaves a
        # gap in the sequence numbers. A refusal by the group leaves neither.
        self._needs_open = refused is not None or error.code() not in _REBALANCING
        too_large = refused is not None and refused.code == KafkaError.MSG_SIZE_TOO_LARGE
        raise NotCommitted(
            reason,
            rebalancing=error.code() in _REBALANCING,
            too_large_for=refused.topic if refused is not None and too_large else None,
        ) from exc

    def _expired_or_fenced(self, error: KafkaError) -> RtfmError:
        """Return the error for a transaction that someone else ended: OutcomeUnknown if it had expired, else Fenced.

        A broker gives the same answer in both cases. An expired transaction, because brokers were down or this process
        was frozen for longer than EXPIRY_S, is no reason to end the process. If another process did take the name
        meanwhile, the next transaction shows it.
        """
        if time.monotonic() - self._started_s >= EXPIRY_S - CLOCK_TOLERANCE_S:
            return OutcomeUnknown(f"a transaction was open for longer than {EXPIRY_S:g} s: {error.str()}")
        return self._fenced_error(error)

    def _fenced_error(self, error: KafkaError) -> Fenced:
        return Fenced(
            f"another process took the place of {self._id}: {error.str()}",
            hint="RTFM_INSTANCE_ID must differ between instances",
        )


def is_member(metadata: bytes) -> bool:
    """Return whether a consumer with this group ``metadata`` is a member of its group.

    A broker accepts offsets of generation -1 without a check even if the group has members, so they must not be sent.
    The bytes are librdkafka's: a signature, then the generation (rd_kafka_consumer_group_metadata_write).
    """
    (generation,) = struct.unpack_from("<i", metadata, len("CGMDv2:"))
    return bool(generation >= 0)


def member_id(metadata: bytes) -> bytes:
    """Return the member id in group ``metadata``, after the name of the group; empty if the consumer is not a member.

    A classic group gives the id when a member joins and forgets it with the member. While the id stays the same, no
    other member was given this member's partitions.
    """
    _, _, rest = metadata[len("CGMDv2:") + 4 :].partition(b"\0")
    return rest.partition(b"\0")[0]


def _left_s(deadline_s: float) -> float:
    return max(0.1, deadline_s - time.monotonic())


def _is_fenced(error: KafkaError) -> bool:
    return bool(error.fatal()) or error.code() in (KafkaError._FENCED, KafkaError._FATAL)
