"""Commits: what is finished, until its transaction is known to be committed.

Owns the transactions, when they are due and what follows a failed one. Nothing that is finished is handled again for
a failed transaction: it goes with the next. Where a transaction's outcome is unknown, the group's own offsets tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from attrs import frozen
from confluent_kafka import Consumer, KafkaException, TopicPartition

from rtfm.backoff import Backoff
from rtfm.errors import InvalidEvent, RtfmError, Unavailable
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.dead_letters.limits import DeadLetterPolicy, TooManyDeadLetters, too_many_error
from rtfm.streams.handling import FIRST_BACKOFF_S, MAX_BACKOFF_S, NOTHING, Handling, WaitingState
from rtfm.streams.lanes import Finished
from rtfm.streams.position import PartitionState
from rtfm.streams.transactions import NotCommitted, OutcomeUnknown, ProducerRecord, Transactions, is_member, member_id
from rtfm.telemetry import DEAD_LETTERS, TRANSACTION_FAILURES, TRANSACTION_SECONDS, get_logger

COMMIT_INTERVAL_S = 0.02
MIN_GAP_S = 0.003
"""With no gap at all, every third transaction waits for the markers of the last one: 100 ms, or what
``retry.backoff.ms`` says. Under load the gap is used to take more."""

FULL_RECORDS = 1000
"""Under load: a transaction costs about the same whatever it holds; 1,000 records are some 20 ms of work, like COMMIT_INTERVAL_S.
With 500 the pipeline was a third slower."""

MAX_PENDING_RECORDS = 2000
RESOLVE_TIMEOUT_S = 5.0

_log = get_logger(__name__)


@frozen
class _Position:
    """A position that was sent, and the assignment that it is of."""

    partition: PartitionState
    offset: int
    metadata: str


class PositionsChanged(Unavailable):
    """The group's positions are not those of this process: its partitions must be assigned again."""


