"""The compiled codec: generated source of an event's encoder and decoders, compiled to functions once.

Keeps the promises of ``codec`` for the shapes that it covers, at several times the speed of an interpreted codec.
``rtfm-cli schemas show --codec`` prints the source.
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
"""What the generated code raises for a value or bytes that do not fit."""


def encoder(shape: shapes.RecordShape) -> tuple[Callable[[str], Callable[[Any], bytes]], str]:
    """Return (function from a frame to its encoder, source). The frame is text of the code points 0 to 255.

    The encoder raises InvalidEvent that names the field that does not fit or breaks a rule of ``rtfm.events``.
    """
    text, names = encoding.source(shape)
    # ``observed_at`` is valid up to here: the clock of an earlier check only goes forward.
    checked_until = [MIN_TIMESTAMP]

    def check(event: Any) -> None:
        now = now_ms()
        if find_broken_rule(event, now=now) is not None:
            raise varints.Misfit(event)
        checked_until[0] = TimestampMillis(now + MAX_AHEAD_MS)

    names |= {"check": check, "checked_until": checked_until}
    names["build_refusal"] = lambda event, exc: build_refusal(shape, event, exc)
    template: FunctionType = _compile(text, names, "encode", f"<encoder of {shape.name}>")
    # The frame is a default argument, which saves a call between the caller and the encoder.
    return lambda frame: FunctionType(template.__code__, template.__globals__, "encode", (frame,)), text


def build_refusal(shape: shapes.RecordShape, event: Any, exc: Exception) -> InvalidEvent:
    """Build the error that says why ``event`` does not fit ``shape``, after encoding it raised ``exc``."""
    name = shape.event_class.__name__
    if found := shapes.find_misfit(shape, event, name):
        return InvalidEvent(found)
    if broken := find_broken_rule(event, now=now_ms()):
        return InvalidEvent(f"{name}.{broken}")
    return InvalidEvent(f"{name} does not fit its schema: {exc}")


def decoder(shape: shapes.RecordShape, writer_schema: Schema) -> tuple[Callable[[bytes], Any], str]:
    """Return (function from framed bytes to event, its source) for records of ``writer_schema``.

    The function raises UndecodableRecord that names the field. Raises Unresolvable or NotCovered.
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
            raise UndecodableRecord(f"{path}: {varints.reason(exc)}") from exc

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
