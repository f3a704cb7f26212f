"""R29: With a broker that never answers, the producer waits up to a deadline, and reports every record as failed."""

from __future__ import annotations

import itertools
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import pytest
from attrs import evolve

from rtfm.contracts import Contracts, open_contracts
from rtfm.errors import RtfmError, Unavailable
from rtfm.settings import Settings
from rtfm.streams.producer import Delivery, EventProducer

HEADERS = [("traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"), ("content-type", b"text/plain")]


@pytest.fixture
def stalled() -> Iterator[Settings]:
    """Settings whose broker is a listening socket that never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        yield evolve(
            Settings(),
            kafka_bootstrap_servers=f"127.0.0.1:{silent.getsockname()[1]}",
            kafka_queue_max_messages=1000,
            kafka_delivery_timeout_s=60.0,
        )


@pytest.fixture
def contracts(stalled: Settings) -> Contracts:
    return open_contracts(stalled)


class Reports:
    """Counts how often each record was reported."""

    def __init__(self) -> None:
        self.of: Counter[int] = Counter()
        self.errors: set[str | None] = set()

    def add(self, number: int, delivery: Delivery) -> None:
        self.of[number] += 1
        self.errors.add(delivery.error)


def send(producer: EventProducer, reports: Reports, number: int) -> None:
    producer.send_raw(
        "discord-messages",
        b"7",
        b"value",
        HEADERS,
        on_delivery=lambda delivery: reports.add(number, delivery),
    )


def test_a_full_queue_holds_the_caller_up_to_the_deadline_and_then_is_unavailable(
    stalled: Settings, contracts: Contracts
) -> None:
    """If the queue is full, a caller waits until the deadline and then gets Unavailable."""
    now_s = itertools.count(step=7)
    producer = EventProducer(stalled, contracts, clock=lambda: float(next(now_s)))
    reports = Reports()
    for number in range(1000):
        send(producer, reports, number)
    began_s = next(now_s)
    with pytest.raises(Unavailable, match=r"the queue of 1000 stays full: Kafka at 127\.0\.0\.1") as caught:
        send(producer, reports, 1000)
    assert next(now_s) - began_s > stalled.kafka_delivery_timeout_s
    assert caught.value.hint
    producer.close(timeout_s=0)


def test_every_record_that_was_taken_is_reported_once_when_the_producer_closes(
    stalled: Settings, contracts: Contracts
) -> None:
    """When the producer closes, each record that it took is reported once as failed; a refused record is not."""
    reports = Reports()
    producer = EventProducer(evolve(stalled, kafka_delivery_timeout_s=0.2), contracts)
    taken = 0
    try:
        for taken in itertools.count():
            send(producer, reports, taken)
    except Unavailable:
        pass
    producer.close(timeout_s=0)
    assert taken >= 1000
    assert reports.of == Counter(range(taken))
    assert None not in reports.errors


def test_a_flush_that_leaves_records_over_is_an_error_with_their_number(
    stalled: Settings, contracts: Contracts
) -> None:
    """A flush that leaves records unsent raises an error with their number, so that no command reports success."""
    producer = EventProducer(stalled, contracts)
    for number in range(3):
        send(producer, Reports(), number)
    with pytest.raises(Unavailable, match="3 records were not delivered"):
        producer.flush(0.1)
    producer.close(timeout_s=0)


def test_an_error_in_the_block_is_not_followed_by_a_wait_for_kafka(stalled: Settings, contracts: Contracts) -> None:
    """After an error in its ``with`` block, the producer reports unsent records as failed without waiting for Kafka."""
    reports = Reports()

    def fail_halfway() -> None:
        with EventProducer(stalled, contracts) as producer:
            send(producer, reports, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert reports.of == {1: 1}
    assert reports.errors == {"Local: Purged in queue"}


def test_a_closed_producer_takes_nothing(stalled: Settings, contracts: Contracts) -> None:
    """A closed producer refuses records, because it would never send them."""
    producer = EventProducer(stalled, contracts)
    producer.close(timeout_s=0)
    producer.close()
    with pytest.raises(RtfmError, match="closed"):
        send(producer, Reports(), 1)


def grown_bytes(action: Callable[[int], None], count: int) -> int:
    """Return by how much memory grows in ``count`` calls, after a warm-up that fills the allocator's pools."""
    action(20_000)
    before: int = psutil.Process().memory_info().rss
    action(count)
    grown: int = psutil.Process().memory_info().rss - before
    return grown


def test_failed_deliveries_that_nobody_asks_about_take_no_memory(stalled: Settings, contracts: Contracts) -> None:
    """If nobody asks about failed deliveries, they are not kept; a service never flushes, and would keep them all.

    80,000 failures of 100 bytes each would take 8 MB.
    """
    settings = evolve(stalled, kafka_delivery_timeout_s=0.1, kafka_queue_max_messages=20_000)
    producer = EventProducer(settings, contracts)

    def fail(count: int) -> None:
        while count:
            with suppress(Unavailable):  # the queue is full, so the same record is tried again
                producer.send_raw("discord-messages", b"7", b"value", HEADERS)
                count -= 1

    assert grown_bytes(fail, 80_000) < 6_000_000
    producer.close(timeout_s=0)


def test_refused_records_take_no_memory(stalled: Settings, contracts: Contracts) -> None:
    """Records that the full queue refuses take no memory, although their headers were already encoded."""
    now_s = itertools.count(step=100)
    producer = EventProducer(stalled, contracts, clock=lambda: float(next(now_s)))
    for number in range(1000):
        send(producer, Reports(), number)

    def refuse(count: int) -> None:
        for _ in range(count):
            with pytest.raises(Unavailable):
                producer.send_raw("discord-messages", b"7", b"value", HEADERS)

    assert grown_bytes(refuse, 80_000) < 6_000_000
    producer.close(timeout_s=0)
