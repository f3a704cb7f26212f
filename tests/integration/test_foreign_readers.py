"""Other programs on the topics: kcat, kafkajs and Java, the compression on the wire, and retention."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # not in its __all__

from rtfm.contracts import open_contracts
from rtfm.settings import Settings
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.transactions import ProducerRecord, Transactions
from tests import java_kafka
from tests.conftest import inherited_environment
from tests.integration.conftest import NODE
from tests.integration.test_processor import processor
from tests.streams import MESSAGES, build_message, eventually, produce, produce_raw, records

IN_2004_MS = 1_100_000_000_000
# https://kafka.apache.org/documentation/#recordbatch: the lowest three bits of a batch's attributes name its codec.
CODECS = {
    "none": 0,
    "gzip": 1,
    "snappy": 2,
    "lz4": 3,
    "zstd": 4,
}


@pytest.mark.debian
def test_kcat_reads_what_was_produced(settings: Settings) -> None:
    """Kcat reads the key, a header and the value of a record that this project produced."""
    contracts = open_contracts(settings)
    produce(settings, contracts, MESSAGES, build_message(7, channel="42", content="straße"))
    topic = f"{settings.kafka_topic_prefix}{MESSAGES}"
    command = ["kcat", "-C", "-b", settings.kafka_bootstrap_servers, "-t", topic, "-e", "-q", "-f", "%k %S %h %s"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    key, size, headers, value = done.stdout.split(b" ", 3)
    assert key == b"42"
    assert int(size) == len(value)
    assert b"content-type=application/vnd.confluent.avro" in headers
    assert contracts.decode(MESSAGES, value) == build_message(7, channel="42", content="straße")


@pytest.mark.debian
def test_kcat_sees_the_topics_as_the_catalogue_has_them(settings: Settings) -> None:
    """Kcat reports the partitions that the catalogue defines."""
    command = ["kcat", "-L", "-J", "-b", settings.kafka_bootstrap_servers]
    listing = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    found = {topic["topic"]: len(topic["partitions"]) for topic in listing["topics"]}
    catalogue = open_contracts(settings).catalogue
    for topic in catalogue.topics.values():
        assert found[f"{settings.kafka_topic_prefix}{topic.name}"] == topic.partitions


@pytest.mark.parametrize("codec", CODECS)
def test_batches_are_compressed_on_the_wire_as_the_setting_says(settings: Settings, codec: str) -> None:
    """Batches are compressed with the configured codec, by default zstd.

    The test reads the batches in Kafka's protocol, because clients do not show how a batch was compressed.
    """
    assert settings.kafka_compression == "zstd"
    settings = evolve(settings, kafka_compression=codec)
    contracts = open_contracts(settings)
    produce(settings, contracts, MESSAGES, *(build_message(n, content="the same again " * 20) for n in range(50)))
    partition = records(settings, contracts, MESSAGES)[0].partition
    batch = _fetch(settings.kafka_bootstrap_servers, f"{settings.kafka_topic_prefix}{MESSAGES}", partition)
    (attributes,) = struct.unpack_from(">h", batch, 8 + 4 + 4 + 1 + 4)
    assert attributes & 0b111 == CODECS[codec]
    assert codec == "none" or len(batch) < 50 * 300


def test_transactions_are_compressed_as_the_setting_says(settings: Settings) -> None:
    """The transactional producer of answers and dead letters compresses with the configured codec too."""
    contracts, settings = open_contracts(settings), evolve(settings, kafka_compression="gzip")
    transactions = Transactions(KafkaConfig.of(settings), "foreign")
    transactions.open()
    transactions.commit(
        [ProducerRecord(MESSAGES, b"42", contracts.encode(MESSAGES, build_message(7, content="so " * 500)), [])]
    )
    transactions.close()
    (record,) = records(settings, contracts, MESSAGES)
    batch = _fetch(settings.kafka_bootstrap_servers, f"{settings.kafka_topic_prefix}{MESSAGES}", record.partition)
    (attributes,) = struct.unpack_from(">h", batch, 8 + 4 + 4 + 1 + 4)
    assert attributes & 0b111 == CODECS["gzip"]


# Clients in other languages

KEYS = [str(1_286_754_213_907_726_336 + 7919 * number) for number in range(40)]


def partitions_by_key(settings: Settings) -> dict[str, int]:
    """Return key → partition of records from this project's two kinds of producers."""
    contracts = open_contracts(settings)
    produce(
        settings, contracts, MESSAGES, *(build_message(number, channel=key) for number, key in enumerate(KEYS[::2]))
    )
    transactions = Transactions(KafkaConfig.of(settings), "foreign")
    transactions.open()
    value = contracts.encode(MESSAGES, build_message(7))
    transactions.commit([ProducerRecord(MESSAGES, key.encode(), value, []) for key in KEYS[1::2]])
    transactions.close()
    found = {(record.key or b"").decode(): record.partition for record in records(settings, contracts, MESSAGES)}
    assert set(found) == set(KEYS)
    assert len(set(found.values())) == 3
    return found


