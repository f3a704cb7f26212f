"""The compiled codec: Python functions that are generated for one event class and its schemas, and compiled once.

For the shapes that it supports, it gives the guarantees that the module ``codec`` lists. It is several times as fast as
a codec that interprets the schema for each record. ``rtfm-cli schemas show --codec`` prints the generated source.
"""

from __future__ import annotations

import struct
import traceback
from collections.abc import Callable
from types import FunctionType, TracebackType
from typing import Any

from rtfm.clock import now_ms
from rtfm.contracts import shapes
from rtfm.contracts.catalogue import Schema
from rtfm.contracts.compiled import decoding, encoding, varints
from rtfm.contracts.compiled.decoding import NotCovered
from rtfm.contracts.compiled.skipping import Unresolvable
from rtfm.contracts.tree import parse
from rtfm.errors import InvalidEvent, UndecodableRecord
from rtfm.events import MAX_AHEAD_MS, MIN_TIMESTAMP, TimestampMillis, find_broken_rule

__all__ = ["NotCovered", "Unresolvable", "build_refusal", "decoder", "encoder"]

DECODING_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    struct.error,
    RecursionError,
    AttributeError,
)
"""The exceptions that a generated decoder raises for bytes that are not a record of its schema."""


def encoder(shape: shapes.RecordShape) -> tuple[Callable[[str], Callable[[Any], bytes]], str]:
    """Return (a function that builds the encoder for a frame, the encoder's source).

    The frame is a text in which each character stands for one byte and has a code point of 0 to 255. The encoder
    raises InvalidEvent if a field does not fit or breaks a rule of ``rtfm.events``; the message names the field.
    """
    text, names = encoding.source(shape)
    # The latest ``observed_at`` that was valid at the last check. While the clock moves forward, every ``observed_at``
    # up to this time stays valid.
    checked_until = [MIN_TIMESTAMP]

    def check(event: Any) -> None:
        now = now_ms()
        if find_broken_rule(event, now=now) is not None:
            raise varints.Misfit(event)
        checked_until[0] = TimestampMillis(now + MAX_AHEAD_MS)

    names |= {"check": check, "checked_until": checked_until}
    names["build_refusal"] = lambda event, exc: build_refusal(shape, event, exc)
    template: FunctionType = _compile(text, names, "encode", f"<encoder of {shape.name}>")
    # The frame becomes the default of the function's second parameter. A wrapper would cost one more call per event.
    return lambda frame: FunctionType(template.__code__, template.__globals__, "encode", (frame,)), text


def build_refusal(shape: shapes.RecordShape, event: Any, exc: Exception) -> InvalidEvent:
    """Build the error that says why ``event`` cannot be encoded with ``shape``. ``exc`` is what the encoder raised."""
    name = shape.event_class.__name__
    if found := shapes.find_misfit(shape, event, name):
        return InvalidEvent(found)
    if broken := find_broken_rule(event, now=now_ms()):
        return InvalidEvent(f"{name}.{broken}")
    return InvalidEvent(f"{name} does not fit its schema: {exc}")


def decoder(shape: shapes.RecordShape, writer_schema: Schema) -> tuple[Callable[[bytes], Any], str]:
    """Return (a function that decodes records of ``writer_schema`` to events, its source).

    The function takes bytes with their frame. It raises UndecodableRecord if the bytes are not a record of
    ``writer_schema`` that can be read as the event; the message names the field. ``decoder`` itself raises Unresolvable
    if no record of ``writer_schema`` can be read as the event, and NotCovered if only fastavro supports a type.
    """
    text, names, paths = decoding.source(shape, parse(writer_schema))
    where = f"<decoder of {shape.name}>"
    names = {**names, "TABLE_MISSES": (KeyError, struct.error)}
    inner: Callable[[bytes], Any] = _compile(text, names, "decode", where)

    def decode(data: bytes) -> Any:
        try:
            return inner(data)
        except DECODING_ERRORS as exc:
            path = _find_path(exc.__traceback__, where, paths) or shape.name
            raise UndecodableRecord(f"{path}: {varints.describe_error(exc)}") from exc

    return decode, text


def _compile(text: str, names: dict[str, Any], function: str, where: str) -> Any:
    scope = dict(names)
    exec(compile(text, where, "exec"), scope)  # noqa: S102 - the source is generated here, from valid schemas
    return scope[function]


def _find_path(raised: TracebackType | None, where: str, paths: dict[int, str]) -> str | None:
    found = None
    for frame, line in traceback.walk_tb(raised):
        if frame.f_code.co_filename == where:
            found = paths.get(line, found)
    return found
