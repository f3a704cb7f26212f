"""Events through a real Kafka: topics, producer, consumer, pipeline and dead letters."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from attrs import evolve
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource  # type: ignore[attr-defined]  # not all of them are in its __all__
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from rtfm.contracts import Contracts, open_contracts
from rtfm.errors import ConfigError, InvalidEvent, RtfmError, Unavailable
from rtfm.events import ChannelKind, DiscordMessage, MessageChange, TimestampMillis
from rtfm.settings import Settings
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.consumer import EventReader
from rtfm.streams.pipeline import Handler, Output, Pipeline, Record
from rtfm.streams.producer import EventProducer
from rtfm.streams.topics import TopicAdmin
from rtfm.telemetry import Health

IN_2004 = TimestampMillis(1_100_000_000_000)
GROUP = "discord-message-processor"
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def contracts(settings: Settings) -> Contracts:
    return open_contracts(settings)


def message(number: int, *, channel: str = "7") -> DiscordMessage:
    return DiscordMessage(
        message_id=str(number),
        guild_id="1",
        channel_id=channel,
        channel_kind=ChannelKind.TEXT,
        author_id="2",
        author_name="ada",
        content=f"message {number}",
        created_at=IN_2004,
        change=MessageChange.CREATED,
    )


def produce(settings: Settings, contracts: Contracts, events: Sequence[DiscordMessage]) -> None:
    with EventProducer(settings, contracts) as producer:
        for event in events:
            producer.send("discord-messages", event)
        producer.flush()


def produce_raw(settings: Settings, contracts: Contracts, key: bytes | None, value: bytes | None) -> None:
    with EventProducer(settings, contracts) as producer:
        producer.send_raw("discord-messages", key, value, [("from", b"elsewhere")])
        producer.flush()


def read_all(settings: Settings, contracts: Contracts, topic: str) -> list[Record]:
    with EventReader(settings, contracts, topic) as reader:
        return list(reader.read_to_end())


@contextmanager
def pipeline(
    settings: Settings, contracts: Contracts, handler: Handler, *, concurrency: int = 1, health: Health | None = None
) -> Iterator[threading.Event]:
    stop = threading.Event()
    failures: list[BaseException] = []
    running = Pipeline(
        KafkaConfig.of(settings),
        contracts,
        group=GROUP,
        topic="discord-messages",
        handler=handler,
        health=health or Health(),
        concurrency=concurrency,
        stop=stop,
    )

    def run() -> None:
        try:
            running.run()
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(timeout=60)
        assert not thread.is_alive()
        assert not failures


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.02)


def test_a_broker_that_is_not_there_is_one_line_and_exit_code_3(bare_settings: Settings, cli: Cli) -> None:
    """If no broker responds, the error of a command names the address, and the exit code is 3."""
    done = cli(bare_settings, "topics", "init", check=False, KAFKA_BOOTSTRAP_SERVERS="localhost:1")
    assert done.returncode == 3
    assert "Kafka at localhost:1 does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_topic_that_does_not_exist_is_a_configuration_error(bare_settings: Settings) -> None:
    """If a topic does not exist, the error names the command that creates it."""
    with pytest.raises(ConfigError) as caught:
        EventReader(bare_settings, open_contracts(bare_settings), "bot-queries")
    assert "topics init" in (caught.value.hint or "")


def test_a_dry_run_changes_nothing_and_a_second_run_has_nothing_to_do(bare_settings: Settings, cli: Cli) -> None:
    """Each dry run prints the same plan until the plan is applied, and then nothing is left to do."""
    for _ in range(2):
        assert "4 changes (dry run)" in cli(bare_settings, "topics", "init", "--dry-run").stdout
    assert cli(bare_settings, "topics", "init").stdout.endswith("4 changes\n")
    assert cli(bare_settings, "topics", "init").stdout.endswith("0 changes\n")


def test_drifted_settings_are_fixed_and_extra_partitions_are_kept(settings: Settings, contracts: Contracts) -> None:
    """Changed settings of a topic are restored, and additional partitions stay, because they may contain records."""
    name = f"{settings.kafka_topic_prefix}bot-queries"
    client = AdminClient({"bootstrap.servers": settings.kafka_bootstrap_servers})
    entry = ConfigEntry("retention.ms", "1000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=[entry])
    client.incremental_alter_configs([resource])[resource].result(30)
    contracts.catalogue.topics["dead-letters"] = evolve(contracts.catalogue.topics["dead-letters"], partitions=1)
    admin = TopicAdmin(settings, contracts.catalogue)
    steps = {step.topic: step for step in admin.plan()}
    assert steps["bot-queries"].action == "configure"
    assert "retention.ms 1000 to 86400000" in steps["bot-queries"].detail
    assert steps["dead-letters"].action == "none"
    assert admin.apply(list(steps.values())) == 1
    wait_for(lambda: {step.action for step in admin.plan()} == {"none"})


def test_an_event_that_the_schema_does_not_allow_is_refused_before_it_is_sent(
    settings: Settings, contracts: Contracts
) -> None:
    """An event that does not fit its schema is refused before sending, so that the caller gets the error."""
    with EventProducer(settings, contracts) as producer, pytest.raises(InvalidEvent):
        producer.send("discord-messages", evolve(message(1), content=5))  # type: ignore[arg-type]  # intended
    assert read_all(settings, contracts, "discord-messages") == []


def test_a_record_comes_back_as_it_was_sent_with_trace_and_content_type(
    settings: Settings, contracts: Contracts
) -> None:
    """A record that is read has the event that was sent, its channel as key, a trace and a content type."""
    produce(settings, contracts, [message(1, channel="42")])
    (record,) = read_all(settings, contracts, "discord-messages")
    assert record.event == message(1, channel="42")
    assert record.key == b"42"
    assert {name for name, _ in record.headers} == {"traceparent", "content-type"}


def test_confluents_own_deserializer_reads_our_records(settings: Settings, contracts: Contracts) -> None:
    """Confluent's deserializer reads our records, so that programs with this deserializer can use the topics."""
    produce(settings, contracts, [message(1)])
    (record,) = read_all(settings, contracts, "discord-messages")
    deserializer = AvroDeserializer(SchemaRegistryClient({"url": settings.schema_registry_url}))
    topic = f"{settings.kafka_topic_prefix}discord-messages"
    value = deserializer(record.value, SerializationContext(topic, MessageField.VALUE))
    assert value["content"] == "message 1"
    assert value["change"] == "CREATED"
    assert int(value["created_at"].timestamp() * 1000) == IN_2004


