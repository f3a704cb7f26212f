"""Encoded bytes and decoded values, compared with those of Java's Avro, which programs in Java use."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from benchmarks.events import events
from rtfm.contracts import EVENT_OF_TOPIC, EventCodec, catalogue, reference, shapes
from rtfm.contracts.codec import FRAME_BYTES
from rtfm.contracts.tree import Node, parse
from rtfm.events import MAX_TIMESTAMP, MIN_TIMESTAMP, MessageSource, QueryOrigin, is_time
from tests import java_avro
from tests.java_avro import JavaAvro
from tests.unit.test_codec_properties import INT_EDGES, LONG_EDGES, NamesState, generated_record

FRAME = b"\x00\x00\x00\x00\x07"
IDS = ("0", "7" * 63, "7" * 64, "7" * 128, "m12", "helpdesk-7", "a@b.c:d_e")
TIMES = (MIN_TIMESTAMP, MAX_TIMESTAMP, *(edge for edge in LONG_EDGES if is_time(edge)))
TEXTS = ("", "a", "7" * 63, "7" * 64, "x" * 8191, "x" * 8192, "é", "ñ🌊" * 40, "\x00", "д" * 5000)


@pytest.fixture(scope="module")
def java() -> Iterator[JavaAvro]:
    with java_avro.running() as running:
        yield running


def in_json(node: Node, value: Any) -> Any:
    """Return a result of ``reference.to_plain`` in Avro's JSON encoding, where a union's value names its branch."""
    match node.kind:
        case "record":
            return {entry.name: in_json(entry.node, value[entry.name]) for entry in node.fields}
        case "array":
            assert node.items is not None
            return [in_json(node.items, item) for item in value]
        case "union":
            if value is None:
                return None
            branch = next(branch for branch in node.branches if branch.kind != "null")
            return {branch.name or branch.kind: in_json(branch, value)}
        case "bytes":
            return value.decode("latin-1")
        case _:
            return value


def some_value(chance: random.Random, shape: shapes.Shape, name: str = "") -> Any:
    """Return a random value of ``shape`` for the field ``name``, often at a limit of its type or of a rule."""
    match shape:
        case shapes.RecordShape(event_class=event_class, slots=slots):
            return event_class(**{slot.name: some_value(chance, slot.shape, slot.name) for slot in slots})
        case shapes.Sequence(items=items):
            many = 70 if isinstance(items, shapes.Primitive) else 2
            return [some_value(chance, items, name) for _ in range(chance.choice((0, 1, 3, many)))]
        case shapes.Nullable(value=inner):
            return None if chance.random() < 0.4 else some_value(chance, inner, name)
        case shapes.Enumeration(enum_class=enum_class):
            return chance.choice(list(enum_class))
        case shapes.Primitive(kind=kind, logical=logical):
            return some_primitive(chance, kind, logical, name)
        case _:
            return chance.choice(TEXTS)


def some_primitive(chance: random.Random, kind: str, logical: str | None, name: str) -> Any:
    """Return a value of one of Avro's primitive types, as ``some_value`` does."""
    match kind:
        case "boolean":
            return chance.random() < 0.5
        case "int":
            return chance.choice(INT_EDGES)
        case "long" if logical == "timestamp-millis":
            return chance.choice([*TIMES, chance.randrange(MIN_TIMESTAMP, MAX_TIMESTAMP)])
        case "string" if name.endswith(("_id", "_ids")):
            return chance.choice(IDS)
        case "long":
            return chance.choice([*LONG_EDGES, chance.randrange(2**62)])
        case "double":
            return chance.choice((0.0, -1.5, 1e300, 5e-324, chance.random()))
        case "bytes":
            return chance.randbytes(chance.choice((0, 1, 63, 64, 300)))
        case _:
            return chance.choice(TEXTS)


def some_event(chance: random.Random, shape: shapes.RecordShape) -> Any:
    """Return a random event as another program than the bot may write it; its ids need not be snowflakes."""
    event = some_value(chance, shape)
    others = {"source": MessageSource.OTHER, "origin": QueryOrigin.SERVICE, "observed_at": None}
    return attrs.evolve(event, **{name: value for name, value in others.items() if hasattr(event, name)})


