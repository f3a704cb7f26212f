"""Prints what is said, with Confluent's own client and nothing of RTFM."""

import os

from confluent_kafka import Consumer, KafkaException
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

prefix = os.environ.get("KAFKA_TOPIC_PREFIX", "")
topic = f"{prefix}discord-messages"
registry = SchemaRegistryClient({"url": os.environ["SCHEMA_REGISTRY_URL"], "timeout": 5})
deserialize = AvroDeserializer(registry)
consumer = Consumer(
    {
        "bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"],
        "group.id": f"{prefix}my-service",
        "auto.offset.reset": "earliest",
    }
)
consumer.subscribe([topic])
while True:
    record = consumer.poll(1.0)
    if record is None:
        continue
    if record.error():
        raise KafkaException(record.error())
    message = deserialize(record.value(), SerializationContext(topic, MessageField.VALUE))
    if message["change"] == "DELETED":
        print("deleted", message["message_id"], flush=True)
    else:
        print(message["author_name"], "said", message["content"], flush=True)
