"""The compiled codec compared with fastavro, over generated schemas, classes and values."""

from __future__ import annotations

import io
import json
import random
from enum import StrEnum
from typing import Any

import attrs
import fastavro
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtfm.contracts import reference, shapes
from rtfm.contracts.codec import FRAME_BYTES, EventCodec
from rtfm.errors import InvalidEvent, UndecodableRecord
from rtfm.events import MAX_TIMESTAMP, MIN_TIMESTAMP, TimestampMillis, is_time

VALUES_PER_SCHEMA = 25
PYTHON_TYPES: dict[str, Any] = {
    "string": str,
    "boolean": bool,
    "int": int,
    "long": int,
    "double": float,
    "bytes": bytes,
}
FIELD_NAMES = [
    *("plain_name", "things", "thing", "things_item", "thing_length", "things_parts", "thing_byte_1", "s"),
    *("event", "frame", "data", "text", "position", "length", "number", "byte", "must_check", "all_numeric"),
    *("join", "check", "LENGTH", "Misfit", "len", "list", "decode_long", "Thing1"),
]
"""Names of fields, among them names that generated code uses itself."""


@attrs.define
class NamesState:
    """A counter for the names of types, so that no two types of a schema have the same name."""

    count: int = 0

    def next(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"


def generated_type(chance: random.Random, names: NamesState, depth: int) -> tuple[Any, Any]:
    """Return an Avro type and the annotation of its field."""
    kinds = [*PYTHON_TYPES, "timestamp", "enum", "string", "string"] + ["array", "nullable", "record"] * (depth < 3)
    kind = chance.choice(kinds)
    if kind in PYTHON_TYPES:
        return kind, PYTHON_TYPES[kind]
    if kind == "timestamp":
        return {"type": "long", "logicalType": "timestamp-millis"}, TimestampMillis
    if kind == "enum":
        name = names.next("Kind")
        symbols = [f"{name}_{place}" for place in range(chance.choice([1, 2, 5, 70]))]
        enum_class = StrEnum(name, {symbol: symbol for symbol in symbols})  # type: ignore[misc]  # made at run time
        return {"type": "enum", "name": name, "symbols": symbols, "default": symbols[0]}, enum_class
    if kind == "array":
        items, hint = generated_type(chance, names, depth + 1)
        return {"type": "array", "items": items}, list.__class_getitem__(hint)
    if kind == "record":
        return generated_record(chance, names, depth + 1)
    inner, hint = generated_type(chance, names, 3)
    branches = ["null", inner] if chance.random() < 0.8 else [inner, "null"]
    return branches, hint | None


def generated_record(chance: random.Random, names: NamesState, depth: int = 0) -> tuple[Any, type[Any]]:
    """Return an Avro record and its attrs class."""
    name = names.next("Thing")
    fields, members, hints = [], {}, {}
    for field_name in chance.sample(FIELD_NAMES, chance.randrange(1, 7)):
        schema, hint = generated_type(chance, names, depth)
        fields.append({"name": field_name, "type": schema})
        members[field_name] = attrs.field()
        hints[field_name] = hint
    made = attrs.make_class(name, members, frozen=chance.random() < 0.8, slots=chance.random() < 0.8, kw_only=True)
    made.__annotations__ = hints
    return {"type": "record", "name": name, "fields": fields}, made


TEXTS = st.one_of(st.text(max_size=30), st.text("abc ", max_size=300), st.integers(0, 9 * 10**18).map(str))
INT_EDGES = [0, 1, -1, 63, 64, -64, -65, 8191, 8192, 2**27, 2**27 - 1, 2**31 - 1, -(2**31)]
LONG_EDGES = [*INT_EDGES, 2**34, 2**34 - 1, 2**41, 2**41 - 1, 2**63 - 1, -(2**63)]
INTS = st.one_of(st.sampled_from(INT_EDGES), st.integers(-(2**31), 2**31 - 1))
TIMES = st.one_of(
    st.sampled_from([edge for edge in LONG_EDGES if is_time(edge)] + [MIN_TIMESTAMP, MAX_TIMESTAMP]),
    st.integers(MIN_TIMESTAMP, MAX_TIMESTAMP),
    st.integers(10**12, 2 * 10**12),
)
LONGS = st.one_of(st.sampled_from(LONG_EDGES), st.integers(-(2**63), 2**63 - 1), st.integers(10**12, 2 * 10**12))


def values(shape: shapes.Shape) -> st.SearchStrategy[Any]:
    """Return a strategy for values that fit ``shape``."""
    match shape:
        case shapes.RecordShape(event_class=event_class, slots=slots):
            return st.builds(event_class, **{slot.name: values(slot.shape) for slot in slots})
        case shapes.Sequence(items=items):
            return st.lists(values(items), max_size=5)
        case shapes.Nullable(value=inner):
            return st.none() | values(inner)
        case shapes.Enumeration(enum_class=enum_class):
            return st.sampled_from(list(enum_class))
        case shapes.Primitive(kind="long", logical="timestamp-millis"):
            return TIMES
        case shapes.Primitive(kind=kind):
            made: dict[str, st.SearchStrategy[Any]] = {
                "string": TEXTS,
                "boolean": st.booleans(),
                "int": INTS,
                "long": LONGS,
                "double": st.floats(allow_nan=False),
                "bytes": st.binary(max_size=70),
            }
            return made[kind]
        case _:
            raise AssertionError(shape)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), data=st.data())
