"""Dead letters on real Kafka: their content, the limits, and failures to write them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
from attrs import evolve
from confluent_kafka.admin import AdminClient

from rtfm.contracts import Contracts
from rtfm.errors import InvalidEvent
from rtfm.settings import Settings
from rtfm.streams.dead_letters.limits import TooManyDeadLetters
from rtfm.streams.pipeline import Output, Record
from rtfm.streams.topics import TopicAdmin
from rtfm.telemetry import Health
from tests.streams import (
    GROUP,
    MESSAGES,
    RecordingHandler,
    build_message,
    committed,
    dead_letters,
    eventually,
    limit_record_bytes,
    produce,
    produce_raw,
    produce_raws,
    running,
)

ODD_HEADERS = [("odd", b"\xff\x00"), ("odd", b""), ("none", None), ("rtfm.original.header_count", b"1"), ("ä", b"x")]


def value(letter: Record, name: str) -> str:
    return (letter.header(name) or b"").decode()


def refuse(records: Sequence[Record]) -> list[Output]:
    """Refuse every record as invalid."""
    raise InvalidEvent("nothing is welcome")


def test_a_dead_letter_is_the_record_byte_for_byte_even_with_a_megabyte(
    settings: Settings, contracts: Contracts
) -> None:
    """R15: A dead letter keeps key, value and headers unchanged, even if the value has 1,047,000 bytes."""
    large = b"\x00" * 1_047_000
    originals = [(b"\xfe\x00key", b"\xde\xad"), (None, None), (b"", b""), (b"200", large)]
    for key, content in originals:
        produce_raw(settings, MESSAGES, content, key=key, headers=ODD_HEADERS)  # type: ignore[arg-type]  # None is a value
    with running(settings, contracts, RecordingHandler()):
        eventually(lambda: committed(settings) == len(originals))
    letters = dead_letters(settings, contracts)
    assert sorted(((r.key, r.value) for r in letters), key=repr) == sorted(originals, key=repr)
    for letter in letters:
        assert letter.headers[: len(ODD_HEADERS)] == ODD_HEADERS
        assert len([name for name, _ in letter.headers if name.startswith("__connect.errors.")]) == 10
    assert value(next(r for r in letters if r.value == large), "rtfm.schema_id") == "0"


def test_bad_input_stops_the_pipeline_at_the_limit_and_at_every_start_after_it(
    settings: Settings, contracts: Contracts
) -> None:
    """R17: After 100 dead letters in a row the pipeline stops, and restarts add no dead letter.

    The rest of the topic stays unfinished until the limits are removed.
    """
    produce_raws(settings, MESSAGES, [b"bad %d" % n for n in range(1000)])
    for _ in range(3):
        with (
            pytest.raises(TooManyDeadLetters, match="all dead letters"),
            running(settings, contracts, RecordingHandler()) as one,
        ):
            eventually(lambda: not one.is_alive())
        assert len(dead_letters(settings, contracts)) == 100
        assert committed(settings) == 100
    other = evolve(settings, instance_id="another-host", home=settings.home / "other")
    with pytest.raises(TooManyDeadLetters), running(other, contracts, RecordingHandler()) as one:
        eventually(lambda: not one.is_alive())
    assert len(dead_letters(settings, contracts)) == 100
    unlimited = evolve(settings, dlq_max_consecutive=0, dlq_max_share=0)
    with running(unlimited, contracts, RecordingHandler()):
        eventually(lambda: committed(settings) == 1000)


def test_a_share_of_bad_records_stops_the_pipeline_until_the_handler_is_fixed(
    settings: Settings, contracts: Contracts
) -> None:
    """R17: If two of three records are bad, the pipeline stops; with a fixed handler, it continues and skips none."""
    produce(settings, contracts, MESSAGES, *(build_message(n, channel="1") for n in range(900)))
    strict = RecordingHandler()

    def handler(batch: Sequence[Record]) -> list[Output]:
        if any(int(record.event.message_id) % 3 for record in batch):
            raise InvalidEvent("not a multiple of three")
        return strict(batch)

    with pytest.raises(TooManyDeadLetters, match="of the last"), running(settings, contracts, handler) as one:
        eventually(lambda: not one.is_alive())
    letters = len(dead_letters(settings, contracts))
    assert 100 < letters < 200
    fixed = RecordingHandler()
    with running(settings, contracts, fixed):
        eventually(lambda: committed(settings) == 900)
    assert len(dead_letters(settings, contracts)) == letters
    assert len(strict.ids) + len(fixed.ids) + letters == 900
    assert set(strict.ids).isdisjoint(fixed.ids)


def test_many_threads_stop_at_the_limit_as_one_does(settings: Settings, contracts: Contracts) -> None:
    """R17: With several threads, each partition has at most as many dead letters as its limit, even after a restart."""
    produce(settings, contracts, MESSAGES, *(build_message(n, channel=str(n)) for n in range(1500)))
    with pytest.raises(TooManyDeadLetters), running(settings, contracts, refuse, concurrency=8) as one:
        eventually(lambda: not one.is_alive())
    letters = len(dead_letters(settings, contracts))
    assert 100 <= letters <= 300  # each of the three partitions has a limit of 100
    with pytest.raises(TooManyDeadLetters), running(settings, contracts, refuse, concurrency=8) as one:
        eventually(lambda: not one.is_alive())
    assert len(dead_letters(settings, contracts)) <= 300


def test_the_offset_waits_until_the_dead_letter_can_be_written(settings: Settings, contracts: Contracts) -> None:
    """R16: While the topic of dead letters is missing, the pipeline does not commit the offset of the bad record.

    The pipeline's readiness says that the pipeline waits for Kafka. Once the topic exists, the pipeline continues.
    """
    name = f"{settings.kafka_topic_prefix}dead-letters"
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap_servers})
    admin.delete_topics([name])[name].result(20)
    produce(settings, contracts, MESSAGES, build_message(1, channel="1"))
    produce_raw(settings, MESSAGES, b"bad", key=b"1")
    produce(settings, contracts, MESSAGES, build_message(3, channel="1"))
    health, recorder = Health(), RecordingHandler()
    with running(settings, contracts, recorder, health=health):
        eventually(lambda: health.readiness() == {GROUP: "waiting for kafka"})
        assert committed(settings) <= 1
        topics = TopicAdmin(settings, contracts.catalogue)
        topics.apply(topics.plan())
        eventually(lambda: committed(settings) == 3, timeout_s=60)
    assert [letter.value for letter in dead_letters(settings, contracts)] == [b"bad"]
    assert recorder.ids == ["1", "3"]


def test_a_dead_letter_that_is_too_large_for_its_topic_is_not_dropped(settings: Settings, contracts: Contracts) -> None:
    """R16: If a dead letter is too large for its topic, the pipeline waits until the topic accepts it."""
    limit_record_bytes(settings, "dead-letters", 5000)
    produce_raw(settings, MESSAGES, os.urandom(20_000), key=b"1")
    health = Health()
    with running(settings, contracts, RecordingHandler(), health=health):
        eventually(lambda: health.readiness() == {GROUP: "waiting for kafka"})
        assert committed(settings) == 0
        limit_record_bytes(settings, "dead-letters", 2_097_152)
        eventually(lambda: committed(settings) == 1, timeout_s=60)
    assert len(dead_letters(settings, contracts)) == 1


def test_a_record_that_breaks_the_handler_at_every_start_becomes_a_dead_letter(
    settings: Settings, contracts: Contracts
) -> None:
    """If a record triggers a defect of the handler, the pipeline ends three times; then the record is dead-lettered.

    No other record is skipped.
    """
    produce(settings, contracts, MESSAGES, *(build_message(n, channel="1") for n in range(6)))
    recorder = RecordingHandler()

    def handler(batch: Sequence[Record]) -> list[Output]:
        if any(record.event.message_id == "3" for record in batch):
            raise ZeroDivisionError("a defect")
        return recorder(batch)

    for _ in range(3):
        with pytest.raises(ZeroDivisionError), running(settings, contracts, handler, batch_size=500) as one:
            eventually(lambda: not one.is_alive())
        assert dead_letters(settings, contracts) == []
    with running(settings, contracts, handler, batch_size=500):
        eventually(lambda: committed(settings) == 6)
    (letter,) = dead_letters(settings, contracts)
    assert (value(letter, "rtfm.error_class"), value(letter, "__connect.errors.stage")) == (
        "ZeroDivisionError",
        "HANDLE",
    )
    assert "a defect" in value(letter, "__connect.errors.exception.stacktrace")
    assert contracts.decode(MESSAGES, letter.value or b"").message_id == "3"
    assert set(recorder.ids) == {"0", "1", "2", "4", "5"}
