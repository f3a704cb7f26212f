"""Transactions on a real broker: how they can end, and which errors are raised."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # not in its __all__

from rtfm.contracts import Contracts, open_contracts
from rtfm.settings import Settings
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.transactions import Fenced, NotCommitted, OutcomeUnknown, ProducerRecord, Transactions
from tests.streams import RESPONSES, eventually, limit_record_bytes, records


def record(value: bytes) -> ProducerRecord:
    """Return a producer record; all these records have the same key, so that they are in one partition."""
    return ProducerRecord(RESPONSES, b"key", value, [])


@pytest.fixture
def transactions(settings: Settings) -> Iterator[Callable[[], Transactions]]:
    """Return a function that opens producers with the same transactional id; all are closed at the end."""
    made: list[Transactions] = []

    def make() -> Transactions:
        made.append(Transactions(KafkaConfig.of(settings), "one-name"))
        made[-1].open()
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def contracts(settings: Settings) -> Contracts:
    """The contracts of ``settings`` with their registry."""
    return open_contracts(settings)


def has_no_open_transaction(settings: Settings) -> bool:
    """Return whether no transaction is open in bot-responses."""
    admin: Any = AdminClient({"bootstrap.servers": settings.kafka_bootstrap_servers})
    latest: Any = OffsetSpec
    asked = {TopicPartition(f"{settings.kafka_topic_prefix}{RESPONSES}", n): latest.latest() for n in range(3)}
    ends = [
        [future.result(30).offset for future in admin.list_offsets(asked, isolation_level=level).values()]
        for level in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED)
    ]
    return ends[0] == ends[1]


def values(settings: Settings, contracts: Contracts) -> list[bytes | None]:
    """Return the values that a reader of committed records gets."""
    return [found.value for found in records(settings, contracts, RESPONSES)]


def test_a_transaction_that_timed_out_does_not_end_the_processor(
    settings: Settings, contracts: Contracts, transactions: Callable[[], Transactions]
) -> None:
    """R3, R5: If a transaction exceeds its timeout, as after a freeze, none of its records becomes visible.

    The next transaction of the same producer works.
    """
    ours = transactions()

    def slow() -> Iterator[ProducerRecord]:
        yield record(b"too late")
        eventually(lambda: not has_no_open_transaction(settings))
        eventually(lambda: has_no_open_transaction(settings))

    with pytest.raises(OutcomeUnknown, match="longer than 10 s"):
        ours.commit(slow())
    assert ours.needs_open
    ours.open()
    ours.commit([record(b"in time")])
    assert values(settings, contracts) == [b"in time"]


def test_the_older_of_two_producers_of_one_name_is_fenced(
    settings: Settings, contracts: Contracts, transactions: Callable[[], Transactions]
) -> None:
    """R4: If a second producer opens with the same id, the first producer is fenced, and its record is never seen."""
    older = transactions()

    def overtaken() -> Iterator[ProducerRecord]:
        yield record(b"of the older")
        eventually(lambda: not has_no_open_transaction(settings))
        transactions().commit([record(b"of the younger")])

    with pytest.raises(Fenced, match="another process took the place"):
        older.commit(overtaken())
    assert values(settings, contracts) == [b"of the younger"]


def test_a_refused_transaction_says_why_and_does_not_affect_the_next(
    settings: Settings, contracts: Contracts, transactions: Callable[[], Transactions]
) -> None:
    """If a transaction is refused, the error names the topic whose limit was exceeded, and the next transaction works.

    The delivery reports of aborted records arrive late, and must not fail the next transaction.
    """
    limit_record_bytes(settings, RESPONSES, 20_000)
    ours = transactions()
    large = [record(random.Random(number).randbytes(15_000)) for number in range(200)]
    for number in range(8):
        with pytest.raises(NotCommitted) as refused:
            ours.commit(large)
        assert refused.value.too_large_for == RESPONSES, refused.value
        if ours.needs_open:
            ours.open()
        ours.commit([record(b"small %d" % number)])
    assert values(settings, contracts) == [b"small %d" % number for number in range(8)]
