"""The pipeline on real Kafka: failing records, outages and offsets."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

import httpx
import pytest
from attrs import evolve
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from rtfm.contracts import Contracts, open_contracts
from rtfm.errors import ConfigError, InvalidEvent, Unavailable
from rtfm.settings import Settings
from rtfm.streams.pipeline import Handler, Output, Record
from rtfm.streams.progress import GroupProgress
from rtfm.streams.topics import TopicAdmin
from rtfm.telemetry import LOST_RECORDS, Health
from tests.streams import (
    GROUP,
    MESSAGES,
    QUERIES,
    RESPONSES,
    RecordingHandler,
    build_message,
    build_query,
    build_response,
    committed,
    dead_letters,
    eventually,
    produce,
    produce_raw,
    records,
    running,
)


def header(record: Record, name: str) -> str:
    return (record.header(name) or b"").decode()


def test_a_record_that_does_not_decode_is_one_dead_letter_and_the_next_one_is_handled(
    settings: Settings, contracts: Contracts
) -> None:
    """A record that cannot be decoded becomes one dead letter, and the next record is handled.

    Such values are empty, missing, too short, too long, or of another format, an unknown schema or another topic.
    """
    good = contracts.encode(MESSAGES, build_message(1))
    query = contracts.encode(QUERIES, build_query(1))
    poison = [
        None,
        b"",
        b"\x00",
        b"\x01" + good[1:],
        b"\x00\x7f\xff\xff\xff" + good[5:],
        good[:-3],
        good + b"\x00",
        query,
    ]
    for value in poison:
        produce_raw(settings, MESSAGES, value)
    produce(settings, contracts, MESSAGES, build_message(7))
    recorder = RecordingHandler()
    with running(settings, contracts, recorder):
        eventually(lambda: committed(settings) == len(poison) + 1)
    assert recorder.ids == ["7"]
    letters = dead_letters(settings, contracts)
    assert [letter.value for letter in letters] == poison
    assert {header(letter, "__connect.errors.stage") for letter in letters} == {"DECODE"}
    assert header(letters[4], "rtfm.error_class") == "UnknownSchema"
    assert header(letters[5], "rtfm.error_class") == "UndecodableRecord"


def test_a_dead_letter_is_the_original_byte_for_byte_and_says_where_and_why(
    settings: Settings, contracts: Contracts
) -> None:
    """A dead letter keeps key, value and headers in order, followed by Kafka Connect's ten headers."""
    original = [("traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"), ("odd", b"\xff\x00"), ("odd", b"")]
    produce_raw(settings, MESSAGES, b"\xde\xad", key=b"\xfe\x00key", headers=original)
    with running(settings, contracts, RecordingHandler()):
        eventually(lambda: committed(settings) == 1)
    (letter,) = dead_letters(settings, contracts)
    assert (letter.key, letter.value) == (b"\xfe\x00key", b"\xde\xad")
    assert letter.headers[:3] == original
    connect = {name: value.decode() for name, value in letter.headers if name.startswith("__connect.errors.")}
    assert len(connect) == 10
    assert connect["__connect.errors.topic"] == MESSAGES
    assert connect["__connect.errors.offset"] == "0"
    assert "Traceback" in connect["__connect.errors.exception.stacktrace"]
    assert header(letter, "rtfm.consumer_group") == GROUP


def test_one_invalid_event_does_not_take_its_batch_with_it(settings: Settings, contracts: Contracts) -> None:
    """If a batch fails, its records are handled one by one, and only the invalid record becomes a dead letter."""
    produce(settings, contracts, MESSAGES, *(build_message(n) for n in range(1, 6)))
    done: list[str] = []

    def handler(batch: Sequence[Record]) -> list[Output]:
        if any(record.event.message_id == "3" for record in batch):
            raise InvalidEvent("three is not welcome")
        done.extend(record.event.message_id for record in batch)
        return []

    with running(settings, contracts, handler, batch_size=500):
        eventually(lambda: committed(settings) == 5)
    assert done == ["1", "2", "4", "5"]
    (letter,) = dead_letters(settings, contracts)
    assert contracts.decode(MESSAGES, letter.value or b"").message_id == "3"
    assert header(letter, "__connect.errors.stage") == "HANDLE"
    assert header(letter, "__connect.errors.exception.message") == "three is not welcome"


