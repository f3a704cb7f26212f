"""The compiled codec: the generated source of an event's encoder and decoders, made into functions once.

Promises what ``codec`` promises for the shapes that it covers, at several times the speed of an interpreted codec. The
source is kept and can be read (``rtfm-cli schemas show --codec``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rtfm.contracts import decoding, encoding, shapes
from rtfm.contracts.catalogue import Schema
from rtfm.contracts.tree import parse
from rtfm.errors import UndecodableRecord

FAULTS = (ValueError, TypeError, KeyError, IndexError, OverflowError, struct.error, RecursionError, AttributeError)
"""What comes of a value or of bytes that do not fit."""


def encoder(shape: shapes.Record) -> tuple[Callable[[Any, str], bytes], str]:
    """(function from event and frame to bytes, its source). The frame is text of the code points 0 to 255."""
    text, names = encoding.source(shape)
    return _load(text, names, "encode", f"<encoder of {shape.name}>"), text


def decoder(shape: shapes.Record, writer_schema: Schema) -> tuple[Callable[[bytes], Any], str]:
    """(function from framed bytes to event, its source) for records of ``writer_schema``.

    The function raises UndecodableRecord with the field. Raises decoding.Unresolvable or decoding.NotCovered.
    """
    text, names, paths = decoding.source(shape, parse(writer_schema))
    where = f"<decoder of {shape.name}>"
    names = {**names, "TABLE_MISSES": (KeyError, struct.error)}
    inner: Callable[[bytes], Any] = _load(text, names, "decode", where)

    def decode(data: bytes) -> Any:
        try:
            return inner(data)
        except FAULTS as exc:
            path = _path(exc.__traceback__, where, paths) or shape.name
            raise UndecodableRecord(f"{path}: {_reason(exc)}") from exc

    return decode, text


def _load(text: str, names: dict[str, Any], function: str, where: str) -> Any:
    scope = dict(names)
    exec(compile(text, where, "exec"), scope)  # noqa: S102 - the source is made here, from schemas that were checked
    return scope[function]


def _path(traceback: TracebackType | None, where: str, paths: dict[int, str]) -> str | None:
    found = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == where:
            found = paths.get(traceback.tb_lineno, found)
        traceback = traceback.tb_next
    return found


def _reason(exc: Exception) -> str:
    match exc:
        case IndexError() | struct.error():
            return "the record is cut short"
        case UnicodeDecodeError():
            return "not UTF-8"
        case KeyError():
            return "no such symbol"
        case RecursionError():
            return "nested too deeply"
        case _:
            return str(exc)