def agree(java: JavaAvro, codec: EventCodec[Any], event: Any) -> None:
    """Check that Java and ``codec`` write the same bytes for ``event``, and read the same event from these bytes."""
    expected = in_json(parse(codec.schema), reference.to_plain(event))
    encoded = codec.encode(event, 7)
    assert java.read(encoded[FRAME_BYTES:], codec.schema, codec.schema) == expected
    written = java.write(expected, codec.schema)
    assert written == encoded[FRAME_BYTES:]
    assert codec.decode(FRAME + written) == event


@pytest.mark.parametrize("topic_name", EVENT_OF_TOPIC)
def test_events_are_the_same_in_java(java: JavaAvro, topic_name: str) -> None:
    """R25: Bytes and values of 60 events of each contract are the same in Java."""
    codec: EventCodec[Any] = EventCodec(EVENT_OF_TOPIC[topic_name], catalogue.load().topic(topic_name).schema or {})
    for event in [*events(topic_name, 30), *(some_event(random.Random(n), codec.shape) for n in range(30))]:
        agree(java, codec, event)


def test_values_of_generated_schemas_are_the_same_in_java(java: JavaAvro) -> None:
    """R25: Bytes and values of 100 generated schemas, with two random values for each schema, are the same in Java."""
    for seed in range(100):
        schema, event_class = generated_record(random.Random(seed), NamesState())
        codec: EventCodec[Any] = EventCodec(event_class, schema)
        for number in range(2):
            agree(java, codec, some_value(random.Random(1000 * seed + number), codec.shape))


@pytest.mark.parametrize("topic_name", EVENT_OF_TOPIC)
def test_records_of_another_version_read_as_java_reads_them(java: JavaAvro, topic_name: str) -> None:
    """R26: If a record has added, removed or reordered fields or unknown symbols, the codec reads it as Java does."""
    schema = catalogue.load().topic(topic_name).schema or {}
    codec: EventCodec[Any] = EventCodec(EVENT_OF_TOPIC[topic_name], schema)
    other = another_version(schema)
    for event in events(topic_name, 20):
        plain = reference.to_plain(event)
        written = {entry["name"]: plain.get(entry["name"], "new") for entry in other["fields"]}
        for name in ("change", "outcome", "origin"):
            if name in written:
                written[name] = "NEWER"
        data = java.write(in_json(parse(other), written), other)
        assert in_json(parse(schema), reference.to_plain(codec.decode(FRAME + data, other))) == java.read(
            data, other, schema
        )


def another_version(schema: Any) -> Any:
    """Return a possible later version of ``schema``.

    Fields with a default are removed or moved, a field is added, and enums have more symbols.
    """
    other = copy.deepcopy(schema)
    with_default = [entry for entry in other["fields"] if "default" in entry]
    for entry in with_default:
        other["fields"].remove(entry)
    other["fields"][:0] = [entry for place, entry in enumerate(with_default) if place % 2 or entry["name"] == "origin"]
    other["fields"].insert(0, {"name": "added", "type": "string", "default": "", "doc": "Unknown to us."})
    for entry in other["fields"]:
        if entry["name"] in ("change", "outcome", "origin"):
            entry["type"]["symbols"].append("NEWER")
    # Avro defines a type where its name occurs first. If that place was removed, the definition moves to the next use.
    return _defined(other, _named(schema), set())


def _named(schema: Any) -> dict[str, Any]:
    if isinstance(schema, list):
        return {name: found for branch in schema for name, found in _named(branch).items()}
    if not isinstance(schema, dict):
        return {}
    found = {schema["name"]: schema} if "name" in schema else {}
    inner = [entry["type"] for entry in schema.get("fields", ())] + [schema.get("items"), schema.get("type")]
    return found | {name: known for part in inner for name, known in _named(part).items()}


def _defined(schema: Any, named: dict[str, Any], seen: set[str]) -> Any:
    if isinstance(schema, list):
        return [_defined(branch, named, seen) for branch in schema]
    if isinstance(schema, str) and schema in named:
        return schema if schema in seen else _defined(copy.deepcopy(named[schema]), named, seen)
    if not isinstance(schema, dict):
        return schema
    if "name" in schema:
        seen.add(schema["name"])
    for key in ("items", "type"):
        if key in schema:
            schema[key] = _defined(schema[key], named, seen)
    for entry in schema.get("fields", ()):
        entry["type"] = _defined(entry["type"], named, seen)
    return schema