class Commits:
    """The commits of one instance to one topic's group. Used by one thread."""

    def __init__(
        self,
        kafka: KafkaConfig,
        *,
        topic: str,
        group: str,
        policy: DeadLetterPolicy,
        waiting: WaitingState,
        handling: Handling,
        transactions: Transactions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kafka = kafka
        self._policy = policy
        self._clock = clock
        self._topic = topic
        self._full_topic = self._kafka.topic(topic)
        self._group = group
        self._waiting = waiting
        self._handling = handling
        self._transactions = transactions
        self.limit_error: TooManyDeadLetters | None = None
        """Set when there are too many dead letters: no more are taken, and the pipeline must end."""
        self._pending: list[Finished] = []
        self._sent: list[Finished] = []
        """What the last transaction held, while nobody knows whether it was committed."""
        self._positions: list[_Position] = []
        self._committed_partitions: dict[int, PartitionState] = {}
        """Assignments of which this process has committed a position."""
        self._record_count = 0
        self._last_attempt_s = self._last_commit_s = self._not_before_s = 0.0
        self._backoff = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S)

    def open(self) -> None:
        """Start transactions, unless that is done. Raises Unavailable, Fenced."""
        if self._transactions.needs_open:
            self._transactions.open()

    def close(self) -> None:
        """Drop the producer; what is not committed is not."""
        self._transactions.close()

    def add_finished(self, finished: Iterable[Finished]) -> None:
        """Take ``finished`` into the next transaction, dead letters only up to the limit."""
        count = 0
        for one in finished:
            partition, records, result, _, _ = one
            if result.dead_letters or self.limit_error:
                one = self._apply_limit(one)
                if not (records := one.records):
                    continue
            else:
                partition.tally.count_handled(len(records))
            for record in records:
                partition.finish(record.offset())
            self._pending.append(one)
            count += len(records)
        self._record_count += count

    def add_end_of_log(self, partition: PartitionState) -> None:
        """Take where the log of ``partition`` ends into the next transaction."""
        self._pending.append(Finished(partition, [], NOTHING))
        self._record_count += 1

    def _apply_limit(self, finished: Finished) -> Finished:
        """``finished`` without dead letters that are too many, whose records stay unfinished."""
        tally, dead = finished.partition.tally, {letter.offset: letter for letter in finished.result.dead_letters}
        taken = []
        for record in finished.records:
            if self.limit_error is None and (letter := dead.get(record.offset())) is not None:
                if (limit := self._policy.limit_reason(tally)) is None:
                    tally.count_dead_letter()
                    taken.append(letter)
                    limit = self._policy.limit_reason(tally)
                if limit is not None:
                    self.limit_error = too_many_error(self._topic, finished.partition.number, limit, letter.reason)
            elif self.limit_error is None:
                tally.count_handled()
        refused = dead.keys() - {letter.offset for letter in taken}
        return finished._replace(
            records=[record for record in finished.records if record.offset() not in refused],
            result=finished.result._replace(dead_letters=taken),
        )

    def __len__(self) -> int:
        """How many finished records are not known to be committed."""
        return self._record_count

    @property
    def is_full(self) -> bool:
        """Whether too much waits for a transaction."""
        return self._record_count >= MAX_PENDING_RECORDS

    def due_in_s(self) -> float | None:
        """Seconds until ``commit`` is wanted; None when there is nothing to commit."""
        if self._transactions.needs_open and self._committed_partitions:
            return max(0.0, self._not_before_s - self._clock())
        if not self._record_count:
            return None
        wanted_s = (
            self._last_commit_s + MIN_GAP_S
            if self._record_count >= FULL_RECORDS
            else self._last_attempt_s + COMMIT_INTERVAL_S
        )
        return max(0.0, max(wanted_s, self._not_before_s) - self._clock())

    def drop_unassigned(self) -> None:
        """Forget what is of partitions that went elsewhere."""
        self._pending = [finished for finished in self._pending if finished.partition.is_assigned]
        self._sent = [finished for finished in self._sent if finished.partition.is_assigned]
        self._positions = [position for position in self._positions if position.partition.is_assigned]
        self._committed_partitions = {
            number: partition for number, partition in self._committed_partitions.items() if partition.is_assigned
        }
        self._record_count = _count_records(self._pending) + _count_records(self._sent)

    def commit(self, consumer: Consumer) -> None:
        """Commit what is finished, or put it off. Raises Fenced, and PositionsChanged."""
        now_s = self._clock()
        if now_s < self._not_before_s:
            return
        self._last_attempt_s = now_s
        try:
            if self._sent or self._transactions.needs_open:
                self._resolve_outcome(consumer)
            # Asked anew each time: the generation changes without a word to us.
            member = consumer.consumer_group_metadata()
            partitions = dict.fromkeys(finished.partition for finished in self._pending)
            if not is_member(member) or any(partition.member_id != member_id(member) for partition in partitions):
                # The group's answer comes with a poll, for which there is time meanwhile.
                self._not_before_s = now_s + COMMIT_INTERVAL_S
                return
            if not self._pending:
                return
            self._sent, self._pending = self._pending, []
            self._positions = [_position_to_commit(partition) for partition in partitions]
            self._transactions.commit(
                _records_to_produce(self._sent),
                [TopicPartition(self._full_topic, p.partition.number, p.offset, p.metadata) for p in self._positions],
                member,
            )
        except NotCommitted as exc:
            self._return_to_pending()
            if exc.rebalancing:
                # As it may at any time while partitions move; the next generation takes it.
                TRANSACTION_FAILURES.labels(self._group, "rebalancing").inc()
                _log.info("commit put off", group=self._group, reason=str(exc))
                self._not_before_s = now_s + COMMIT_INTERVAL_S
            elif exc.too_large_for is None or not self._dead_letter_largest(exc.too_large_for):
                TRANSACTION_FAILURES.labels(self._group, "refused").inc()
                self._postpone(exc)
        except OutcomeUnknown as exc:
            TRANSACTION_FAILURES.labels(self._group, "unknown").inc()
            self._postpone(exc)
        except PositionsChanged:
            raise
        except Unavailable as exc:
            self._postpone(exc)
        else:
            self._last_commit_s = self._clock()
            TRANSACTION_SECONDS.labels(self._group).observe(self._last_commit_s - now_s)
            self._mark_committed()

    def confirm_name(self) -> None:
        """Raises Fenced where another process has this one's name; that opens its transactions before it joins."""
        if not self._transactions.needs_open:
            self._transactions.confirm_name(TopicPartition(self._full_topic, 0, 0))

    def read_positions(self, consumer: Consumer, numbers: list[int], timeout_s: float) -> list[TopicPartition]:
        """The group's committed positions of ``numbers``. Raises Unavailable, Fenced."""
        if self._transactions.needs_open:
            self._transactions.open()  # or the broker would wait for our own transaction's end
        return self._fetch_positions(consumer, numbers, timeout_s)

    def _fetch_positions(self, consumer: Consumer, numbers: list[int], timeout_s: float) -> list[TopicPartition]:
        """The group's committed positions. Waits for a transaction that holds one. Raises Unavailable."""
        with self._kafka.translating(f"reading the offsets of {self._group}"):
            found = consumer.committed([TopicPartition(self._full_topic, number) for number in numbers], timeout_s)
            for position in found:
                if position.error is not None:
                    raise KafkaException(position.error)
        return list(found)

    def _resolve_outcome(self, consumer: Consumer) -> None:
        """Find out whether the last transaction was committed. Raises Unavailable without an answer.

        Every commit changes offset or metadata, so the group's positions are those that were sent, or those from
        before. It is one transaction, so what is still assigned tells for all of it. Positions that are neither were
        written by another process: this one has lost its place without knowing it yet, and raises PositionsChanged.
        """
        self._transactions.open()  # ends the transaction either way
        sent = self._positions
        if not sent:
            self._restore_positions(consumer)
            return
        found = self._fetch_positions(consumer, [position.partition.number for position in sent], RESOLVE_TIMEOUT_S)
        stored = {item.partition: (item.offset, item.metadata or "") if item.offset >= 0 else None for item in found}
        if all(stored[position.partition.number] == (position.offset, position.metadata) for position in sent):
            self._mark_committed()
        elif all(stored[position.partition.number] == position.partition.stored for position in sent):
            self._return_to_pending()
        else:
            raise PositionsChanged(
                "kafka", f"the positions of {self._group} were changed by another process while a commit was under way"
            )

    def _restore_positions(self, consumer: Consumer) -> None:
        """Commit positions again that a late request has moved back. Raises Unavailable, PositionsChanged.

        It had been sent before a connection was lost, and again on another one. The producer is a new one by now, so
        no further late request is taken.
        """
        partitions = self._committed_partitions
        if not partitions:
            return
        for found in self._fetch_positions(consumer, list(partitions), RESOLVE_TIMEOUT_S):
            partition = partitions[found.partition]
            if partition.stored == (found.offset, found.metadata or ""):
                continue
            if found.offset > partition.committed:
                raise PositionsChanged(
                    "kafka", f"another process commits positions of {self._group} [{partition.number}]"
                )
            _log.warning(
                "a request that was delivered late moved the group's position back; committing it again",
                group=self._group,
                partition=partition.number,
                committed=partition.committed,
                found=found.offset,
            )
            self.add_end_of_log(partition)

    def _mark_committed(self) -> None:
        self._record_count -= _count_records(self._sent)
        for finished in self._sent:
            for letter in finished.result.dead_letters:
                DEAD_LETTERS.labels(self._topic, letter.reason).inc()
        for position in self._positions:
            position.partition.committed = position.offset
            position.partition.stored = (position.offset, position.metadata)
            self._committed_partitions[position.partition.number] = position.partition
        self._sent, self._positions, self._not_before_s = [], [], 0.0
        self._backoff.reset()
        self._waiting.clear(self)

    def _return_to_pending(self) -> None:
        self._pending, self._sent, self._positions = self._sent + self._pending, [], []

    def _dead_letter_largest(self, topic: str) -> bool:
        """Put a dead letter in place of the largest output for ``topic``, which no broker takes however often.

        A broker refuses a whole batch, so that small outputs may be refused with it: one at a time, until it takes the
        rest. False when there is none of a single record; a dead letter itself is none, for nothing may be dropped.
        """
        pending = self._pending
        outputs = [
            (record.size, number)
            for number, finished in enumerate(pending)
            if len(finished.records) == 1 and not finished.result.dead_letters
            for record in finished.result.produced
            if record.topic == topic
        ]
        if not outputs:
            return False
        size, number = max(outputs)
        partition, records = pending[number].partition, pending[number].records
        error = InvalidEvent(f"an event for {topic} has {size} bytes, more than the brokers take")
        pending[number] = pending[number]._replace(result=self._handling.dead_letter_output(records[0], error))
        partition.tally.count_dead_letter()
        if (limit := self._policy.limit_reason(partition.tally)) is not None:
            self.limit_error = too_many_error(self._topic, partition.number, limit, type(error).__name__)
        return True

    def _postpone(self, error: RtfmError) -> None:
        """Say that Kafka takes nothing, and wait before the next try."""
        self._waiting.note(self, Unavailable("kafka", str(error)))
        self._not_before_s = self._clock() + self._backoff.next_s()


def _position_to_commit(partition: PartitionState) -> _Position:
    """The position of ``partition`` to commit. Raises RtfmError for one that would move the group back."""
    offset, metadata = partition.position()
    if offset < partition.committed:
        raise RtfmError(f"partition {partition.number}: {offset} is behind {partition.committed}, which is committed")
    return _Position(partition, offset, metadata)


def _records_to_produce(finished: Iterable[Finished]) -> Iterator[ProducerRecord]:
    for _, _, (produced, dead), _, _ in finished:
        yield from produced
        for letter in dead:
            yield letter.record


def _count_records(finished: Iterable[Finished]) -> int:
    """Records that they are; where a log ends counts for one, so that it is committed."""
    return sum([len(one.records) or 1 for one in finished])
