"""Prints what is said, with the frame taken apart by hand, as kafka-python and aiokafka need it."""

import functools
import io
import json
import os
import struct

import fastavro
import httpx
from confluent_kafka import Consumer, KafkaException

prefix = os.environ.get("KAFKA_TOPIC_PREFIX", "")


@functools.cache
def schema_of(schema_id):
    """The schema that was registered under ``schema_id``, asked for once."""
    answer = httpx.get(f"{os.environ['SCHEMA_REGISTRY_URL']}/schemas/ids/{schema_id}", timeout=5)
    return fastavro.parse_schema(json.loads(answer.raise_for_status().json()["schema"]))


consumer = Consumer(
    {
        "bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"],
        "group.id": f"{prefix}my-service",
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
    }
)
consumer.subscribe([f"{prefix}discord-messages"])
while True:
    record = consumer.poll(1.0)
    if record is None:
        continue
    if record.error():
        raise KafkaException(record.error())
    magic, schema_id = struct.unpack(">bI", record.value()[:5])
    if magic != 0:
        print("skipped", record.partition(), record.offset(), flush=True)
        continue
    message = fastavro.schemaless_reader(io.BytesIO(record.value()[5:]), schema_of(schema_id))
    if message["change"] == "DELETED":
        print("deleted", message["message_id"], flush=True)
    else:
        print(message["author_name"], "said", message["content"], flush=True)
