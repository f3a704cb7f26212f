"""Speed of producing and consuming events, against Confluent's serializers with the same clients.

This is a part of ``benchmarks.codec``. It uses the Kafka of the settings if that Kafka responds. Otherwise it starts
the local stack for the time of the run. It creates topics of its own and removes them.
"""

from __future__ import annotations

import gc
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # not in its __all__
from confluent_kafka.schema_registry import SchemaRegistryClient, topic_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from benchmarks.events import events
from benchmarks.report import Figure, figure, interleave
from rtfm import settings
from rtfm.contracts import EVENT_OF_TOPIC, EventCodec, catalogue
from rtfm.local.stack import LocalStack

EVENTS = 5_000
PASSES = 3
"""For one sample, the events are sent this many times."""

TO_KAFKA_TARGET, OF_RAW_TARGET, FROM_KAFKA_TARGET = 2.2, 0.7, 4.5
CACHE_DIR = Path(".rtfm/cache")


@contextmanager
def kafka() -> Iterator[str]:
    """Yield the address of a Kafka that responds."""
    address = settings.load().kafka_bootstrap_servers
    try:
        AdminClient({"bootstrap.servers": address, "log_level": 0}).list_topics(timeout=3)
    except KafkaException:
        home = Path(tempfile.mkdtemp(prefix="rtfm-bench-"))
        local = LocalStack(home, cache_dir=CACHE_DIR)
        try:
            yield next(service.address for service in local.up() if service.name == "kafka")
        finally:
            local.down()
            shutil.rmtree(home, ignore_errors=True)
    else:
        yield address


def figures(
    address: str, topic_name: str, build: Callable[[EventCodec[Any]], Callable[[dict[str, Any]], Any]], rounds: int
) -> list[Figure]:
    """Measure producing against Confluent's serializer and against bytes that are already encoded, and consuming."""
    schema = catalogue.load().topic(topic_name).schema
    assert schema is not None
    codec: EventCodec[Any] = EventCodec(EVENT_OF_TOPIC[topic_name], schema)
    values = events(topic_name, EVENTS)
    topic = f"bench-{secrets.token_hex(4)}-{topic_name}"
    registry = SchemaRegistryClient.new_client({"url": f"mock://{topic}"})
    strategy = {"subject.name.strategy": topic_subject_name_strategy}
    serialize = AvroSerializer(registry, json.dumps(schema), lambda event, _: attrs.asdict(event), conf=strategy)
    context = SerializationContext(topic, MessageField.VALUE)
    first = serialize(values[0], context)
    assert first is not None
    encode = codec.encoder(int.from_bytes(first[1:5], "big"))
    make = build(codec)
    deserialize = AvroDeserializer(registry, None, lambda plain, _: make(plain), conf=strategy)
    decode = codec.decoder()
    encoded = [encode(value) for value in values]
    assert [serialize(value, context) for value in values] == encoded
    admin = AdminClient({"bootstrap.servers": address})
    for future in admin.create_topics([NewTopic(topic, 1, 1), NewTopic(f"{topic}-warm-up", 1, 1)]).values():
        future.result(30)
    gc.collect()
    gc.freeze()
    encoded_values: Iterator[bytes] = iter(())

    def next_encoded(_: Any) -> bytes:
        nonlocal encoded_values
        try:
            return next(encoded_values)
        except StopIteration:
            encoded_values = iter(encoded)
            return next(encoded_values)

    to_kafka = interleave(
        {
            "ours": lambda: _produce(address, topic, values, encode),
            "confluent": lambda: _produce(address, topic, values, lambda value: serialize(value, context)),
            "raw": lambda: _produce(address, topic, values, next_encoded),
        },
        rounds=rounds,
    )
    from_kafka = interleave(
        {
            "ours": lambda: _consume(address, topic, decode),
            "confluent": lambda: _consume(address, topic, lambda data: deserialize(data, context)),
        },
        rounds=rounds,
    )
    for future in admin.delete_topics([topic, f"{topic}-warm-up"]).values():
        future.result(30)
    return [
        figure(
            f"{topic_name}: to Kafka against AvroSerializer(asdict)",
            to_kafka["ours"],
            to_kafka["confluent"],
            TO_KAFKA_TARGET,
            unit="/s",
        ),
        figure(
            f"{topic_name}: to Kafka against encoded bytes",
            to_kafka["ours"],
            to_kafka["raw"],
            OF_RAW_TARGET,
            unit="/s",
        ),
        figure(
            f"{topic_name}: from Kafka against AvroDeserializer",
            from_kafka["ours"],
            from_kafka["confluent"],
            FROM_KAFKA_TARGET,
            unit="/s",
        ),
    ]


def _produce(address: str, topic: str, values: list[Any], encode: Callable[[Any], Any]) -> float:
    """Return events per second from the first ``produce`` to the last acknowledgement."""
    producer = Producer(
        {
            "bootstrap.servers": address,
            "enable.idempotence": True,
            "compression.type": "zstd",
            "linger.ms": 10,
            "queue.buffering.max.messages": EVENTS * PASSES + 1,
            "queue.buffering.max.kbytes": 1_048_576,
        }
    )
    failed = 0

    def report(error: Any, _: Any) -> None:
        nonlocal failed
        failed += error is not None

    producer.produce(f"{topic}-warm-up", b"", b"key", on_delivery=report)
    assert producer.flush(30) == 0  # connects
    start = time.perf_counter()
    for _ in range(PASSES):
        for number, value in enumerate(values):
            producer.produce(topic, encode(value), b"key", on_delivery=report)
            if number % 500 == 0:
                producer.poll(0)
    left = producer.flush(60)
    elapsed_s = time.perf_counter() - start
    assert not failed
    assert not left
    return len(values) * PASSES / elapsed_s


def _consume(address: str, topic: str, decode: Callable[[bytes], Any]) -> float:
    """Return events per second from the first batch to the last event. Each event is dropped at once."""
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "bench",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    expected = EVENTS * PASSES
    batch = consumer.consume(500, 10.0)  # connects
    done = 0
    start = time.perf_counter()
    while batch:
        for message in batch:
            if message.error() is None:
                decode(message.value() or b"")
        done += len(batch)
        batch = consumer.consume(500, 10.0) if done < expected else []
    elapsed_s = time.perf_counter() - start
    consumer.close()
    return done / elapsed_s