def test_a_defect_of_the_handler_ends_the_service_and_skips_nothing(settings: Settings, contracts: Contracts) -> None:
    """If the handler has a defect, the pipeline ends, and the record stays unfinished."""
    produce(settings, contracts, MESSAGES, build_message(1))

    def handler(_: Sequence[Record]) -> list[Output]:
        raise ZeroDivisionError("a defect")

    with pytest.raises(ZeroDivisionError), running(settings, contracts, handler) as thread:
        eventually(lambda: not thread.is_alive())
    assert committed(settings) == 0
    assert dead_letters(settings, contracts) == []


def test_an_outage_of_a_dependency_pauses_the_pipeline_and_skips_nothing(
    settings: Settings, contracts: Contracts
) -> None:
    """While a dependency is down, readiness names it, and after the outage every record is handled in order.

    No record becomes a dead letter or is skipped.
    """
    produce(settings, contracts, MESSAGES, *(build_message(n) for n in range(1, 4)))
    back, health, recorder, tries = threading.Event(), Health(), RecordingHandler(), []

    def handler(batch: Sequence[Record]) -> list[Output]:
        tries.append(len(batch))
        if not back.is_set():
            raise Unavailable("archive", "the archive does not answer")
        return recorder(batch)

    with running(settings, contracts, handler, batch_size=500, health=health):
        eventually(lambda: len(tries) > 2)
        assert health.readiness() == {GROUP: "waiting for archive"}
        assert committed(settings) == 0
        produce(settings, contracts, MESSAGES, build_message(4))
        back.set()
        eventually(lambda: committed(settings) == 4)
        assert eventually(lambda: health.readiness() == {})
    assert recorder.ids == ["1", "2", "3", "4"]
    assert dead_letters(settings, contracts) == []


class _Registry:
    """A registry that responds with 503 until it is switched to the responses of the real registry."""

    def __init__(self, real: str) -> None:
        self.up = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = httpx.get(real + self.path) if outer.up.is_set() else None
                self.send_response(answer.status_code if answer else 503)
                self.end_headers()
                self.wfile.write(answer.content if answer else b"down")

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def test_a_registry_that_is_down_makes_no_dead_letters(settings: Settings, contracts: Contracts) -> None:
    """While the registry is down, records that need it wait, and do not become dead letters."""
    produce(settings, contracts, MESSAGES, build_message(1), build_message(2))
    registry = _Registry(settings.schema_registry_url)
    elsewhere = evolve(settings, schema_registry_url=registry.url, home=settings.home / "other")
    health, recorder = Health(), RecordingHandler()
    with running(elsewhere, open_contracts(elsewhere), recorder, health=health):
        eventually(lambda: health.readiness() == {GROUP: "waiting for schema registry"})
        registry.up.set()
        eventually(lambda: committed(settings) == 2)
    registry.server.shutdown()
    assert recorder.ids == ["1", "2"]
    assert dead_letters(settings, contracts) == []