@pytest.mark.parametrize(
    "value",
    [b"", b"\x00", b"\x01\x00\x00\x00\x01x", b"\x00\x7f\xff\xff\xffx", b"not avro at all", None],
    ids=["empty", "short", "magic", "unknown id", "garbage", "tombstone"],
)
def test_bytes_that_do_not_decode_become_one_dead_letter_and_the_next_record_is_handled(
    settings: Settings, contracts: Contracts, value: bytes | None
) -> None:
    """If bytes cannot be decoded, one dead letter keeps the bytes, and the next record is handled."""
    produce_raw(settings, contracts, b"7", value)
    produce(settings, contracts, [message(1)])
    handled: list[str] = []

    def handler(records: Sequence[Record]) -> Sequence[Output]:
        handled.extend(record.event.message_id for record in records)
        return []

    with pipeline(settings, contracts, handler):
        wait_for(lambda: handled == ["1"])
    (dead,) = read_all(settings, contracts, "dead-letters")
    assert (dead.key, dead.value) == (b"7", value)
    assert dead.headers[0] == ("from", b"elsewhere")
    assert dead.header("__connect.errors.topic") == b"discord-messages"
    assert dead.header("__connect.errors.stage") == b"DECODE"
    connect = {name for name, _ in dead.headers if name.startswith("__connect.errors.")}
    assert len(connect) == 10


def test_a_batch_with_one_record_that_can_never_succeed_loses_only_that_one(
    settings: Settings, contracts: Contracts
) -> None:
    """If one record of a batch is invalid, only that record becomes a dead letter."""
    produce(settings, contracts, [message(number) for number in range(10)])
    handled: set[str] = set()

    def handler(records: Sequence[Record]) -> Sequence[Output]:
        if any(record.event.message_id == "4" for record in records):
            raise InvalidEvent("message 4 breaks a rule")
        handled.update(record.event.message_id for record in records)
        return []

    with pipeline(settings, contracts, handler):
        wait_for(lambda: len(handled) == 9)
    (dead,) = read_all(settings, contracts, "dead-letters")
    assert dead.header("__connect.errors.exception.message") == b"message 4 breaks a rule"


def test_what_is_down_pauses_the_pipeline_and_nothing_is_skipped(settings: Settings, contracts: Contracts) -> None:
    """While a dependency is down, the pipeline waits and its readiness names the dependency; no record is skipped."""
    produce(settings, contracts, [message(number) for number in range(5)])
    back = threading.Event()
    handled: list[str] = []
    health = Health()

    def handler(records: Sequence[Record]) -> Sequence[Output]:
        if not back.is_set():
            raise Unavailable("chroma", "chroma does not answer")
        handled.extend(record.event.message_id for record in records)
        return []

    with pipeline(settings, contracts, handler, health=health):
        wait_for(lambda: "waiting for chroma" in health.readiness().values())
        back.set()
        wait_for(lambda: sorted(handled) == ["0", "1", "2", "3", "4"])
    assert read_all(settings, contracts, "dead-letters") == []


def test_after_a_stop_work_goes_on_where_it_was_committed(settings: Settings, contracts: Contracts) -> None:
    """After a restart, records that were finished before are not handled again."""
    handled: list[str] = []

    def handler(records: Sequence[Record]) -> Sequence[Output]:
        handled.extend(record.event.message_id for record in records)
        return []

    produce(settings, contracts, [message(number) for number in range(5)])
    with pipeline(settings, contracts, handler):
        wait_for(lambda: len(handled) == 5)
    produce(settings, contracts, [message(number) for number in range(5, 8)])
    with pipeline(settings, contracts, handler):
        wait_for(lambda: len(handled) == 8)
    assert sorted(handled) == [str(number) for number in range(8)]


