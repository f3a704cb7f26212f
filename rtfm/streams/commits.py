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
from rtfm.streams.dead_letters.limits import DeadLetterPolicy, TooManyDeadLetters, too_many
from rtfm.streams.handling import FIRST_BACKOFF_S, MAX_BACKOFF_S, NOTHING, Handling, WaitingState
from rtfm.streams.lanes import Finished
from rtfm.streams.position import PartitionState
from rtfm.streams.transactions import NotCommitted, OutcomeUnknown, Produced, Transactions, is_member, member_id
from rtfm.telemetry import DEAD_LETTERS, TRANSACTION_FAILURES, TRANSACTION_SECONDS, get_logger

EVERY_S = 0.02
GAP_S = 0.003
"""With no gap at all, every third transaction waits for the markers of the last one: 100 ms, or what
``retry.backoff.ms`` says. Under load the gap is used to take more."""

RECORDS = 1000
"""Under load: a transaction costs about the same whatever it holds; 1,000 records are some 20 ms of work, like EVERY_S.
With 500 the pipeline was a third slower."""

MAX_RECORDS = 2000
RESOLVE_TIMEOUT_S = 5.0

_log = get_logger(__name__)


@frozen
class _Position:
    """A position that was sent, and the assignment that it is of."""

    part: PartitionState
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
        self.over: TooManyDeadLetters | None = None
        """Set when there are too many dead letters: no more are taken, and the pipeline must end."""
        self._pending: list[Finished] = []
        self._sent: list[Finished] = []
        """What the last transaction held, while nobody knows whether it was committed."""
        self._positions: list[_Position] = []
        self._stored_parts: dict[int, PartitionState] = {}
        """Assignments of which this process has committed a position."""
        self._records = 0
        self._last_s = self._ended_s = self._not_before_s = 0.0
        self._backoff = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S)

    def open(self) -> None:
        """Start transactions, unless that is done. Raises Unavailable, Fenced."""
        if self._transactions.in_doubt:
            self._transactions.open()

    def close(self) -> None:
        """Drop the producer; what is not committed is not."""
        self._transactions.close()

    def add(self, finished: Iterable[Finished]) -> None:
        """Take ``finished`` into the next transaction, dead letters only up to the limit."""
        count = 0
        for one in finished:
            part, messages, result, _, _ = one
            if result.dead or self.over:
                one = self._within_limit(one)
                if not (messages := one.messages):
                    continue
            else:
                part.tally.good(len(messages))
            for message in messages:
                part.finish(message.offset())
            self._pending.append(one)
            count += len(messages)
        self._records += count

    def add_end(self, part: PartitionState) -> None:
        """Take where the log of ``part`` ends into the next transaction."""
        self._pending.append(Finished(part, [], NOTHING))
        self._records += 1

    def _within_limit(self, finished: Finished) -> Finished:
        """``finished`` without dead letters that are too many, whose records stay unfinished."""
        tally, dead = finished.part.tally, {letter.offset: letter for letter in finished.result.dead}
        taken = []
        for message in finished.messages:
            if self.over is None and (letter := dead.get(message.offset())) is not None:
                if (why := self._policy.reached(tally)) is None:
                    tally.dead()
                    taken.append(letter)
                    why = self._policy.reached(tally)
                if why is not None:
                    self.over = too_many(self._topic, finished.part.number, why, letter.reason)
            elif self.over is None:
                tally.good()
        refused = dead.keys() - {letter.offset for letter in taken}
        return finished._replace(
            messages=[message for message in finished.messages if message.offset() not in refused],
            result=finished.result._replace(dead=taken),
        )

    def __len__(self) -> int:
        """How many finished records are not known to be committed."""
        return self._records

    @property
    def stuck(self) -> bool:
        """Whether too much waits for a transaction."""
        return self._records >= MAX_RECORDS

    def due_in_s(self) -> float | None:
        """Seconds until ``commit`` is wanted; None when there is nothing to commit."""
        if self._transactions.in_doubt and self._stored_parts:
            return max(0.0, self._not_before_s - self._clock())
        if not self._records:
            return None
        wanted_s = self._ended_s + GAP_S if self._records >= RECORDS else self._last_s + EVERY_S
        return max(0.0, max(wanted_s, self._not_before_s) - self._clock())

    def keep_live(self) -> None:
        """Forget what is of partitions that went elsewhere."""
        self._pending = [finished for finished in self._pending if finished.part.live]
        self._sent = [finished for finished in self._sent if finished.part.live]
        self._positions = [position for position in self._positions if position.part.live]
        self._stored_parts = {number: part for number, part in self._stored_parts.items() if part.live}
        self._records = _count(self._pending) + _count(self._sent)

    def commit(self, consumer: Consumer) -> None:
        """Commit what is finished, or put it off. Raises Fenced, and PositionsChanged."""
        now_s = self._clock()
        if now_s < self._not_before_s:
            return
        self._last_s = now_s
        try:
            if self._sent or self._transactions.in_doubt:
                self._resolve(consumer)
            # Asked anew each time: the generation changes without a word to us.
            member = consumer.consumer_group_metadata()
            parts = dict.fromkeys(finished.part for finished in self._pending)
            if not is_member(member) or any(part.member_id != member_id(member) for part in parts):
                # The group's answer comes with a poll, for which there is time meanwhile.
                self._not_before_s = now_s + EVERY_S
                return
            if not self._pending:
                return
            self._sent, self._pending = self._pending, []
            self._positions = [_position(part) for part in parts]
            self._transactions.commit(
                _records(self._sent),
                [TopicPartition(self._full_topic, p.part.number, p.offset, p.metadata) for p in self._positions],
                member,
            )
        except NotCommitted as exc:
            self._take_back()
            if exc.rebalancing:
                # As it may at any time while partitions move; the next generation takes it.
                TRANSACTION_FAILURES.labels(self._group, "rebalancing").inc()
                _log.info("commit put off", group=self._group, reason=str(exc))
                self._not_before_s = now_s + EVERY_S
            elif exc.too_large_for is None or not self._bury_largest(exc.too_large_for):
                TRANSACTION_FAILURES.labels(self._group, "refused").inc()
                self._hold_back(exc)
        except OutcomeUnknown as exc:
            TRANSACTION_FAILURES.labels(self._group, "unknown").inc()
            self._hold_back(exc)
        except PositionsChanged:
            raise
        except Unavailable as exc:
            self._hold_back(exc)
        else:
            self._ended_s = self._clock()
            TRANSACTION_SECONDS.labels(self._group).observe(self._ended_s - now_s)
            self._note_committed()

    def confirm_name(self) -> None:
        """Raises Fenced where another process has this one's name; that opens its transactions before it joins."""
        if not self._transactions.in_doubt:
            self._transactions.confirm(TopicPartition(self._full_topic, 0, 0))

    def committed(self, consumer: Consumer, numbers: list[int], timeout_s: float) -> list[TopicPartition]:
        """The group's committed positions of ``numbers``. Raises Unavailable, Fenced."""
        if self._transactions.in_doubt:
            self._transactions.open()  # or the broker would wait for our own transaction's end
        return self._stored(consumer, numbers, timeout_s)

    def _stored(self, consumer: Consumer, numbers: list[int], timeout_s: float) -> list[TopicPartition]:
        """The group's committed positions. Waits for a transaction that holds one. Raises Unavailable."""
        with self._kafka.translating(f"reading the offsets of {self._group}"):
            found = consumer.committed([TopicPartition(self._full_topic, number) for number in numbers], timeout_s)
            for part in found:
                if part.error is not None:
                    raise KafkaException(part.error)
        return list(found)

    def _resolve(self, consumer: Consumer) -> None:
        """Find out whether the last transaction was committed. Raises Unavailable without an answer.

        Every commit changes offset or metadata, so the group's positions are those that were sent, or those from
        before. It is one transaction, so what is still assigned tells for all of it. Positions that are neither were
        written by another process: this one has lost its place without knowing it yet, and raises PositionsChanged.
        """
        self._transactions.open()  # ends the transaction either way
        sent = self._positions
        if not sent:
            self._repair(consumer)
            return
        found = self._stored(consumer, [position.part.number for position in sent], RESOLVE_TIMEOUT_S)
        stored = {part.partition: (part.offset, part.metadata or "") if part.offset >= 0 else None for part in found}
        if all(stored[position.part.number] == (position.offset, position.metadata) for position in sent):
            self._note_committed()
        elif all(stored[position.part.number] == position.part.stored for position in sent):
            self._take_back()
        else:
            raise PositionsChanged(
                "kafka", f"the positions of {self._group} were changed by another process while a commit was under way"
            )

    def _repair(self, consumer: Consumer) -> None:
        """Commit positions again that a late request has moved back. Raises Unavailable, PositionsChanged.

        It had been sent before a connection was lost, and again on another one. The producer is a new one by now, so
        no further late request is taken.
        """
        parts = self._stored_parts
        if not parts:
            return
        for found in self._stored(consumer, list(parts), RESOLVE_TIMEOUT_S):
            part = parts[found.partition]
            if part.stored == (found.offset, found.metadata or ""):
                continue
            if found.offset > part.committed:
                raise PositionsChanged("kafka", f"another process commits positions of {self._group} [{part.number}]")
            _log.warning(
                "a request that was delivered late moved the group's position back; committing it again",
                group=self._group,
                partition=part.number,
                committed=part.committed,
                found=found.offset,
            )
            self.add_end(part)

    def _note_committed(self) -> None:
        self._records -= _count(self._sent)
        for finished in self._sent:
            for letter in finished.result.dead:
                DEAD_LETTERS.labels(self._topic, letter.reason).inc()
        for position in self._positions:
            position.part.committed = position.offset
            position.part.stored = (position.offset, position.metadata)
            self._stored_parts[position.part.number] = position.part
        self._sent, self._positions, self._not_before_s = [], [], 0.0
        self._backoff.reset()
        self._waiting.clear(self)

    def _take_back(self) -> None:
        self._pending, self._sent, self._positions = self._sent + self._pending, [], []

    def _bury_largest(self, topic: str) -> bool:
        """Put a dead letter in place of the largest output for ``topic``, which no broker takes however often.

        A broker refuses a whole batch, so that small outputs may be refused with it: one at a time, until it takes the
        rest. False when there is none of a single record; a dead letter itself is none, for nothing may be dropped.
        """
        pending = self._pending
        outputs = [
            (record.size, number)
            for number, finished in enumerate(pending)
            if len(finished.messages) == 1 and not finished.result.dead
            for record in finished.result.produced
            if record.topic == topic
        ]
        if not outputs:
            return False
        size, number = max(outputs)
        part, messages = pending[number].part, pending[number].messages
        error = InvalidEvent(f"an event for {topic} has {size} bytes, more than the brokers take")
        pending[number] = pending[number]._replace(result=self._handling.buried(messages[0], error))
        part.tally.dead()
        if (why := self._policy.reached(part.tally)) is not None:
            self.over = too_many(self._topic, part.number, why, type(error).__name__)
        return True

    def _hold_back(self, error: RtfmError) -> None:
        """Say that Kafka takes nothing, and wait before the next try."""
        self._waiting.note(self, Unavailable("kafka", str(error)))
        self._not_before_s = self._clock() + self._backoff.next_s()


def _position(part: PartitionState) -> _Position:
    """The position of ``part`` to commit. Raises RtfmError for one that would move the group back."""
    offset, metadata = part.position()
    if offset < part.committed:
        raise RtfmError(f"partition {part.number}: {offset} is behind {part.committed}, which is committed")
    return _Position(part, offset, metadata)


def _records(finished: Iterable[Finished]) -> Iterator[Produced]:
    for _, _, (produced, dead), _, _ in finished:
        yield from produced
        for letter in dead:
            yield letter.record


def _count(finished: Iterable[Finished]) -> int:
    """Records that they are; where a log ends counts for one, so that it is committed."""
    return sum([len(one.messages) or 1 for one in finished])