def test_an_output_that_no_broker_takes_holds_back_its_offset(settings: Settings, contracts: Contracts) -> None:
    """While the topic of the outputs is missing, the offset of the question is not committed."""
    hasty = evolve(settings, kafka_delivery_timeout_s=1.0)
    name = f"{settings.kafka_topic_prefix}{RESPONSES}"
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap_servers})
    admin.delete_topics([name])[name].result(20)
    produce(settings, contracts, QUERIES, build_query(1))
    recorder = RecordingHandler(lambda record: [Output(topic=RESPONSES, event=build_response(record.event))])
    health = Health()
    with running(hasty, contracts, recorder, topic=QUERIES, health=health):
        eventually(lambda: health.readiness() == {GROUP: "waiting for kafka"})
        assert committed(settings, QUERIES) == 0
        topics = TopicAdmin(settings, contracts.catalogue)
        topics.apply(topics.plan())
        eventually(lambda: committed(settings, QUERIES) == 1)
    assert [record.event.query_id for record in records(settings, contracts, RESPONSES)] == ["c1"]


def test_stopping_finishes_and_commits_started_records_and_repeats_none(
    settings: Settings, contracts: Contracts
) -> None:
    """A stop finishes and commits the records that were started, and the next start repeats none of these records."""
    produce(settings, contracts, QUERIES, *(build_query(n) for n in range(20)))
    begun, stop = threading.Event(), threading.Event()
    first = RecordingHandler()

    def slow(batch: Sequence[Record]) -> list[Output]:
        begun.set()
        assert stop.wait(60)
        return first(batch)

    with running(settings, contracts, slow, topic=QUERIES, concurrency=2, stop=stop):
        assert begun.wait(40)
    second = RecordingHandler()
    with running(settings, contracts, second, topic=QUERIES):
        eventually(lambda: committed(settings, QUERIES) == 20)
    assert 1 <= len(first.ids) <= 2
    assert sorted(first.ids + second.ids) == sorted(f"c{n}" for n in range(20))


def test_records_of_one_key_are_handled_one_after_another_and_of_others_meanwhile(
    settings: Settings, contracts: Contracts
) -> None:
    """A slow record delays only later records of its key, and not the other keys of its partition."""
    others = [build_query(n) for n in range(1, 30)]
    slow_down, recorder = threading.Event(), RecordingHandler()
    produce(settings, contracts, QUERIES, build_query(0), build_query(0, "again"), *others)
    order: list[str] = []

    def handler(batch: Sequence[Record]) -> list[Output]:
        (record,) = batch
        if record.event.query_id == "c0":
            order.append(f"+{record.event.question}")
            assert slow_down.wait(60)
            order.append(f"-{record.event.question}")
        return recorder(batch)

    with running(settings, contracts, handler, topic=QUERIES, concurrency=8):
        eventually(lambda: len(recorder.ids) == len(others))
        slow_down.set()
        eventually(lambda: committed(settings, QUERIES) == len(others) + 2)
    assert order == ["+how?", "-how?", "+again", "-again"]


def test_a_second_processor_takes_its_share_and_nothing_is_left_out(settings: Settings, contracts: Contracts) -> None:
    """If a second processor joins the group and leaves it again, no record is left out."""
    first, second, numbers = RecordingHandler(), RecordingHandler(), count(1000)

    def second_has_work() -> bool:
        produce(settings, contracts, MESSAGES, *(build_message(next(numbers), channel=str(n)) for n in range(12)))
        return bool(second.ids)

    with running(settings, contracts, first):
        produce(settings, contracts, MESSAGES, *(build_message(n, channel=str(n % 30)) for n in range(300)))
        with running(evolve(settings, instance_id="second"), contracts, second):
            eventually(second_has_work)
        produce(settings, contracts, MESSAGES, *(build_message(n, channel=str(n % 30)) for n in range(9000, 9100)))
        eventually(lambda: set(map(str, range(9000, 9100))) <= set(first.ids))
        total = sum(1 for _ in records(settings, contracts, MESSAGES))
        eventually(lambda: committed(settings) == total)
    written = {record.event.message_id for record in records(settings, contracts, MESSAGES)}
    assert set(first.ids) | set(second.ids) == written
    assert dead_letters(settings, contracts) == []


