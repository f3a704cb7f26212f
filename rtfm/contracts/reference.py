"""A codec that uses fastavro. It is slower than the compiled codec, but supports every Avro type.

It is used for types that the compiled codec does not support. Tests and benchmarks compare the two codecs. Like the
compiled codec, the codec in this module treats timestamps as plain numbers.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from enum import Enum
from typing import IO, Any, cast

import attrs
import fastavro

from rtfm.contracts import shapes
from rtfm.contracts.catalogue import Schema
from rtfm.contracts.tree import Node, is_size, parse, takes_no_bytes

Plain = dict[str, Any]


def parse_for_fastavro(schema: Schema) -> Any:
    """Parse ``schema`` for fastavro, with timestamps as plain numbers."""
    return fastavro.parse_schema(json.loads(json.dumps(schema), object_hook=_remove_logical_type))


def encoder(schema: Schema) -> Callable[[Any, bytes], bytes]:
    """Return a function that encodes an event.

    The function takes the event and the frame, and raises fastavro's errors.
    """
    own = parse_for_fastavro(schema)

    def encode(event: Any, frame: bytes) -> bytes:
        out = io.BytesIO()
        out.write(frame)
        fastavro.schemaless_writer(out, own, to_plain(event), strict=True)
        return out.getvalue()

    return encode


def decoder(shape: shapes.RecordShape, schema: Schema, writer_schema: Schema, skip: int) -> Callable[[bytes], Any]:
    """Return a function that decodes an event from bytes whose first ``skip`` bytes are the frame.

    The function raises fastavro's errors, and EOFError if the record does not end exactly at the last byte.
    """
    writer, own = parse_for_fastavro(writer_schema), parse_for_fastavro(schema)
    same = writer_schema == schema

    def decode(data: bytes) -> Any:
        source = _BoundedReader(data, skip)
        event = build_event(shape, fastavro.schemaless_reader(cast("IO[bytes]", source), writer, None if same else own))
        if source.position != len(data):
            raise EOFError(f"{len(data) - source.position} bytes follow the record")
        return event

    return decode


def find_hazard(schema: Schema) -> str | None:
    """Describe the first danger in a writer's schema; None if there is no danger.

    A schema is dangerous if a record of a few bytes can make fastavro use unlimited time, memory or stack. Raises
    RecursionError for a schema that is nested too deeply.
    """
    return _find_hazard(parse(schema), (), {}, set())


def _find_hazard(node: Node, inside: tuple[Node, ...], no_bytes: dict[int, bool], seen: set[int]) -> str | None:
    if node in inside:
        return f"{node.name} contains itself"
    if id(node) in seen:
        return None
    parts = [entry.node for entry in node.fields] + list(node.branches) + ([node.items] if node.items else [])
    for part in parts:
        if found := _find_hazard(part, (*inside, node), no_bytes, seen):
            return found
    seen.add(id(node))
    if node.kind == "fixed" and not is_size(node.size):
        return f"{node.name} has the invalid size {node.size!r}"
    # At this point, the items do not contain themselves: if they did, the loop above would have returned.
    if node.kind == "array" and node.items is not None and takes_no_bytes(node.items, no_bytes):
        return "the items of an array take no bytes"
    if node.kind == "record" and any(part.kind == "record" and takes_no_bytes(part, no_bytes) for part in parts):
        return "a record in a record takes no bytes"
    return None


def to_plain(event: Any) -> Any:
    """Return ``event`` with its records as dictionaries and its enums as their symbols."""
    return attrs.asdict(event, value_serializer=lambda _, __, value: value.value if isinstance(value, Enum) else value)


def build_event(shape: shapes.Shape, value: Any) -> Any:
    """Build an event from ``value``, which has the form that ``to_plain`` returns."""
    match shape:
        case shapes.RecordShape(event_class=event_class, slots=slots):
            return event_class(**{slot.name: build_event(slot.shape, value[slot.name]) for slot in slots})
        case shapes.Sequence(items=items):
            return [build_event(items, item) for item in value]
        case shapes.Nullable(value=inner):
            return None if value is None else build_event(inner, value)
        case shapes.Enumeration(enum_class=enum_class):
            return enum_class(value)
        case _:
            return value


class _BoundedReader:
    """A file in memory. If a read has a negative size or goes past the end, the file raises EOFError.

    For such a read, an ordinary file would return the bytes that are left, and fastavro would accept them.
    """

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self.position = position

    def read(self, size: int) -> bytes:
        end = self.position + size
        if size < 0 or end > len(self._data):
            raise EOFError("the record ends too early, or contains an invalid length")
        start, self.position = self.position, end
        return self._data[start:end]


def _remove_logical_type(node: dict[str, Any]) -> dict[str, Any]:
    node.pop("logicalType", None)
    return node
