"""Commits: keeps finished records until a transaction has committed them.

Decides when a transaction is due, what it contains, and what follows if it fails. Promises that a failed transaction
loses nothing and repeats no handler: its records go into the next one. If the outcome of a transaction is unknown, the
group's positions decide. The limit on dead letters is applied here, before a dead letter is produced.
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
"""Time between the starts of two transactions while fewer than FULL_RECORDS are pending."""

MIN_GAP_S = 0.003
"""Time between the end of a transaction and the start of the next one under load.

Without a gap every third transaction waits for the markers of the one before it, for ``retry.backoff.ms`` (100 ms by
default).
"""

FULL_RECORDS = 1000
"""Pending records at which the next transaction starts after MIN_GAP_S instead of COMMIT_INTERVAL_S.

A transaction costs about the same whatever it holds. 1,000 records are about 20 ms of work, which is COMMIT_INTERVAL_S;
with 500 the pipeline was a third slower.
"""

MAX_PENDING_RECORDS = 2000
"""Uncommitted records at which no more are polled."""

RESOLVE_TIMEOUT_S = 5.0
"""Time for reading the group's positions after a transaction whose outcome is unknown."""

_log = get_logger(__name__)


@frozen
class _Position:
    """A position that a transaction commits, and its assignment."""

    partition: PartitionState
    offset: int
    metadata: str


class PositionsChanged(Unavailable):
    """Another process changed the group's positions, so the partitions must be assigned again."""


