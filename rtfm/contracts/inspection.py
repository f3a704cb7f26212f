"""Diagnosis of a record's bytes, for people. Pure.

``inspect`` decodes the fields of a record with the writer's schema, up to the first fault, and says where the fault is
and what is wrong. It is slower than the codec. If ``inspect`` reports a fault in a record, the codec refuses the record
too.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from attrs import define, frozen

from rtfm.contracts.catalogue import Schema
from rtfm.contracts.codec import FRAME_BYTES, schema_id_of
from rtfm.contracts.compiled import varints
from rtfm.contracts.tree import Node, parse
from rtfm.errors import UndecodableRecord

_DECODING_ERRORS = (IndexError, struct.error, UnicodeDecodeError, varints.Misfit, RecursionError)


@frozen
class DecodingFault:
    """The place at which a record cannot be decoded.

    ``position`` is the index of the byte at this place; the first byte of the frame has the index 0. ``path`` is the
    field, and ``reason`` says what is wrong.
    """

    position: int
    path: str
    reason: str


@frozen
class Inspection:
    """The result of decoding a record.

    ``fields`` are the decoded fields in their order, as JSON values. ``fault`` is the first fault, or None.
    """

    fields: dict[str, Any]
    fault: DecodingFault | None


@define
class _ReadState:
    data: bytes
    position: int
    path: str = ""
    start: int = 0
    """The position of the first byte of the value that is being read."""


Put = Callable[[Any], object]


def frame_fault(data: bytes) -> DecodingFault | None:
    """Return the fault in the frame, which is the five bytes before the Avro value; None if the frame is valid."""
    try:
        schema_id_of(data)
    except UndecodableRecord as exc:
        return DecodingFault(0 if len(data) >= FRAME_BYTES else len(data), "the frame", str(exc))
    return None


def inspect(data: bytes, schema: Schema) -> Inspection:
    """Decode the fields of the framed record ``data``, which was written with ``schema``."""
    if (fault := frame_fault(data)) is not None:
        return Inspection({}, fault)
    state, found = _ReadState(data, FRAME_BYTES), dict[str, Any]()
    node = parse(schema)
    try:
        _read(state, node, node.short_name or node.kind, partial(found.__setitem__, "value"))
    except _DECODING_ERRORS as exc:
        fault = DecodingFault(_find_position(state, exc), state.path, varints.describe_error(exc))
    else:
        fault = None
        if (left := len(data) - state.position) > 0:
            fault = DecodingFault(state.position, "the end", f"{left} more bytes follow the record")
    value = found.get("value", {})
    return Inspection(value if isinstance(value, dict) else {"value": value}, fault)


def _read(state: _ReadState, node: Node, path: str, put: Put) -> None:
    """Read a value of the type ``node`` and pass it to ``put``.

    A record, array or map is passed to ``put`` before its parts are read. If a part cannot be read, the earlier parts
    are kept.
    """
    state.path, state.start = path, state.position
    match node.kind:
        case "record":
            record: dict[str, Any] = {}
            put(record)
            for entry in node.fields:
                _read(state, entry.node, f"{path}.{entry.name}", partial(record.__setitem__, entry.name))
        case "array" | "map":
            _read_blocks(state, node, path, put)
        case "union":
            index = _read_long(state)
            if not 0 <= index < len(node.branches):
                raise varints.Misfit(f"the union has {len(node.branches)} branches, and {index} is not one of them")
            _read(state, node.branches[index], path, put)
        case _:
            put(_read_plain(state, node))


def _read_blocks(state: _ReadState, node: Node, path: str, put: Put) -> None:
    assert node.items is not None  # noqa: S101 - arrays and maps have items
    items: list[Any] = []
    entries: dict[str, Any] = {}
    put(items if node.kind == "array" else entries)
    while True:
        state.path, state.start = path, state.position
        if state.data[state.position] == 0:
            state.position += 1
            return
        count, _, state.position = varints.decode_count(state.data, state.position)
        for _ in range(count):
            where = f"{path}[{len(items) + len(entries)}]"
            if node.kind == "array":
                _read(state, node.items, where, items.append)
            else:
                _read(state, node.items, where, partial(entries.__setitem__, _read_content(state).decode()))


def _read_plain(state: _ReadState, node: Node) -> Any:
    match node.kind:
        case "null":
            return None
        case "boolean":
            byte = state.data[state.position]
            if byte > 1:
                raise varints.Misfit("the byte of a boolean is neither 0 nor 1")
            state.position += 1
            return bool(byte)
        case "int" | "long":
            return _read_long(state)
        case "float" | "double":
            code = "<f" if node.kind == "float" else "<d"
            (number,) = struct.unpack_from(code, state.data, state.position)
            state.position += struct.calcsize(code)
            return number
        case "string":
            return _read_content(state).decode()
        case "bytes":
            return _read_content(state).hex()
        case "fixed":
            return _read_bytes(state, node.size).hex()
        case _:
            index = _read_long(state)
            if not 0 <= index < len(node.symbols):
                raise varints.Misfit(f"the enum has {len(node.symbols)} symbols, and {index} is not one of them")
            return node.symbols[index]


def _read_long(state: _ReadState) -> int:
    number, state.position = varints.decode_long(state.data, state.position)
    return number


def _read_content(state: _ReadState) -> bytes:
    length, state.position = varints.decode_length(state.data, state.position)
    state.start = state.position
    return _read_bytes(state, length)


def _read_bytes(state: _ReadState, size: int) -> bytes:
    taken = state.data[state.position : state.position + size]
    if len(taken) < size:
        raise IndexError
    state.position += size
    return taken


def _find_position(state: _ReadState, exc: Exception) -> int:
    match exc:
        case IndexError() | struct.error():
            return len(state.data)
        case UnicodeDecodeError():
            return state.start + exc.start
        case _:
            return state.start