def arguments_for(settings: Settings, **more: Any) -> dict[str, Any]:
    """Return the arguments that a program in another language needs."""
    addresses = {"broker": settings.kafka_bootstrap_servers, "registry": settings.schema_registry_url}
    return addresses | {"prefix": settings.kafka_topic_prefix} | more


def plain_query(query_id: str) -> dict[str, Any]:
    """Return a question that finds nothing; fields with a default are left out."""
    now_ms = int(time.time() * 1000)
    return {
        "query_id": query_id,
        "channel_id": "0",
        "asker_id": "0",
        "question": "how do I mount an ntfs disk?",
        "asked_at": now_ms,
        "expires_at": now_ms + 600_000,
        "audience": "ASKER",
        "visible_channel_ids": [],
        "context": [],
        "attachments": [],
        "origin": "CONSOLE",
    }


@pytest.fixture(scope="session")
def node(node_modules: Callable[[], Path]) -> Callable[..., Any]:
    """Return a function that runs tests/node/client.js with the packages of its lock file."""
    packages = node_modules()

    def run(command: str, **told: Any) -> Any:
        environment = inherited_environment() | {
            "NODE_PATH": str(packages),
            "KAFKAJS_NO_PARTITIONER_WARNING": "1",
        }
        program = ["node", str(NODE / "client.js"), command, json.dumps(told)]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return run


@pytest.mark.debian
def test_kafkajs_writes_a_key_to_the_partition_that_we_do(settings: Settings, node: Callable[..., Any]) -> None:
    """Kafkajs chooses the same partition for a key as this project.

    Otherwise one program's DELETED could overtake another program's CREATED.
    """
    ours = partitions_by_key(settings)
    assert node("produce", **arguments_for(settings, topic=MESSAGES, keys=KEYS)) == ours


def test_java_writes_a_key_to_our_partition(settings: Settings) -> None:
    """Java's default partitioner, which Kafka Streams and Connect use, chooses the partitions of this project."""
    ours = partitions_by_key(settings)
    assert java_kafka.run("produce", **arguments_for(settings, topic=MESSAGES, keys=KEYS)) == ours


def test_records_without_a_key_go_to_any_partition(settings: Settings) -> None:
    """Records without a key are spread over the partitions, because a hash would put all of them in one partition."""
    found = set()
    for _ in range(30):  # a producer keeps records that are sent at the same moment in one partition
        produce_raw(settings, MESSAGES, b"x", key=None)
        found = {record.partition for record in records(settings, open_contracts(settings), MESSAGES)}
        if len(found) > 1:
            break
    assert len(found) > 1


@pytest.mark.debian
def test_kafkajs_reads_what_we_produce(settings: Settings, node: Callable[..., Any]) -> None:
    """Kafkajs reads this project's records; a program must add a zstd codec to kafkajs, in three lines."""
    contracts = open_contracts(settings)
    produce(
        settings,
        contracts,
        MESSAGES,
        *(build_message(number, content=f"straße {number} " * 20) for number in range(20)),
    )
    found = node("read", **arguments_for(settings, topic=MESSAGES, count=20))
    assert [record["value"]["content"] for record in found] == [f"straße {number} " * 20 for number in range(20)]
    assert {record["key"] for record in found} == {"200"}