def test_records_of_one_key_stay_in_order_when_several_are_handled_at_once(
    settings: Settings, contracts: Contracts
) -> None:
    """With several threads, the records of one key are handled in order."""
    produce(settings, contracts, [message(number, channel=str(number % 4)) for number in range(40)])
    handled: dict[str, list[int]] = {}

    def handler(records: Sequence[Record]) -> Sequence[Output]:
        (record,) = records
        time.sleep(0.005)
        handled.setdefault(record.event.channel_id, []).append(int(record.event.message_id))
        return []

    with pipeline(settings, contracts, handler, concurrency=4):
        wait_for(lambda: sum(map(len, handled.values())) == 40)
    assert all(numbers == sorted(numbers) for numbers in handled.values())


def test_outputs_are_in_kafka_and_carry_the_trace_of_their_record(settings: Settings, contracts: Contracts) -> None:
    """An output has the trace of its record, so that a question and its answer share a trace."""
    with EventProducer(settings, contracts) as producer:
        trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
        producer.send("discord-messages", message(1), headers={"traceparent": trace})
    outputs = []

    def handler(records: Sequence[Record]) -> Sequence[Output]:
        outputs.append(1)
        return [Output(topic="discord-messages", event=message(2))] if records[0].event.message_id == "1" else []

    with pipeline(settings, contracts, handler):
        wait_for(lambda: len(outputs) == 2)
    produced = [r for r in read_all(settings, contracts, "discord-messages") if r.event.message_id == "2"]
    assert (produced[0].header("traceparent") or b"").split(b"-")[1] == b"a" * 32


def test_committed_offsets_below_the_start_of_the_log_are_counted_as_lost(
    settings: Settings, contracts: Contracts
) -> None:
    """If retention removed records before they were handled, a metric counts these records."""
    from confluent_kafka import TopicPartition

    from rtfm.telemetry import LOST_RECORDS

    produce(settings, contracts, [message(number) for number in range(5)])
    (partition,) = {record.partition for record in read_all(settings, contracts, "discord-messages")}
    name = f"{settings.kafka_topic_prefix}discord-messages"
    group = f"{settings.kafka_topic_prefix}{GROUP}"
    consumer = Consumer({"bootstrap.servers": settings.kafka_bootstrap_servers, "group.id": group})
    consumer.commit(offsets=[TopicPartition(name, partition, 0)], asynchronous=False)
    consumer.close()
    client = AdminClient({"bootstrap.servers": settings.kafka_bootstrap_servers})
    where = TopicPartition(name, partition, 3)
    client.delete_records([where])[where].result(30)
    counter = LOST_RECORDS.labels("discord-messages", GROUP)
    before = counter._value.get()
    handled: list[str] = []

    def handler(records: Sequence[Record]) -> Sequence[Output]:
        handled.extend(record.event.message_id for record in records)
        return []

    with pipeline(settings, contracts, handler):
        wait_for(lambda: handled == ["3", "4"])
    assert counter._value.get() - before == 3


def test_selftest_passes_on_a_prepared_system_and_says_which_check_it_left_out(settings: Settings, cli: Cli) -> None:
    """Without a processor, `selftest` passes and says that it left out the check that asks a question."""
    done = cli(settings, "selftest", "--test", "all")
    assert "skipped" in done.stdout
    assert "failed" not in done.stdout


def test_selftest_fails_where_topics_are_missing(bare_settings: Settings, cli: Cli) -> None:
    """If topics are missing, `selftest` exits with 1 and prints the fix."""
    done = cli(bare_settings, "selftest", "--test", "topics", "--json", check=False)
    assert done.returncode == 1
    assert "topics init" in done.stdout


def test_dead_letters_are_listed_and_shown(settings: Settings, contracts: Contracts, cli: Cli) -> None:
    """`dlq list` lists a dead letter by its partition and offset, and `dlq show` shows its bytes."""
    produce_raw(settings, contracts, b"7", b"no avro")
    handled: list[str] = []

    def handler(records: Sequence[Record]) -> Sequence[Output]:
        handled.extend(record.event.message_id for record in records)
        return []

    produce(settings, contracts, [message(1)])
    with pipeline(settings, contracts, handler):
        wait_for(lambda: handled == ["1"])
    (dead,) = read_all(settings, contracts, "dead-letters")
    identity = f"{dead.partition}-{dead.offset}"
    assert identity in cli(settings, "dlq", "list").stdout
    assert b"no avro".hex() in cli(settings, "dlq", "show", identity, "--json").stdout
    missing = cli(settings, "dlq", "show", "9-9", check=False)
    assert missing.returncode == 2


def test_an_event_of_another_topic_is_refused(settings: Settings, contracts: Contracts) -> None:
    """An event that belongs to another topic is refused."""
    with EventProducer(settings, contracts) as producer, pytest.raises(RtfmError):
        producer.send("bot-responses", message(1))