def test_bytes_are_fastavros_and_values_come_back(seed: int, data: st.DataObject) -> None:
    """The codec's bytes and values equal fastavro's in both directions, for 400 schemas with 25 values each."""
    schema, event_class = generated_record(random.Random(seed), NamesState())
    codec: EventCodec[Any] = EventCodec(event_class, schema)
    assert codec.encoder_source, "the compiled codec covers every generated schema"
    write = reference.encoder(schema)
    read = reference.decoder(codec.shape, schema, schema, FRAME_BYTES)
    for event in data.draw(st.lists(values(codec.shape), min_size=VALUES_PER_SCHEMA, max_size=VALUES_PER_SCHEMA)):
        encoded = codec.encode(event, 70_000)
        assert encoded == write(event, encoded[:FRAME_BYTES])
        assert codec.decode(encoded) == event == read(encoded)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), data=st.data())
def test_a_damaged_record_is_undecodable_or_an_event_and_nothing_else(seed: int, data: st.DataObject) -> None:
    """A record with random changes of its bytes is undecodable, or gives a value that fits the schema."""
    schema, event_class = generated_record(random.Random(seed), NamesState())
    codec: EventCodec[Any] = EventCodec(event_class, schema)
    encoded = codec.encode(data.draw(values(codec.shape)), 7)
    place = data.draw(st.integers(FRAME_BYTES, len(encoded)))
    damaged = encoded[:place] + data.draw(st.binary(max_size=12)) + encoded[place + data.draw(st.integers(0, 3)) :]
    try:
        event = codec.decode(damaged)
    except UndecodableRecord:
        return
    assert shapes.find_misfit(codec.shape, event, "event") is None


def without_some_fields(chance: random.Random, schema: Any) -> Any:
    """Return another version of ``schema``, with some fields removed, some added and the rest reordered."""
    changed = json.loads(json.dumps(schema))
    kept = [entry for entry in changed["fields"] if chance.random() < 0.8]
    names = NamesState(count=1000)
    added = [
        {"name": f"added{place}", "type": generated_type(chance, names, 1)[0]} for place in range(chance.randrange(3))
    ]
    changed["fields"] = [*kept, *added]
    chance.shuffle(changed["fields"])
    return changed


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), data=st.data())
def test_a_record_of_another_version_reads_as_fastavro_reads_it(seed: int, data: st.DataObject) -> None:
    """A record of another version is read as fastavro reads it.

    Fields that the reader does not know are skipped, and fields that the writer does not know get their defaults.
    """
    chance = random.Random(seed)
    schema, event_class = generated_record(chance, NamesState())
    for entry in schema["fields"]:
        if isinstance(entry["type"], list) and entry["type"][0] == "null":
            entry["default"] = None
    fields = {
        entry["name"]: attrs.field(default=None) if "default" in entry else attrs.field() for entry in schema["fields"]
    }
    made = attrs.make_class(event_class.__name__, fields, frozen=True, kw_only=True)
    made.__annotations__ = event_class.__annotations__
    codec: EventCodec[Any] = EventCodec(made, schema)
    other = without_some_fields(chance, schema)
    lacking = {entry["name"] for entry in schema["fields"] if "default" not in entry}
    known = {entry["name"] for entry in other["fields"]}
    plain: dict[str, Any] = data.draw(
        st.builds(dict, **{name: values(_plain_shape(entry)) for name, entry in _by_name(other).items()})
    )
    encoded = _write(other, plain)
    if lacking - known:
        with pytest.raises(UndecodableRecord, match="does not have this field"):
            codec.decode(encoded, other)
        return
    read = reference.decoder(codec.shape, schema, other, FRAME_BYTES)
    assert codec.decode(encoded, other) == read(encoded)


def _by_name(schema: Any) -> dict[str, Any]:
    return {entry["name"]: entry["type"] for entry in schema["fields"]}


def _plain_shape(schema: Any) -> shapes.Shape:
    """Return a shape whose values fastavro writes directly: records become dictionaries and enum members symbols."""
    if isinstance(schema, list):
        null_first = schema[0] == "null"
        return shapes.Nullable(_plain_shape(schema[1 if null_first else 0]), null_first)
    kind = schema if isinstance(schema, str) else schema["type"]
    if kind == "array":
        return shapes.Sequence(_plain_shape(schema["items"]))
    if kind == "enum":
        members = {symbol: symbol for symbol in schema["symbols"]}
        return shapes.Enumeration(StrEnum("Plain", members), tuple(members), None)  # type: ignore[arg-type]
    if kind == "record":
        slots = tuple(shapes.Slot(name, _plain_shape(entry), attrs.NOTHING) for name, entry in _by_name(schema).items())
        return shapes.RecordShape(dict, schema["name"], slots)
    return shapes.Primitive(kind, None)


def _write(schema: Any, plain: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    out.write(b"\x00\x00\x00\x00\x07")
    fastavro.schemaless_writer(out, reference.parse_for_fastavro(schema), plain)
    return out.getvalue()


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), data=st.data())
def test_a_value_that_does_not_fit_is_refused_with_its_field(seed: int, data: st.DataObject) -> None:
    """If one field has a value of another type, encoding fails with an error that names the field."""
    schema, event_class = generated_record(random.Random(seed), NamesState())
    codec: EventCodec[Any] = EventCodec(event_class, schema)
    event = data.draw(values(codec.shape))
    name = data.draw(st.sampled_from([slot.name for slot in codec.shape.slots]))
    wrong = attrs.evolve(event, **{name: object()})
    with pytest.raises(InvalidEvent, match=rf"\.{name} is object"):
        codec.encode(wrong, 7)
