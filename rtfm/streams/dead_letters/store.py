"""Store: finds, replays and discards the letters in the topic dead-letters.

Reads committed records only. Marks, which are records of the same topic, tell what happened to a letter. A replay and
its mark commit together. Of all processes that replay or discard, only the one that started last can commit, so that
two of them never replay the same letter. Does not decide which letters may be replayed.
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
"""The transactional name of every process that replays or discards."""

READ_TIMEOUT_S = 10.0
_RETRY_PAUSES_S = (0.0, 0.2, 1.0)
_READING = "reading dead-letters"
_BATCH_RECORDS = 200
_BATCH_BYTES = 4_000_000


@frozen(kw_only=True)
class LetterFilter:
    """Selects letters; None matches any. Times are of the dead letter, in milliseconds since the epoch."""

    ids: frozenset[str] | None = None
    topic: str | None = None
    error_class: str | None = None
    stage: str | None = None
    key: bytes | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    states: frozenset[str] = frozenset((OPEN,))

    def matches(self, letter: Letter, state: str) -> bool:
        """Return whether ``letter``, which is in ``state``, is selected."""
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
    """A letter and its state: OPEN, REPLAYED or DISCARDED, and the time of its mark."""

    letter: Letter
    state: str = OPEN
    marked_ms: int | None = None


@frozen(kw_only=True)
class Decision:
    """The decision on a letter; ``refusal`` is the reason if nothing is done."""

    found: FiledLetter
    refusal: str | None = None


@frozen
class _Write:
    """The records to produce for one letter: its mark of ``kind``, after the replay if it is one."""

    found: FiledLetter
    kind: str
    records: tuple[ProducerRecord, ...]


class DeadLetterStore:
    """The dead letters of a cluster. Raises Unavailable if Kafka does not answer, ConfigError without the topic."""

    def __init__(self, settings: Settings) -> None:
        self._kafka = KafkaConfig.of(settings)
        self._consumer = self._new_consumer()

    def _new_consumer(self) -> Consumer:
        return Consumer(
            {
                **self._kafka.consumer_config("rtfm-dlq-reader"),  # never joined, nothing is committed
                "fetch.wait.max.ms": 20,
            }
        )

    def find(self, wanted: LetterFilter) -> Iterator[FiledLetter]:
        """Yield the letters that ``wanted`` selects, oldest first in each partition.

        Reads the topic twice, because marks follow their letters and the letters are too large to keep in memory.
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
        """Return the number of partitions of ``topic``; 0 if it does not exist."""
        name = self._kafka.topic(topic)
        with self._kafka.translating(_READING):
            found = self._consumer.list_topics(name, timeout=REQUEST_TIMEOUT_S).topics[name]
        return 0 if found.error is not None else len(found.partitions)

    def replay(self, wanted: LetterFilter, refusal: Callable[[FiledLetter], str | None]) -> Iterator[Decision]:
        """Produce the selected letters to their original topics, except those for which ``refusal`` gives a reason.

        Raises Fenced if another process starts to replay or discard meanwhile; the decisions yielded before hold.
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
                # The partition of its key's other records, whatever partitioner its producer used.
                partition=number if 0 <= number < partitions(letter.topic) else -1,
            )
            return _Write(found, REPLAYED, (record, Mark.build_record(letter, REPLAYED)))

        yield from self._write(wanted, refusal, build_replay)

    def discard(self, wanted: LetterFilter, refusal: Callable[[FiledLetter], str | None]) -> Iterator[Decision]:
        """Mark the selected letters as not wanted. Their bytes stay until retention removes them. Raises Fenced."""

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
        transactions.open()  # before reading: from here on no process that started earlier can commit
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
        """Commit ``batch``; if Kafka refuses it as a whole, commit its letters one by one, with a few attempts each."""
        left, reason = batch, ""
        for pause_s in (0.0,) if len(batch) > 1 else _RETRY_PAUSES_S:
            time.sleep(pause_s)
            try:
                transactions.commit([record for write in left for record in write.records])
            except (NotCommitted, OutcomeUnknown) as exc:
                reason = str(exc)
                if transactions.needs_open:
                    transactions.open()  # ends the transaction, which may have been committed
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
        """Return the ids of the letters in ``batch`` that have the mark that was sent."""
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
        """Return the offset of each partition from which selected letters can be found."""
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
        """Yield everything from ``starts`` to the current end of the topic."""
        if not starts:
            return
        name = self._kafka.topic(TOPIC)
        ended: set[int] = set()
        idle_until_s = time.monotonic() + READ_TIMEOUT_S
        consumer = self._new_consumer()  # one for each read, because reads may overlap
        with closing(consumer), self._kafka.translating(_READING):
            positions = [TopicPartition(name, *start) for start in starts.items()]
            for position in positions:
                if position.offset >= 0:
                    # Retention may have removed the offset of an id; then read from the start of the log.
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
    """Return the partition and offset in a letter's id, or None if it is invalid."""
    number, dash, offset = letter_id.partition("-")
    return (int(number), int(offset)) if dash and number.isdecimal() and offset.isdecimal() else None