def test_records_that_retention_removed_unread_are_counted(settings: Settings, contracts: Contracts) -> None:
    """If the committed offset is below the start of the log, a metric counts the records that were lost."""
    produce(settings, contracts, MESSAGES, *(build_message(n) for n in range(10)))
    with running(settings, contracts, RecordingHandler()):
        eventually(lambda: committed(settings) == 10)
    produce(settings, contracts, MESSAGES, *(build_message(n) for n in range(10, 20)))
    partition = next(r.partition for r in records(settings, contracts, MESSAGES))
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap_servers})
    gone = TopicPartition(f"{settings.kafka_topic_prefix}{MESSAGES}", partition, 14)
    admin.delete_records([gone])[gone].result(20)
    before = LOST_RECORDS.labels(MESSAGES, GROUP)._value.get()
    recorder = RecordingHandler()
    with running(settings, contracts, recorder):
        eventually(lambda: committed(settings) == 20)
    assert recorder.ids == [str(n) for n in range(14, 20)]
    assert LOST_RECORDS.labels(MESSAGES, GROUP)._value.get() - before == 4


def test_an_output_continues_the_trace_of_its_record(settings: Settings, contracts: Contracts) -> None:
    """An output has the trace of its record, so that a question and its answer share a trace."""
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    produce(settings, contracts, QUERIES, build_query(1), headers={"traceparent": trace})
    recorder = RecordingHandler(lambda record: [Output(topic=RESPONSES, event=build_response(record.event))])
    with running(settings, contracts, recorder, topic=QUERIES, concurrency=2):
        eventually(lambda: committed(settings, QUERIES) == 1)
    (response,) = records(settings, contracts, RESPONSES)
    given = header(response, "traceparent").split("-")
    assert given[1] == "a" * 32
    assert given[2] != "b" * 16


def test_a_missing_topic_ends_the_pipeline_with_the_fix(
    bare_settings: Settings, settings: Settings, contracts: Contracts
) -> None:
    """If a topic does not exist, the pipeline ends with an error that says so."""
    lost = evolve(settings, kafka_topic_prefix="nowhere.")
    with pytest.raises(ConfigError, match="does not exist"), running(lost, contracts, RecordingHandler()) as thread:
        eventually(lambda: not thread.is_alive())


def test_a_pipeline_whose_handler_still_loads_fences_its_predecessor_and_stays_out_of_the_group(
    settings: Settings, contracts: Contracts
) -> None:
    """While the handler of a pipeline loads, the pipeline stays outside its group, but fences its predecessor.

    The predecessor is a producer of the same name. Fencing ends the open transactions of a predecessor that crashed.
    Records are polled once the handler is ready.
    """
    name = f"{settings.kafka_topic_prefix}{GROUP}-{settings.instance_id}"
    servers = {"bootstrap.servers": settings.kafka_bootstrap_servers}
    predecessor: Any = Producer({**servers, "transactional.id": name, "transaction.timeout.ms": 600_000})
    predecessor.init_transactions(30)
    produce(settings, contracts, MESSAGES, build_message(1))
    handler, recorder = Future[Handler](), RecordingHandler()

    def is_ended() -> bool:
        try:
            predecessor.begin_transaction()
            predecessor.produce(f"{settings.kafka_topic_prefix}{RESPONSES}", b"x")
            predecessor.commit_transaction(10)
        except KafkaException:
            return True  # the producer is fenced, which a broker reports as UNKNOWN during a commit
        return False

    with running(settings, contracts, handler):
        eventually(is_ended)
        assert GroupProgress(settings, GROUP).count_members() == 0
        assert recorder.batches == []
        handler.set_result(recorder)
        eventually(lambda: recorder.ids == ["1"])
    health = Health()
    with running(settings, contracts, Future[Handler](), health=health):
        eventually(lambda: health.find_stalled(-1))  # the pipeline's loop runs
    # A stop does not wait for the handler, and the stopped loop is no longer watched.
    assert health.find_stalled(-1) == {}
