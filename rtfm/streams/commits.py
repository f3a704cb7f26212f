"""Commits: keeps finished records until a transaction has committed them.

This module decides when a transaction is due, what the transaction contains, and what follows if it fails. The records
of a failed transaction go into the next one. So nothing is lost, and no handler runs again because of the failure. If
the outcome of a transaction is unknown, this module reads the group's positions to find out whether the transaction was
committed. This module also applies the limit on dead letters, before a dead letter is produced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from attrs import frozen
from confluent_kafka import Consumer, KafkaException, TopicPartition

from rtfm.backoff import Backoff
from rtfm.errors import InvalidEvent, RtfmError, Unavailable
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.dead_letters.limits import DeadLetterPolicy, TooManyDeadLetters, too_many_error
from rtfm.streams.handling import EMPTY_RESULT, FIRST_BACKOFF_S, MAX_BACKOFF_S, Handling, WaitingState
from rtfm.streams.lanes import Finished
from rtfm.streams.position import PartitionState
from rtfm.streams.transactions import NotCommitted, OutcomeUnknown, ProducerRecord, Transactions, is_member, member_id
from rtfm.telemetry import DEAD_LETTERS, TRANSACTION_FAILURES, TRANSACTION_SECONDS, get_logger

COMMIT_INTERVAL_S = 0.02
"""Time between the starts of two transactions while fewer than BUSY_RECORDS records are uncommitted."""

MIN_GAP_S = 0.003
"""Time between the end of a transaction and the start of the next one if at least BUSY_RECORDS are uncommitted.

If the next transaction starts at once, the broker may still be writing the markers of the last one. In that case the
broker refuses the first request, and librdkafka repeats the request after ``retry.backoff.ms`` (here 10 ms, by default
100 ms). Without a gap, a request of every third transaction was refused.
"""

BUSY_RECORDS = 1000
"""With this many uncommitted records, the next transaction starts after MIN_GAP_S instead of COMMIT_INTERVAL_S.

The cost of a transaction hardly depends on the number of its records, so transactions should be large. 1,000 records
are about 20 ms of work, which is as long as COMMIT_INTERVAL_S. With a value of 500 the pipeline was a third slower.
"""

MAX_UNCOMMITTED_RECORDS = 2000
"""The pipeline stops polling when this many records are uncommitted."""

RESOLVE_TIMEOUT_S = 5.0
"""Time limit for reading the group's positions to find out the outcome of a transaction."""

_log = get_logger(__name__)


@frozen
class _Position:
    """A position that a transaction commits, with the assignment to which it belongs."""

    partition: PartitionState
    offset: int
    metadata: str


class PositionsChanged(Unavailable):
    """Another process changed the group's positions, so this process must rejoin the group."""


