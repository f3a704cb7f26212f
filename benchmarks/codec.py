"""Speed of encoding and decoding events, in memory and through Kafka.

The peers are:

- in memory: fastavro. It encodes a dictionary that already exists. It decodes into a dictionary, from which a generated
  constructor builds the event.
- through Kafka: Confluent's AvroSerializer with ``attrs.asdict``, and AvroDeserializer with the same constructor. The
  deserializer also converts timestamps to datetimes.

Every result is dropped at once, so that the garbage collector does not influence the figures. Rates in memory are per
second of CPU time of this thread, so that other load on the machine does not count. Rates through Kafka are per second
of wall-clock time.
"""

from __future__ import annotations

import gc
import io
import json
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import fastavro

from benchmarks import codec_kafka
from benchmarks.events import events
from benchmarks.report import Figure, figure, interleave, report
from rtfm.contracts import EVENT_OF_TOPIC, EventCodec, catalogue, reference

EVENTS = 2_000
ENCODE_TARGET, DECODE_TARGET, VERSION_TARGET = 2.5, 1.7, 0.5


def measure_rate(operation: Callable[[Any], object], values: Iterable[Any], count: int) -> float:
    """Return how many ``values`` the ``operation`` handles per second of CPU time. Its results are dropped."""
    start = time.thread_time()
    for value in values:
        operation(value)
    return count / (time.thread_time() - start)


def figures(topic_name: str, rounds: int) -> list[Figure]:
    """Measure encoding, decoding, and decoding from another version of the schema, for one contract."""
    schema = catalogue.load().topic(topic_name).schema
    assert schema is not None
    codec: EventCodec[Any] = EventCodec(EVENT_OF_TOPIC[topic_name], schema)
    values = events(topic_name, EVENTS)
    encode, decode = codec.encoder(7), codec.decoder()
    records = [encode(value) for value in values]
    plain = [reference.to_plain(value) for value in values]
    parsed = reference.parse_for_fastavro(schema)
    build = reference_constructor(EVENT_OF_TOPIC[topic_name], codec)
    frame = records[0][:5]

    def fastavro_encode(value: Any) -> bytes:
        out = io.BytesIO()
        out.write(frame)
        fastavro.schemaless_writer(out, parsed, value)
        return out.getvalue()

    def fastavro_decode(data: bytes) -> Any:
        source = io.BytesIO(data)
        source.seek(5)
        plain_event: Any = fastavro.schemaless_reader(source, parsed, None)
        return build(plain_event)

    assert [fastavro_encode(value) for value in plain] == records
    assert all(decode(data) == value == fastavro_decode(data) for data, value in zip(records, values, strict=True))
    older = json.loads(json.dumps(schema))
    older["fields"].append({"name": "added", "type": ["null", "string"], "default": None, "doc": "Unknown to readers."})
    decode_other_version = codec.decoder(older)
    other_records = [data + b"\x02\x08text" for data in records]
    assert decode_other_version(other_records[0]) == values[0]
    gc.collect()
    gc.freeze()
    samples = interleave(
        {
            "encode": lambda: measure_rate(encode, values, EVENTS),
            "fastavro encode": lambda: measure_rate(fastavro_encode, plain, EVENTS),
            "decode": lambda: measure_rate(decode, records, EVENTS),
            "fastavro decode": lambda: measure_rate(fastavro_decode, records, EVENTS),
            "decode other version": lambda: measure_rate(decode_other_version, other_records, EVENTS),
        },
        rounds=rounds,
    )
    return [
        figure(
            f"{topic_name}: encode against fastavro from a dictionary",
            samples["encode"],
            samples["fastavro encode"],
            ENCODE_TARGET,
            unit="/s",
        ),
        figure(
            f"{topic_name}: decode against fastavro and a generated constructor",
            samples["decode"],
            samples["fastavro decode"],
            DECODE_TARGET,
            unit="/s",
        ),
        figure(
            f"{topic_name}: decode of another version against the direct path",
            samples["decode other version"],
            samples["decode"],
            VERSION_TARGET,
            unit="/s",
        ),
    ]


def reference_constructor(event_class: type[Any], codec: EventCodec[Any]) -> Callable[[dict[str, Any]], Any]:
    """Generate the peer's constructor. It builds an event with its nested values from fastavro's dictionary."""
    from rtfm.contracts import shapes

    names: dict[str, Any] = {}

    def expression(shape: shapes.Shape, value: str) -> str:
        match shape:
            case shapes.RecordShape(event_class=known, slots=slots):
                names[known.__name__] = known
                parts = (f"{slot.name}={expression(slot.shape, f'{value}[{slot.name!r}]')}" for slot in slots)
                return f"{known.__name__}({', '.join(parts)})"
            case shapes.Enumeration(enum_class=enum_class, symbols=symbols):
                table = f"OF_{enum_class.__name__}"
                names[table] = {symbol: enum_class(symbol) for symbol in symbols}
                return f"{table}[{value}]"
            case shapes.Sequence(items=items) if isinstance(items, shapes.RecordShape):
                return f"[{expression(items, 'item')} for item in {value}]"
            case _:
                return value

    assert codec.shape.event_class is event_class
    build: Callable[[dict[str, Any]], Any] = eval(f"lambda d: {expression(codec.shape, 'd')}", names)  # noqa: S307 - generated above
    return build


def main() -> int:
    """Print the figures. Return 1 if a target was missed."""
    results = [entry for topic_name in EVENT_OF_TOPIC for entry in figures(topic_name, rounds=7)]
    with codec_kafka.kafka() as address:
        for topic_name, event_class in EVENT_OF_TOPIC.items():
            results += codec_kafka.figures(address, topic_name, partial(reference_constructor, event_class), rounds=5)
    return 0 if report(results) else 1


if __name__ == "__main__":
    sys.exit(main())