class Commits:
    """Commits the finished records of one topic for one group. Used by one thread."""

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
        """Set at the limit on dead letters. No more are written, and the pipeline must end."""
        self._pending: list[Finished] = []
        self._sent: list[Finished] = []
        """The content of the last transaction until its outcome is known."""
        self._positions: list[_Position] = []
        """The positions of the last transaction until its outcome is known."""
        self._committed_partitions: dict[int, PartitionState] = {}
        """Assignments with a position that this process committed."""
        self._record_count = 0
        self._last_attempt_s = self._last_commit_s = self._not_before_s = 0.0
        self._backoff = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S)

    def open(self) -> None:
        """Start transactions if that is needed. Raises Unavailable, Fenced."""
        if self._transactions.needs_open:
            self._transactions.open()

    def close(self) -> None:
        """Drop the producer. Does not commit."""
        self._transactions.close()

    def add_finished(self, finished: Iterable[Finished]) -> None:
        """Add ``finished`` to the next transaction, with dead letters only up to the limit."""
        count = 0
        for item in finished:
            partition, records, result, _, _ = item
            if result.dead_letters or self.limit_error:
                item = self._apply_limit(item)
                if not (records := item.records):
                    continue
            else:
                partition.tally.count_handled(len(records))
            for record in records:
                partition.finish(record.offset())
            self._pending.append(item)
            count += len(records)
        self._record_count += count

    def add_end_of_log(self, partition: PartitionState) -> None:
        """Add the current end of ``partition`` to the next transaction."""
        self._pending.append(Finished(partition, [], NOTHING))
        self._record_count += 1

    def _apply_limit(self, finished: Finished) -> Finished:
        """Return ``finished`` without the dead letters beyond the limit; their records stay unfinished."""
        tally, letters = finished.partition.tally, {letter.offset: letter for letter in finished.result.dead_letters}
        accepted = []
        for record in finished.records:
            if self.limit_error is None and (letter := letters.get(record.offset())) is not None:
                if (limit := self._policy.limit_reason(tally)) is None:
                    tally.count_dead_letter()
                    accepted.append(letter)
                    limit = self._policy.limit_reason(tally)
                if limit is not None:
                    self.limit_error = too_many_error(self._topic, finished.partition.number, limit, letter.reason)
            elif self.limit_error is None:
                tally.count_handled()
        refused = letters.keys() - {letter.offset for letter in accepted}
        return finished._replace(
            records=[record for record in finished.records if record.offset() not in refused],
            result=finished.result._replace(dead_letters=accepted),
        )

    def __len__(self) -> int:
        """Return the number of finished records that are not known to be committed."""
        return self._record_count

    @property
    def is_full(self) -> bool:
        """Whether too many records wait for a transaction."""
        return self._record_count >= MAX_PENDING_RECORDS

    def due_in_s(self) -> float | None:
        """Return the seconds until ``commit`` is due, or None if there is nothing to commit."""
        if self._transactions.needs_open and self._committed_partitions:
            return max(0.0, self._not_before_s - self._clock())
        if not self._record_count:
            return None
        due_s = (
            self._last_commit_s + MIN_GAP_S
            if self._record_count >= FULL_RECORDS
            else self._last_attempt_s + COMMIT_INTERVAL_S
        )
        return max(0.0, max(due_s, self._not_before_s) - self._clock())

    def drop_unassigned(self) -> None:
        """Drop everything that belongs to partitions that are no longer assigned."""
        self._pending = [finished for finished in self._pending if finished.partition.is_assigned]
        self._sent = [finished for finished in self._sent if finished.partition.is_assigned]
        self._positions = [position for position in self._positions if position.partition.is_assigned]
        self._committed_partitions = {
            number: partition for number, partition in self._committed_partitions.items() if partition.is_assigned
        }
        self._record_count = _count_records(self._pending) + _count_records(self._sent)

    def commit(self, consumer: Consumer) -> None:
        """Commit the pending records, or postpone that if Kafka refuses it. Raises Fenced, PositionsChanged."""
        now_s = self._clock()
        if now_s < self._not_before_s:
            return
        self._last_attempt_s = now_s
        try:
            if self._sent or self._transactions.needs_open:
                self._resolve_outcome(consumer)
            # Asked each time, because the generation changes without notice.
            member = consumer.consumer_group_metadata()
            partitions = dict.fromkeys(finished.partition for finished in self._pending)
            if not is_member(member) or any(partition.member_id != member_id(member) for partition in partitions):
                # Joining makes progress in polls, so leave time for one.
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
            self._handle_refusal(exc, now_s)
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

    def _handle_refusal(self, error: NotCommitted, now_s: float) -> None:
        """Keep the records of a transaction that was not committed for the next one."""
        self._return_to_pending()
        if error.rebalancing:
            # Expected during a rebalance; retried in the next generation.
            TRANSACTION_FAILURES.labels(self._group, "rebalancing").inc()
            _log.info("commit postponed, the group is rebalancing", group=self._group, reason=str(error))
            self._not_before_s = now_s + COMMIT_INTERVAL_S
        elif error.too_large_for is None or not self._dead_letter_largest(error.too_large_for):
            TRANSACTION_FAILURES.labels(self._group, "refused").inc()
            self._postpone(error)

    def confirm_name(self) -> None:
        """Raise Fenced if another process uses this instance's name: it opens its transactions before it joins."""
        if not self._transactions.needs_open:
            self._transactions.confirm_name(TopicPartition(self._full_topic, 0, 0))

    def read_positions(self, consumer: Consumer, numbers: list[int], timeout_s: float) -> list[TopicPartition]:
        """Return the group's committed positions of partitions ``numbers``. Raises Unavailable, Fenced."""
        if self._transactions.needs_open:
            self._transactions.open()  # otherwise the broker would wait for our own transaction to end
        return self._fetch_positions(consumer, numbers, timeout_s)

    def _fetch_positions(self, consumer: Consumer, numbers: list[int], timeout_s: float) -> list[TopicPartition]:
        """Return the group's positions once no open transaction contains one of them. Raises Unavailable."""
        with self._kafka.translating(f"reading the offsets of {self._group}"):
            found = consumer.committed([TopicPartition(self._full_topic, number) for number in numbers], timeout_s)
            for position in found:
                if position.error is not None:
                    raise KafkaException(position.error)
        return list(found)

    def _resolve_outcome(self, consumer: Consumer) -> None:
        """Find out whether the last transaction was committed. Raises Unavailable, PositionsChanged.

        Every commit changes the offset or the metadata, so the group has either the positions that were sent or those
        from before. A transaction commits as a whole, so the partitions that are still assigned decide for all of it.
        Any other position was written by another process: this one lost its partitions and does not know it yet.
        """
        self._transactions.open()  # commits or aborts the transaction
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
        """Commit positions again that a late request moved back. Raises Unavailable, PositionsChanged.

        The request was sent before a connection was lost, and again on another one. The producer is new by now, so
        brokers refuse further late requests.
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
                    "kafka", f"another process committed a position of {self._group} [{partition.number}]"
                )
            _log.warning(
                "a late request moved the group's position back, committing it again",
                group=self._group,
                partition=partition.number,
                committed=partition.committed,
                found=found.offset,
            )
            self.add_end_of_log(partition)

    def _mark_committed(self) -> None:
        """Update positions and metrics after the last transaction was committed."""
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
        """Put the records of the last transaction in front of those for the next one."""
        self._pending, self._sent, self._positions = self._sent + self._pending, [], []

    def _dead_letter_largest(self, topic: str) -> bool:
        """Replace the record behind the largest output for ``topic`` with a dead letter.

        A broker refuses a whole batch and thus small outputs with a large one, so only one is replaced at a time, until
        the broker accepts the rest. At the limit on dead letters the record is left out of the transaction instead, and
        stays unfinished. Return False if no output comes from a single record. A dead letter is never replaced, because
        nothing may be dropped.
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
        finished = pending[number]
        partition, (raw_record,) = finished.partition, finished.records
        error = InvalidEvent(f"an event for {topic} has {size} bytes, more than the brokers accept")
        partition.tally.undo_handled()
        replaced = self._apply_limit(finished._replace(result=self._handling.dead_letter_output(raw_record, error)))
        if replaced.records:
            pending[number] = replaced
        else:  # beyond the limit
            del pending[number]
            partition.reopen(raw_record.offset())
            self._record_count -= 1
        return True

    def _postpone(self, error: RtfmError) -> None:
        """Report that the pipeline waits for Kafka, and set the time of the next attempt."""
        self._waiting.note(self, Unavailable("kafka", str(error)))
        self._not_before_s = self._clock() + self._backoff.next_s()


def _position_to_commit(partition: PartitionState) -> _Position:
    """Return the position of ``partition`` to commit. Raises RtfmError if it would move the group back."""
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
    """Return the number of records; an end of a log counts as one, so that it is committed."""
    return sum([len(item.records) or 1 for item in finished])