class Commits:
    """The finished but uncommitted records of one topic and group. Only one thread may use it."""

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
        """The error that ends the pipeline. It is None until a partition is at the limit on dead letters.

        After it is set, no further record becomes a dead letter.
        """
        self._pending: list[Finished] = []
        """What the next transaction will contain."""
        self._sent: list[Finished] = []
        """What the last transaction contains, until its outcome is known."""
        self._positions: list[_Position] = []
        """The positions in the last transaction, until its outcome is known."""
        self._committed_partitions: dict[int, PartitionState] = {}
        """By partition number, the current assignments for which this process has committed a position."""
        self._must_check_positions = False
        """Whether ``_restore_positions`` must run, because a new producer was opened since its last run."""
        self._uncommitted_count = 0
        self._last_attempt_s = self._last_commit_s = self._not_before_s = 0.0
        self._backoff = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S)

    def open(self) -> None:
        """Open the transactional producer if it needs a new epoch. Raises Unavailable, Fenced."""
        if self._transactions.needs_open:
            self._transactions.open()

    def close(self) -> None:
        """Drop the transactional producer without committing anything."""
        self._transactions.close()

    def add_finished(self, finished: Iterable[Finished]) -> None:
        """Add ``finished`` to the next transaction, but no dead letters beyond the limit."""
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
        self._uncommitted_count += count

    def add_position(self, partition: PartitionState) -> None:
        """Commit the current position of ``partition`` with the next transaction, even if no record of it finished."""
        self._pending.append(Finished(partition, [], EMPTY_RESULT))
        self._uncommitted_count += 1

    def _apply_limit(self, finished: Finished) -> Finished:
        """Return ``finished`` without the dead letters beyond the limit and without their records.

        Those records stay unfinished, so the next start reads them again.
        """
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
        """Return the number of uncommitted records; a position without a record counts as one."""
        return self._uncommitted_count

    @property
    def is_full(self) -> bool:
        """Whether so many records are uncommitted that the pipeline must stop polling."""
        return self._uncommitted_count >= MAX_UNCOMMITTED_RECORDS

    def due_in_s(self) -> float | None:
        """Return the seconds until ``commit`` should be called, or None if there is nothing to do."""
        if (self._transactions.needs_open or self._must_check_positions) and self._committed_partitions:
            return max(0.0, self._not_before_s - self._clock())
        if not self._uncommitted_count:
            return None
        due_s = (
            self._last_commit_s + MIN_GAP_S
            if self._uncommitted_count >= BUSY_RECORDS
            else self._last_attempt_s + COMMIT_INTERVAL_S
        )
        return max(0.0, max(due_s, self._not_before_s) - self._clock())

    def drop_unassigned(self) -> None:
        """Drop the records and positions of assignments that have ended."""
        self._pending = [finished for finished in self._pending if finished.partition.is_assigned]
        self._sent = [finished for finished in self._sent if finished.partition.is_assigned]
        self._positions = [position for position in self._positions if position.partition.is_assigned]
        self._committed_partitions = {
            number: partition for number, partition in self._committed_partitions.items() if partition.is_assigned
        }
        self._uncommitted_count = _count_records(self._pending) + _count_records(self._sent)
        if not self._uncommitted_count:
            self._end_wait()

    def commit(self, consumer: Consumer) -> None:
        """Commit the pending records in one transaction. If that is not possible now, postpone the commit.

        If a postponed commit is not due yet, this method does nothing, even if partitions are about to be revoked. The
        new owner of such a partition then handles its uncommitted records again. Raises Fenced, PositionsChanged.
        """
        now_s = self._clock()
        if now_s < self._not_before_s:
            return
        self._last_attempt_s = now_s
        try:
            is_committed = self._commit_pending(consumer, now_s)
        except NotCommitted as exc:
            self._handle_not_committed(exc, now_s)
        except OutcomeUnknown as exc:
            TRANSACTION_FAILURES.labels(self._group, "unknown").inc()
            self._postpone(exc)
        except PositionsChanged:
            raise
        except Unavailable as exc:
            self._postpone(exc)
        else:
            if is_committed:
                self._last_commit_s = self._clock()
                TRANSACTION_SECONDS.labels(self._group).observe(self._last_commit_s - now_s)
                self._mark_committed()

    def _commit_pending(self, consumer: Consumer, now_s: float) -> bool:
        """Commit the pending records, after finding out the outcome of the last transaction if that is unknown.

        Return whether a transaction was committed by this call.
        """
        if self._sent or self._transactions.needs_open or self._must_check_positions:
            self._resolve_outcome(consumer)
            if not self._pending:
                self._end_wait()
        if not self._pending:
            return False
        # The metadata is read again for each commit, because the group's generation can change at any time.
        member = consumer.consumer_group_metadata()
        partitions = dict.fromkeys(finished.partition for finished in self._pending)
        if not _is_member_of_all(member, partitions):
            # The group must accept this member before positions may be committed. The consumer joins only while it is
            # polled, so this method returns and lets the loop poll.
            self._not_before_s = now_s + COMMIT_INTERVAL_S
            return False
        self._sent, self._pending = self._pending, []
        self._positions = [_position_to_commit(partition) for partition in partitions]
        self._transactions.commit(
            _records_to_produce(self._sent),
            [TopicPartition(self._full_topic, p.partition.number, p.offset, p.metadata) for p in self._positions],
            member,
        )
        return True

    def _handle_not_committed(self, error: NotCommitted, now_s: float) -> None:
        """Keep the records of a failed transaction for the next one, and set the time of the next attempt."""
        self._return_to_pending()
        if error.rebalancing:
            # This is normal during a rebalance. The next attempt uses the new generation.
            TRANSACTION_FAILURES.labels(self._group, "rebalancing").inc()
            _log.info("commit postponed, the group is rebalancing", group=self._group, reason=str(error))
            self._not_before_s = now_s + COMMIT_INTERVAL_S
        elif error.too_large_for is None or not self._dead_letter_largest(error.too_large_for):
            TRANSACTION_FAILURES.labels(self._group, "refused").inc()
            self._postpone(error)

    def confirm_name(self) -> None:
        """Raise Fenced if another process uses this instance's name.

        If another process uses the name, it opened its own producer before it joined the group, and thereby fenced the
        producer of this process. If this process's producer needs a new epoch, the name is not checked.
        """
        if not self._transactions.needs_open:
            self._transactions.confirm_name(TopicPartition(self._full_topic, 0, 0))

    def read_positions(self, consumer: Consumer, numbers: list[int], timeout_s: float) -> list[TopicPartition]:
        """Return the group's committed positions of the partitions ``numbers``. Raises Unavailable, Fenced."""
        if self._transactions.needs_open:
            # Positions in an open transaction cannot be read. Opening the producer ends the last transaction.
            self._transactions.open()
            self._must_check_positions = True
        return self._fetch_positions(consumer, numbers, timeout_s)

    def _fetch_positions(self, consumer: Consumer, numbers: list[int], timeout_s: float) -> list[TopicPartition]:
        """Return the group's positions. If a position is in an open transaction, wait until the transaction has ended.

        Raises Unavailable if the positions cannot be read within ``timeout_s``.
        """
        with self._kafka.translating(f"reading the positions of {self._group}"):
            found = consumer.committed([TopicPartition(self._full_topic, number) for number in numbers], timeout_s)
            for position in found:
                if position.error is not None:
                    raise KafkaException(position.error)
        return list(found)

    def _resolve_outcome(self, consumer: Consumer) -> None:
        """Find out whether the last transaction was committed. Raises Unavailable, PositionsChanged.

        Every commit of a finished record changes the offset or the metadata of a position. So the group now has either
        the positions that were sent, or the positions from before the transaction. A transaction is committed as a
        whole, so the positions of the partitions that are still assigned tell the outcome of the whole transaction. If
        a position is neither the sent one nor the earlier one, another process has committed it. In that case this
        process has lost the partition, but does not know that yet.
        """
        if self._transactions.needs_open:
            self._transactions.open()  # Afterwards the last transaction is either committed or aborted.
            self._must_check_positions = True
        sent = self._positions
        if sent:
            self._compare_with_sent(consumer, sent)
        # A late request may have moved back the positions of partitions that were not in the last transaction.
        compared = {position.partition.number for position in sent}
        self._restore_positions(
            consumer, {number: item for number, item in self._committed_partitions.items() if number not in compared}
        )
        self._must_check_positions = False

    def _compare_with_sent(self, consumer: Consumer, sent: Sequence[_Position]) -> None:
        """Compare the group's positions with those of the last transaction, and note whether it was committed."""
        found = self._fetch_positions(consumer, [position.partition.number for position in sent], RESOLVE_TIMEOUT_S)
        stored = {item.partition: (item.offset, item.metadata or "") if item.offset >= 0 else None for item in found}
        if all(stored[position.partition.number] == (position.offset, position.metadata) for position in sent):
            self._mark_committed()
        elif all(stored[position.partition.number] == position.partition.stored for position in sent):
            self._return_to_pending()
        else:
            raise PositionsChanged("kafka", f"another process changed the positions of {self._group} during a commit")

    def _restore_positions(self, consumer: Consumer, partitions: Mapping[int, PartitionState]) -> None:
        """Find positions of ``partitions`` that a late request moved back, and add them to the next transaction.

        Raises Unavailable, and PositionsChanged if another process has committed a position. A late request is a
        request that was sent before its connection broke, and that reached the broker after the client had repeated it
        on another connection. Brokers refuse further late requests, because the producer has a new epoch.
        """
        if not partitions:
            return
        for found in self._fetch_positions(consumer, list(partitions), RESOLVE_TIMEOUT_S):
            partition = partitions[found.partition]
            if partition.stored == (found.offset, found.metadata or ""):
                continue
            if found.offset > partition.committed:
                raise PositionsChanged(
                    "kafka", f"another process committed a position of {self._group}, partition {partition.number}"
                )
            _log.warning(
                "a late request moved the group's position back, committing it again",
                group=self._group,
                partition=partition.number,
                committed=partition.committed,
                found=found.offset,
            )
            self.add_position(partition)

    def _mark_committed(self) -> None:
        """Note that the last transaction was committed, and update the metrics."""
        self._uncommitted_count -= _count_records(self._sent)
        for finished in self._sent:
            for letter in finished.result.dead_letters:
                DEAD_LETTERS.labels(self._topic, letter.reason).inc()
                _log.warning(
                    "dead letter",
                    topic=self._topic,
                    partition=finished.partition.number,
                    offset=letter.offset,
                    reason=letter.reason,
                )
        for position in self._positions:
            position.partition.committed = position.offset
            position.partition.stored = (position.offset, position.metadata)
            self._committed_partitions[position.partition.number] = position.partition
        self._sent, self._positions = [], []
        self._end_wait()

    def _end_wait(self) -> None:
        """Note that no commit waits for Kafka."""
        self._not_before_s = 0.0
        self._backoff.reset()
        self._waiting.clear(self)

    def _return_to_pending(self) -> None:
        """Make the sent records pending again, ahead of the records that are pending now."""
        self._pending, self._sent, self._positions = self._sent + self._pending, [], []

    def _dead_letter_largest(self, topic: str) -> bool:
        """Find the record that has the largest output for ``topic``, and replace all its outputs by its dead letter.

        If one producer record is too large, a broker refuses all producer records that were sent together with it. So
        only one record becomes a dead letter, and the next transaction shows whether the broker accepts the rest. At
        the limit on dead letters the record is left out of the transaction instead, and is unfinished again. Return
        False if no pending output for ``topic`` comes from a single record. A dead letter that is too large is not
        replaced, because nothing may be lost.
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
            self._uncommitted_count -= 1
        return True

    def _postpone(self, error: RtfmError) -> None:
        """Report that the pipeline waits for Kafka, and set the time of the next attempt."""
        self._waiting.note(self, Unavailable("kafka", str(error)))
        self._not_before_s = self._clock() + self._backoff.next_s()


def _is_member_of_all(metadata: bytes, partitions: Iterable[PartitionState]) -> bool:
    """Return whether group ``metadata`` is that of a member, and all ``partitions`` were assigned to this member."""
    return is_member(metadata) and all(partition.member_id == member_id(metadata) for partition in partitions)


def _position_to_commit(partition: PartitionState) -> _Position:
    """Return the position of ``partition`` to commit. Raises RtfmError if that would move the group's position back."""
    offset, metadata = partition.position()
    if offset < partition.committed:
        raise RtfmError(
            f"partition {partition.number}: refusing to commit offset {offset}, because {partition.committed} is"
            " already committed; this is a defect of RTFM"
        )
    return _Position(partition, offset, metadata)


def _records_to_produce(finished: Iterable[Finished]) -> Iterator[ProducerRecord]:
    for _, _, (produced, dead), _, _ in finished:
        yield from produced
        for letter in dead:
            yield letter.record


def _count_records(finished: Iterable[Finished]) -> int:
    """Return the number of records. A position without records counts as one, so that it is committed."""
    return sum([len(item.records) or 1 for item in finished])
