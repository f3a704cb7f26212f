"""Store: finds, replays and discards the dead letters in the topic dead-letters.

This module reads committed records only. A mark, which is a record of the same topic, says that a dead letter was
replayed or discarded. A replay and its mark are committed in one transaction. Of all processes that replay or discard,
only the last one that started can commit, and it sees all marks of the earlier processes. So two processes do not
replay the same open dead letter. The caller decides which dead letters may be replayed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import cache
from typing import cast

from attrs import frozen
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition

from rtfm.settings import Settings
from rtfm.streams.connection import REQUEST_TIMEOUT_S, KafkaConfig
from rtfm.streams.consumer import RawRecord
from rtfm.streams.dead_letters.letters import DISCARDED, OPEN, REPLAYED, STATES, TOPIC, Letter, Mark, parse_letter
from rtfm.streams.transactions import NotCommitted, OutcomeUnknown, ProducerRecord, Transactions

WRITER = "rtfm-dlq"
"""The transactional name of every process that replays or discards, so that a later process fences an earlier one."""

READ_TIMEOUT_S = 10.0
"""How long reading may go without a record before Kafka counts as unavailable."""

_RETRY_PAUSES_S = (0.0, 0.2, 1.0)
"""The waits before the attempts to commit a single dead letter."""

_READING = "reading dead-letters"

_BATCH_RECORDS, _BATCH_BYTES = 200, 4_000_000
"""A transaction is committed when it has this many dead letters, or more than this many bytes."""


@frozen(kw_only=True)
class LetterFilter:
    """The conditions by which dead letters are selected. None means no condition.

    ``since_ms`` and ``until_ms`` are compared with the time when the dead letter was written, in milliseconds since the
    epoch.
    """

    ids: frozenset[str] | None = None
    topic: str | None = None
    error_class: str | None = None
    stage: str | None = None
    key: bytes | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    states: frozenset[str] = frozenset((OPEN,))

    def matches(self, letter: Letter, state: str) -> bool:
        """Return whether ``letter``, whose state is ``state``, meets all conditions."""
        return (
            state in self.states
            and (self.ids is None or letter.id in self.ids)
            and self.topic in (None, letter.topic)
            and self.error_class in (None, letter.error_class)
            and self.stage in (None, letter.stage)
            and self.key in (None, letter.key)
            and (self.since_ms is None or letter.timestamp_ms >= self.since_ms)
            and (self.until_ms is None or letter.timestamp_ms < self.until_ms)
        )


@frozen(kw_only=True)
class FiledLetter:
    """A dead letter with its state (OPEN, REPLAYED or DISCARDED) and the time of its mark, which is None if OPEN."""

    letter: Letter
    state: str = OPEN
    marked_ms: int | None = None


@frozen(kw_only=True)
class Decision:
    """What was decided about a dead letter. If ``refusal`` is a text, nothing was done, and the text is the reason."""

    found: FiledLetter
    refusal: str | None = None


@frozen
class _Write:
    """The records to produce for one dead letter: the original if it is replayed, and then a mark of ``kind``."""

    found: FiledLetter
    kind: str
    records: tuple[ProducerRecord, ...]


class DeadLetterStore:
    """The dead letters of a cluster.

    Its methods raise Unavailable if Kafka does not answer, and ConfigError if the topic dead-letters does not exist.
    """

    def __init__(self, settings: Settings) -> None:
        self._kafka = KafkaConfig.of(settings)
        self._consumer = self._new_consumer()

    def _new_consumer(self) -> Consumer:
        return Consumer(
            {
                **self._kafka.consumer_config("rtfm-dlq-reader"),  # The group is never joined.
                "fetch.wait.max.ms": 20,
            }
        )

    def find(self, wanted: LetterFilter) -> Iterator[FiledLetter]:
        """Yield the dead letters that ``wanted`` selects, oldest first in each partition.

        The topic is read twice. The first time all marks are collected, because a mark comes after its dead letter. The
        second time the dead letters are yielded. They are too large to be kept in memory during a single reading.
        """
        starts = self._find_starts(wanted)
        marks = {item.letter_id: item for item in self._read(starts) if isinstance(item, Mark)}
        for item in self._read(starts):
            if isinstance(item, Mark):
                continue
            mark = marks.get(item.id)
            state = OPEN if mark is None else mark.kind
            if wanted.matches(item, state):
                yield FiledLetter(letter=item, state=state, marked_ms=None if mark is None else mark.at_ms)

    def count_partitions(self, topic: str) -> int:
        """Return the number of partitions of ``topic``, which is 0 if the topic does not exist."""
        name = self._kafka.topic(topic)
        with self._kafka.translating(_READING):
            found = self._consumer.list_topics(name, timeout=REQUEST_TIMEOUT_S).topics[name]
        return 0 if found.error is not None else len(found.partitions)

    def replay(self, wanted: LetterFilter, refusal: Callable[[FiledLetter], str | None]) -> Iterator[Decision]:
        """Replay the selected dead letters, and yield a decision about each dead letter.

        A dead letter is not replayed if ``refusal`` returns a reason for it. Raises Fenced if another process starts to
        replay or discard meanwhile. The decisions that were yielded before this error remain true.
        """
        partitions = cache(self.count_partitions)

        def build_replay(found: FiledLetter) -> _Write:
            letter = found.letter
            number, _ = letter.origin
            record = ProducerRecord(
                letter.topic,
                letter.key,
                letter.value,
                [*(letter.headers or []), *letter.to_replay().headers()],
                # The replay goes to the partition of the failed record. The other records of the same key are there,
                # even if their producer used another partitioner.
                partition=number if 0 <= number < partitions(letter.topic) else -1,
            )
            return _Write(found, REPLAYED, (record, Mark.build_record(letter, REPLAYED)))

        yield from self._write(wanted, refusal, build_replay)

    def discard(self, wanted: LetterFilter, refusal: Callable[[FiledLetter], str | None]) -> Iterator[Decision]:
        """Mark the selected dead letters as discarded, and yield a decision about each dead letter. Raises Fenced.

        Retention removes the dead letters later.
        """

        def build_mark(found: FiledLetter) -> _Write:
            return _Write(found, DISCARDED, (Mark.build_record(found.letter, DISCARDED),))

        yield from self._write(wanted, refusal, build_mark)

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()

    def __enter__(self) -> DeadLetterStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Writing

    def _write(
        self,
        wanted: LetterFilter,
        refusal: Callable[[FiledLetter], str | None],
        build_write: Callable[[FiledLetter], _Write],
    ) -> Iterator[Decision]:
        transactions = Transactions(self._kafka, WRITER)
        # The producer is opened before reading. From then on, processes that started earlier cannot commit any more, so
        # no mark is missed.
        transactions.open()
        try:
            batch: list[_Write] = []
            for found in self.find(wanted):
                if (reason := refusal(found)) is not None:
                    yield Decision(found=found, refusal=reason)
                    continue
                batch.append(build_write(found))
                if (
                    len(batch) >= _BATCH_RECORDS
                    or sum(record.size for write in batch for record in write.records) > _BATCH_BYTES
                ):
                    yield from self._commit(transactions, batch)
                    batch = []
            if batch:
                yield from self._commit(transactions, batch)
        finally:
            transactions.close()

    def _commit(self, transactions: Transactions, batch: list[_Write]) -> Iterator[Decision]:
        """Commit ``batch`` in one transaction. If that fails, commit its dead letters one by one, with retries."""
        left, reason = batch, ""
        for pause_s in (0.0,) if len(batch) > 1 else _RETRY_PAUSES_S:
            time.sleep(pause_s)
            try:
                transactions.commit([record for write in left for record in write.records])
            except (NotCommitted, OutcomeUnknown) as exc:
                reason = str(exc)
                if transactions.needs_open:
                    transactions.open()  # This ends the last transaction, which may turn out to be committed.
                    done = self._find_marked(left)
                    left = [write for write in left if write.found.letter.id not in done]
            else:
                left = []
            if not left:
                break
        yield from (Decision(found=write.found) for write in batch if write not in left)
        if len(batch) > 1:
            for write in left:
                yield from self._commit(transactions, [write])
        else:
            yield from (Decision(found=write.found, refusal=f"Kafka refuses it: {reason}") for write in left)

    def _find_marked(self, batch: Iterable[_Write]) -> set[str]:
        """Return the ids of those dead letters in ``batch`` whose new mark was committed."""
        kinds = {write.found.letter.id: write.kind for write in batch}
        found = self.find(LetterFilter(ids=frozenset(kinds), states=frozenset(STATES)))
        before = {write.found.letter.id: write.found.marked_ms for write in batch}
        return {
            item.letter.id
            for item in found
            if item.state == kinds[item.letter.id] and item.marked_ms != before[item.letter.id]
        }

    # Reading

    def _find_starts(self, wanted: LetterFilter) -> dict[int, int]:
        """Return, by partition number, the offset from which to read.

        A partition is left out if no dead letter in it can be selected.
        """
        name = self._kafka.topic(TOPIC)
        count = len(self._kafka.list_partitions(self._consumer, name))
        if wanted.ids is not None:
            starts: dict[int, int] = {}
            for number, offset in filter(None, map(parse_letter_id, wanted.ids)):
                if number < count:
                    starts[number] = min(offset, starts.get(number, offset))
            return starts
        if wanted.since_ms is None:
            return dict.fromkeys(range(count), OFFSET_BEGINNING)
        times = [TopicPartition(name, number, wanted.since_ms) for number in range(count)]
        with self._kafka.translating(_READING):
            found = self._consumer.offsets_for_times(times, timeout=REQUEST_TIMEOUT_S)
        return {position.partition: position.offset for position in found if position.offset != OFFSET_END}

    def _read(self, starts: dict[int, int]) -> Iterator[Letter | Mark]:
        """Yield all dead letters and marks from the offsets ``starts`` to the current end of the topic."""
        if not starts:
            return
        name = self._kafka.topic(TOPIC)
        ended: set[int] = set()
        idle_until_s = time.monotonic() + READ_TIMEOUT_S
        consumer = self._new_consumer()  # Each read has its own consumer, because two reads may overlap.
        with closing(consumer), self._kafka.translating(_READING):
            positions = [TopicPartition(name, *start) for start in starts.items()]
            for position in positions:
                if position.offset >= 0:
                    # If retention has removed this offset, reading starts at the beginning of the log.
                    low, high = consumer.get_watermark_offsets(position, REQUEST_TIMEOUT_S)
                    position.offset = max(low, min(position.offset, high))
            consumer.assign(positions)
            while len(ended) < len(starts):
                for record in cast("list[RawRecord]", consumer.consume(500, 0.05)):
                    idle_until_s = time.monotonic() + READ_TIMEOUT_S
                    error = record.error()
                    if error is None:
                        yield parse_letter(record)
                    elif error.code() == KafkaError._PARTITION_EOF:
                        ended.add(record.partition())
                    else:
                        raise KafkaException(error)
                if time.monotonic() > idle_until_s:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))


def parse_letter_id(letter_id: str) -> tuple[int, int] | None:
    """Return the partition and offset in the id of a dead letter, or None if the id is invalid."""
    number, dash, offset = letter_id.partition("-")
    return (int(number), int(offset)) if dash and number.isdecimal() and offset.isdecimal() else None
