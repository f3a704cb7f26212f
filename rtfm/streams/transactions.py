"""Transactions: records and offsets of a group that become visible together or not at all.

Owns the transactional producer. Promises that after ``commit`` returns all of it is committed, after ``NotCommitted``
none of it, and after ``OutcomeUnknown`` that only the group's offsets can tell, once ``open`` has ended the old
transaction. Does not decide when to try again.
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
"""For all of a transaction; less than a broker gives it, so that we end it and no broker does."""

ABORT_TIMEOUT_S = 8.0
BEYOND_LIMIT_S = 0.5
"""How long a call of librdkafka may exceed the limit that it was given."""

EXPIRY_S = 10.0
"""A broker ends a transaction that is open for so long, and its producer with it."""

STATISTICS_MS = 250
"""How soon a lost connection is noticed."""

SAME_CONNECTION_US = 10_000
"""Two readings of the clock in one set of statistics; a new connection takes longer."""

CLOCKS_APART_S = 1.0
MAX_RECORD_BYTES = 2_000_000
"""A dead letter is a record of up to a megabyte, Kafka's default limit, with headers that say why."""

_THROWN_OUT = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}
_REBALANCING = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError._STATE,
}


class Produced(NamedTuple):
    """A record to produce; ``topic`` is without prefix. ``partition`` is -1 where the key decides."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    partition: int = -1

    @property
    def size(self) -> int:
        """Bytes of key, value and headers, before compression."""
        headers = sum(len(name) + len(value or b"") for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers


class Fenced(RtfmError):
    """Another process has taken this one's place; it must end, and may be started again."""


class NotCommitted(RtfmError):
    """Nothing of the transaction was committed.

    ``rebalancing``: the group is about to move partitions, as it may. ``too_large_for``: the topic that takes no
    record as large as one of these.
    """

    def __init__(self, message: str, *, rebalancing: bool = False, too_large_for: str | None = None) -> None:
        super().__init__(message)
        self.rebalancing = rebalancing
        self.too_large_for = too_large_for


class OutcomeUnknown(RtfmError):
    """The transaction was or was not committed."""


@frozen
class _Refusal:
    topic: str
    code: int
    reason: str


