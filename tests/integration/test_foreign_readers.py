"""What other programs find in the topics: kcat, the bytes on the wire, and what retention makes of old messages."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import time
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # not in its __all__

from rtfm.contracts import open_contracts
from rtfm.settings import Settings
from tests.streams import MESSAGES, eventually, produce, produce_raw, records, said

IN_2004_MS = 1_100_000_000_000
ZSTD = 4  # https://kafka.apache.org/documentation/#recordbatch, the lowest three bits of a batch's attributes


@pytest.mark.debian
def test_kcat_reads_what_was_produced(settings: Settings) -> None:
    """A client of another make, with the schema id where Confluent's tools look for it."""
    contracts = open_contracts(settings)
    produce(settings, contracts, MESSAGES, said(7, channel="42", content="straße"))
    topic = f"{settings.kafka_topic_prefix}{MESSAGES}"
    command = ["kcat", "-C", "-b", settings.kafka_bootstrap_servers, "-t", topic, "-e", "-q", "-f", "%k %S %h %s"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    key, size, headers, value = done.stdout.split(b" ", 3)
    assert key == b"42"
    assert int(size) == len(value)
    assert b"content-type=application/vnd.confluent.avro" in headers
    assert contracts.decode(MESSAGES, value) == said(7, channel="42", content="straße")


@pytest.mark.debian
def test_kcat_sees_the_topics_as_the_catalogue_has_them(settings: Settings) -> None:
    """Partitions are the catalogue's."""
    command = ["kcat", "-L", "-J", "-b", settings.kafka_bootstrap_servers]
    listing = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    found = {topic["topic"]: len(topic["partitions"]) for topic in listing["topics"]}
    catalogue = open_contracts(settings).catalogue
    for topic in catalogue.topics.values():
        assert found[f"{settings.kafka_topic_prefix}{topic.name}"] == topic.partitions


def test_batches_are_zstd_on_the_wire(settings: Settings) -> None:
    """Asked of the broker in Kafka's own protocol, since clients hide it."""
    contracts = open_contracts(settings)
    produce(settings, contracts, MESSAGES, *(said(n, content="the same again " * 20) for n in range(50)))
    partition = records(settings, contracts, MESSAGES)[0].partition
    batch = _fetch(settings.kafka_bootstrap_servers, f"{settings.kafka_topic_prefix}{MESSAGES}", partition)
    (attributes,) = struct.unpack_from(">h", batch, 8 + 4 + 4 + 1 + 4)
    assert attributes & 0b111 == ZSTD
    assert len(batch) < 50 * 300


def _fetch(address: str, topic: str, partition: int) -> bytes:
    """The record batches of a partition from its start, as they are stored (Fetch, version 10)."""
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
    # correlation, throttle, error, session, topics=1, name, partitions=1, then the partition's own head
    at = 4 + 4 + 2 + 4 + 4 + 2 + len(name) + 4
    _, error, _, _, _, aborted = struct.unpack_from(">ihqqqi", answer, at)
    assert error == 0
    at += struct.calcsize(">ihqqqi") + max(aborted, 0) * 16
    (length,) = struct.unpack_from(">i", answer, at)
    return answer[at + 4 : at + 4 + length]


def test_a_record_from_2004_survives_a_retention_pass_that_removes_others_of_that_date(settings: Settings) -> None:
    """An import of old messages must not expire at once, not even from a producer that dates its records."""
    contracts = open_contracts(settings)
    dated = f"{settings.kafka_topic_prefix}dated"
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap_servers})
    config = {"retention.ms": str(168 * 3_600_000), "message.timestamp.type": "CreateTime"}
    admin.create_topics([NewTopic(dated, 1, 1, config=config)])[dated].result(20)
    consumer: Any = Consumer({"bootstrap.servers": settings.kafka_bootstrap_servers, "group.id": dated})
    try:
        produce_raw(settings, MESSAGES, contracts.encode(MESSAGES, said(1)), timestamp_ms=IN_2004_MS)
        produce_raw(settings, "dated", b"x", timestamp_ms=IN_2004_MS)
        # The broker looks for expired segments every 5 s in the stacks of the tests: when the other record is gone,
        # it has looked at ours as well, or does so in the same pass.
        eventually(lambda: consumer.get_watermark_offsets(TopicPartition(dated, 0))[0] == 1, timeout_s=90)
        time.sleep(1)
        (kept,) = records(settings, contracts, MESSAGES)
    finally:
        consumer.close()
        admin.delete_topics([dated])[dated].result(20)
    assert kept.event == said(1)
    assert abs(kept.timestamp_ms - time.time() * 1000) < 600_000