def test_java_reads_what_we_produce(settings: Settings) -> None:
    """Java's client reads this project's records; the test parses the frame by hand."""
    contracts = open_contracts(settings)
    produce(
        settings,
        contracts,
        MESSAGES,
        *(build_message(number, content=f"straße {number} " * 20) for number in range(20)),
    )
    found = java_kafka.run("read", **arguments_for(settings, topic=MESSAGES, count=20))
    assert [record["value"]["content"] for record in found] == [f"straße {number} " * 20 for number in range(20)]


@pytest.mark.debian
def test_kafkajs_asks_and_is_answered(settings: Settings, node: Callable[..., Any]) -> None:
    """Kafkajs sends a query with the registered schema version, and reads the response."""
    with processor(settings, "--only", "answer"):
        found = node("ask", **arguments_for(settings, query=plain_query("cnode-1")))
    assert (found["key"], found["value"]["outcome"]) == ("cnode-1", "NOT_FOUND")


def test_java_asks_and_is_answered(settings: Settings) -> None:
    """Java sends a query with the registered schema version, and reads the response."""
    with processor(settings, "--only", "answer"):
        found = java_kafka.run("ask", **arguments_for(settings, query=plain_query("cjava-1")))
    assert (found["key"], found["value"]["outcome"]) == ("cjava-1", "NOT_FOUND")


def _fetch(address: str, topic: str, partition: int) -> bytes:
    """Return the stored record batches of a partition from its start, by a Fetch request of version 10."""
    host, _, port = address.rpartition(":")
    name = topic.encode()
    body = struct.pack(">iiiibii", -1, 1000, 1, 10_000_000, 0, 0, -1) + struct.pack(">i", 1)
    body += struct.pack(">h", len(name)) + name + struct.pack(">i", 1)
    body += struct.pack(">iiqqi", partition, -1, 0, -1, 10_000_000) + struct.pack(">i", 0)
    request = struct.pack(">hhih", 1, 10, 1, 4) + b"test" + body
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        stream = connection.makefile("rb")
        (size,) = struct.unpack(">i", stream.read(4))
        answer = stream.read(size)
    # The response has correlation id, throttle time, error, session id, one topic with its name, and one partition.
    at = 4 + 4 + 2 + 4 + 4 + 2 + len(name) + 4
    _, error, _, _, _, aborted = struct.unpack_from(">ihqqqi", answer, at)
    assert error == 0
    at += struct.calcsize(">ihqqqi") + max(aborted, 0) * 16
    (length,) = struct.unpack_from(">i", answer, at)
    return answer[at + 4 : at + 4 + length]


def test_a_record_from_2004_survives_a_retention_pass_that_removes_others_of_that_date(settings: Settings) -> None:
    """Retention does not remove a record that was just imported with a date of 2004.

    The project's topics ignore the producer's timestamp. In a topic that uses this timestamp, retention removes the
    record.
    """
    contracts = open_contracts(settings)
    dated = f"{settings.kafka_topic_prefix}dated"
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap_servers})
    config = {"retention.ms": str(168 * 3_600_000), "message.timestamp.type": "CreateTime"}
    admin.create_topics([NewTopic(dated, 1, 1, config=config)])[dated].result(20)
    consumer: Any = Consumer({"bootstrap.servers": settings.kafka_bootstrap_servers, "group.id": dated})
    try:
        produce_raw(settings, MESSAGES, contracts.encode(MESSAGES, build_message(1)), timestamp_ms=IN_2004_MS)
        produce_raw(settings, "dated", b"x", timestamp_ms=IN_2004_MS)
        # The tests' brokers look for expired segments every 5 s. When the record in the other topic is gone,
        # the broker has looked at discord-messages as well, or does so in the same pass.
        eventually(lambda: consumer.get_watermark_offsets(TopicPartition(dated, 0))[0] == 1, timeout_s=90)
        time.sleep(1)
        (kept,) = records(settings, contracts, MESSAGES)
    finally:
        consumer.close()
        admin.delete_topics([dated])[dated].result(20)
    assert kept.event == build_message(1)
    assert abs(kept.timestamp_ms - time.time() * 1000) < 600_000