class Transactions:
    """The transactional producer of one instance in one group. Used by one thread.

    Of all that share ``name`` only the one that was opened last can commit.
    """

    def __init__(self, kafka: KafkaConfig, name: str) -> None:
        self._kafka = kafka
        self._id = self._kafka.group(name)
        self._prefix = self._kafka.topic("")
        self._producer: Any = None
        self._refused: _Refusal | None = None
        self._number = 0
        self._began_s = 0.0
        self._up_since_us: dict[int, int] = {}
        """Since when each broker has been connected, by its id."""
        self._has_lost_connection = False
        self._in_doubt = True

    @property
    def in_doubt(self) -> bool:
        """Whether ``open`` is due, before anything else is sent.

        A transaction may be open, or have ended, without our knowing; records of an aborted one were not taken; or a
        connection was lost, so that a request on it may still be delivered. The client repeats such a request by
        itself, and a broker that gets the first one late checks it against the epoch of the producer alone: it would
        take the positions in it into a later transaction (KIP-890 has an epoch for each transaction, which librdkafka
        2.16 does not know). A new producer has a new epoch.
        """
        if self._producer is not None:
            try:
                self._producer.poll(0)  # serves the statistics
            except KafkaException:  # a producer with a fatal error raises it from every call
                self._in_doubt = True
        return self._in_doubt or self._has_lost_connection

    def open(self) -> None:
        """Make a producer anew, which ends whatever transaction a predecessor left open.

        Raises Unavailable without an answer, Fenced when another process is doing the same.
        """
        self._in_doubt = True
        self.close()
        producer: Any = Producer(
            {
                **self._kafka.producer(),
                "transactional.id": self._id,
                "transaction.timeout.ms": int(EXPIRY_S * 1000),
                "message.timeout.ms": 9_000,
                "linger.ms": 5,
                # What a transaction waits while the markers of the last one are being written; the default is 100 ms.
                "retry.backoff.ms": 10,
                "message.max.bytes": MAX_RECORD_BYTES,
                # The transaction tells of all that went well.
                "delivery.report.only.error": True,
                # How long a topic that is not there may still turn up; the default of 30 s outlasts a transaction.
                "topic.metadata.propagation.max.ms": 3_000,
                "statistics.interval.ms": STATISTICS_MS,
                "stats_cb": self._on_statistics,
            }
        )
        try:
            producer.init_transactions(OPEN_TIMEOUT_S)
        except KafkaException as exc:
            error = exc.args[0]
            if _fenced(error):
                raise self._fenced(error) from exc
            raise self._kafka.translated(exc, f"starting transactions of {self._id}") from exc
        self._producer = producer
        self._up_since_us.clear()
        self._in_doubt = self._has_lost_connection = False

    def commit(
        self, records: Iterable[Produced], positions: Sequence[TopicPartition] = (), member: object = None
    ) -> None:
        """Produce ``records`` and commit ``positions`` of the group, if any, in one transaction.

        Raises NotCommitted, OutcomeUnknown or Fenced.
        """
        self._begin()
        counts: dict[str, int] = {}
        deadline_s = self._began_s + COMMIT_TIMEOUT_S
        try:
            self._producer.begin_transaction()
            self._produce(records, counts, deadline_s)
            if positions:
                self._send_offsets(list(positions), member, _left_s(deadline_s))
            self._producer.commit_transaction(_left_s(deadline_s))
        except KafkaException as exc:
            self._failed(exc.args[0], exc)
        self._in_doubt = False
        for topic, count in counts.items():
            SENT.labels(topic, "").inc(count)

    def confirm(self, position: TopicPartition) -> None:
        """Ask the brokers who has the name, with a transaction that is aborted. Raises Fenced; no answer is silence.

        ``position`` is sent for a group of the name's own that nobody reads with: were it applied after all, because
        the request arrives late, no partition would be read again. A new producer is due afterwards.
        """
        own = Consumer({**self._kafka.client(), "group.id": self._id})
        self._begin()
        try:
            self._producer.begin_transaction()
            self._send_offsets([position], own.consumer_group_metadata(), OPEN_TIMEOUT_S)
            self._producer.abort_transaction(ABORT_TIMEOUT_S)
        except OutcomeUnknown:
            pass  # in doubt, as after any other end
        except KafkaException as exc:
            with suppress(NotCommitted, OutcomeUnknown):
                self._failed(exc.args[0], exc)
        finally:
            self._in_doubt = True
            own.close()

    def close(self) -> None:
        """Drop the producer; a transaction that is open stays so until the broker ends it, or ``open``."""
        if self._producer is not None:
            self._producer.purge()
            self._producer = None

    def _begin(self) -> None:
        self._refused, self._in_doubt = None, True
        self._number += 1
        self._began_s = time.monotonic()

    def _produce(self, records: Iterable[Produced], counts: dict[str, int], deadline_s: float) -> None:
        """Queue ``records`` and count them by topic. Every record goes through this loop alone, so it is tight."""
        delivered = partial(self._delivered, self._number)
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
        # Of the brokers themselves: the coordinator's own connection carries no positions, and moves as it does. The
        # count of disconnects begins again when librdkafka replaces a broker, so the age of the connection tells.
        told = json.loads(text)
        for broker in told["brokers"].values():
            if (node := broker["nodeid"]) < 0:
                continue
            if broker["state"] == "UP":
                since_us = told["ts"] - broker["stateage"]
                has_lost = since_us - self._up_since_us.setdefault(node, since_us) > SAME_CONNECTION_US
            else:
                has_lost = node in self._up_since_us
            self._has_lost_connection |= has_lost

    def _send_offsets(self, positions: list[TopicPartition], member: object, limit_s: float) -> None:
        """Raises OutcomeUnknown where the call does not come back; that producer and its thread are left behind.

        librdkafka has a limit for a group's coordinator that is away and does not keep it (librdkafka issue 5456).
        """
        send = partial(self._producer.send_offsets_to_transaction, positions, member, limit_s)
        try:
            run_within(limit_s + BEYOND_LIMIT_S, send)
        except TimeoutError as exc:
            raise OutcomeUnknown(f"offsets were not taken within {limit_s:.1f} s") from exc

    def _delivered(self, number: int, error: KafkaError | None, message: Message) -> None:
        if error is None:
            return
        topic = (message.topic() or "").removeprefix(self._kafka.topic_prefix)
        SENT.labels(topic, error.name()).inc()
        # What an abort threw out says nothing of why; its reports may come as late as in the next transaction.
        if number == self._number and error.code() not in _THROWN_OUT:
            self._refused = self._refused or _Refusal(topic, error.code(), f"{message.topic()}: {error.str()}")

    def _failed(self, error: KafkaError, exc: KafkaException) -> None:
        """Raise what ``error`` means for the transaction, having ended it where that can be known."""
        if _fenced(error):
            raise self._ended(error) from exc
        if not error.txn_requires_abort():
            raise OutcomeUnknown(error.str()) from exc
        try:
            self._producer.abort_transaction(ABORT_TIMEOUT_S)
        except KafkaException as failed:
            if _fenced(failed.args[0]):
                raise self._ended(failed.args[0]) from failed
            raise OutcomeUnknown(error.str()) from failed
        # The report that a record was refused may come after the error that it led to, but not after the abort.
        refused = self._refused
        reason = error.str() if refused is None else refused.reason
        # A new producer has a new epoch. It is needed where a request may still be under way: brokers check a late one
        # against the epoch only, and would take it into this producer's next transaction. It is needed as well where
        # a record was refused, which leaves a gap in the sequence numbers. An answer of the group leaves neither.
        self._in_doubt = refused is not None or error.code() not in _REBALANCING
        too_large = refused is not None and refused.code == KafkaError.MSG_SIZE_TOO_LARGE
        raise NotCommitted(
            reason,
            rebalancing=error.code() in _REBALANCING,
            too_large_for=refused.topic if refused is not None and too_large else None,
        ) from exc

    def _ended(self, error: KafkaError) -> RtfmError:
        """Why somebody else ended the transaction. A broker says the same of a name taken and of a time over.

        Brokers that died, or this process frozen, for longer than a transaction may last are no reason to end. Where
        another process did take the place meanwhile, the two of them part at the next transaction.
        """
        if time.monotonic() - self._began_s >= EXPIRY_S - CLOCKS_APART_S:
            return OutcomeUnknown(f"a transaction was open for longer than {EXPIRY_S:g} s: {error.str()}")
        return self._fenced(error)

    def _fenced(self, error: KafkaError) -> Fenced:
        return Fenced(
            f"another process took the place of {self._id}: {error.str()}",
            hint="RTFM_INSTANCE_ID must differ between instances",
        )


def is_member(metadata: bytes) -> bool:
    """Whether group ``metadata`` of a consumer is of a member.

    A broker takes offsets of generation -1 unchecked, beside live members, so they must not be sent. The bytes are
    librdkafka's: a signature, then the generation (rd_kafka_consumer_group_metadata_write).
    """
    (generation,) = struct.unpack_from("<i", metadata, len("CGMDv2:"))
    return bool(generation >= 0)


def member_id(metadata: bytes) -> bytes:
    """The id that the group gave a member in group ``metadata``, behind the name of the group; empty for no member.

    A classic group gives it at joining and forgets it with the member: as long as it is the same, nobody else was given
    what this member has.
    """
    _, _, rest = metadata[len("CGMDv2:") + 4 :].partition(b"\0")
    return rest.partition(b"\0")[0]


def _left_s(deadline_s: float) -> float:
    return max(0.1, deadline_s - time.monotonic())


def _fenced(error: KafkaError) -> bool:
    return bool(error.fatal()) or error.code() in (KafkaError._FENCED, KafkaError._FATAL)
