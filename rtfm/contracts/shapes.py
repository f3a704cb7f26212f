"""Shapes of events. A shape is the result of matching an attrs class with an Avro schema, field by field.

This module defines when a class and a schema match. If they differ, the error names the field. If an event does not fit
its shape, ``find_misfit`` names the field. ``Other`` marks a type that the contracts do not use. Only fastavro encodes
and decodes such a type.
"""

from __future__ import annotations

import types
import typing
from enum import Enum
from typing import Any, Union

import attrs
from attrs import frozen

from rtfm.contracts.catalogue import Schema
from rtfm.contracts.tree import Field, Node, parse
from rtfm.errors import ConfigError
from rtfm.events import TimestampMillis

PRIMITIVES: dict[str, type] = {
    "string": str,
    "boolean": bool,
    "int": int,
    "long": int,
    "float": float,
    "double": float,
    "bytes": bytes,
}
RANGES = {"int": (-(2**31), 2**31 - 1), "long": (-(2**63), 2**63 - 1)}


@frozen
class Primitive:
    """A value of Avro's primitive type ``kind``. ``logical`` is the logical type, or None if there is none.

    A timestamp is a ``long`` with the logical type ``timestamp-millis``.
    """

    kind: str
    logical: str | None


@frozen
class Enumeration:
    """A member of ``enum_class``. The member's value is the symbol that is encoded.

    ``default`` is the symbol that replaces an unknown symbol, or None if the schema has no default.
    """

    enum_class: type[Enum]
    symbols: tuple[str, ...]
    default: str | None


@frozen
class Sequence:
    """A list whose items have the shape ``items``."""

    items: Shape


@frozen
class Nullable:
    """None, or a value of the shape ``value``.

    ``null_first`` tells whether null is the first of the two branches of the union.
    """

    value: Shape
    null_first: bool


@frozen
class Slot:
    """One field of a record. ``default`` is the field's default as JSON, or attrs.NOTHING if there is none."""

    name: str
    shape: Shape
    default: Any


@frozen
class RecordShape:
    """An instance of ``event_class``. ``slots`` are its fields, in the order of the schema."""

    event_class: type[Any]
    name: str
    slots: tuple[Slot, ...]


@frozen
class Other:
    """A type that the contracts do not use.

    Such types are maps, fixed types, and unions other than a union of null and one type. Fields with aliases also get
    this shape. In an event, a value of this shape is the Python value that fastavro uses.
    """


Shape = Primitive | Enumeration | Sequence | Nullable | RecordShape | Other


def match(event_class: type[Any], schema: Schema) -> RecordShape:
    """Match ``event_class`` with the record ``schema`` and return the shape.

    Raises ConfigError if the two differ; the message names the class, the field and the difference.
    """
    node = parse(schema)
    hint = f"Change the class in {event_class.__module__} together with its schema."
    if event_class.__name__ != node.short_name:
        raise ConfigError(f"{event_class.__name__} does not match the schema {node.name}: the names differ", hint=hint)
    try:
        return _match_record(event_class, node, event_class.__name__, ())
    except ConfigError as exc:
        exc.hint = hint
        raise


def is_covered(shape: Shape) -> bool:
    """Return whether the compiled codec supports all of ``shape``."""
    match shape:
        case Other() | RecordShape(slots=()):
            return False
        case Sequence(items=inner) | Nullable(value=inner):
            return is_covered(inner)
        case RecordShape(slots=slots):
            return all(is_covered(slot.shape) for slot in slots)
        case _:
            return True


def find_misfit(shape: Shape, value: Any, path: str) -> str | None:
    """Return the path of the first field of ``value`` that does not fit ``shape``, and why; None if everything fits.

    The text never contains the content of the field. ``path`` is the path of ``value`` itself.
    """
    match shape:
        case RecordShape(event_class=event_class, slots=slots):
            if type(value) is not event_class:
                return _type_mismatch(value, event_class.__name__, path)
            found = (find_misfit(slot.shape, getattr(value, slot.name), f"{path}.{slot.name}") for slot in slots)
            return next((text for text in found if text), None)
        case Sequence(items=items):
            if type(value) is not list:
                return _type_mismatch(value, "a list", path)
            found = (find_misfit(items, item, f"{path}[{place}]") for place, item in enumerate(value))
            return next((text for text in found if text), None)
        case Nullable(value=inner):
            return None if value is None else find_misfit(inner, value, path)
        case Enumeration(enum_class=enum_class):
            return None if type(value) is enum_class else _type_mismatch(value, enum_class.__name__, path)
        case Primitive(kind=kind):
            return _find_primitive_misfit(kind, value, path)
        case _:
            return None


def _find_primitive_misfit(kind: str, value: Any, path: str) -> str | None:
    expected = PRIMITIVES[kind]
    fits = (
        isinstance(value, str)
        if kind == "string"
        else type(value) in ((float, int) if expected is float else (expected,))
    )
    if not fits:
        return _type_mismatch(value, kind, path)
    if kind in RANGES and not RANGES[kind][0] <= value <= RANGES[kind][1]:
        return f"{path} is outside the range of {kind}"
    if kind == "string":
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"{path} contains half of a surrogate pair, which cannot be encoded as UTF-8"
    return None


def _type_mismatch(value: Any, expected: str, path: str) -> str:
    return f"{path} is {type(value).__name__}, not {expected}"


def _match_record(event_class: Any, node: Node, path: str, above: tuple[str, ...]) -> RecordShape:
    if node.name in above:
        raise ConfigError(f"{path}: the record {node.name} contains itself, which is not supported in events")
    if not (isinstance(event_class, type) and attrs.has(event_class)):
        raise _drift_error(path, event_class, f"the record {node.name}")
    hints = typing.get_type_hints(event_class)
    of_class = {attribute.name: attribute for attribute in attrs.fields(event_class)}
    of_schema = [entry.name for entry in node.fields]
    if missing := [name for name in of_schema if name not in of_class]:
        raise ConfigError(f"{path}.{missing[0]} is in the schema {node.name}, but not in the class")
    if extra := [name for name in of_class if name not in of_schema]:
        raise ConfigError(f"{path}.{extra[0]} is in the class, but not in the schema {node.name}")
    if list(of_class) != of_schema:
        first = next(name for name, other in zip(of_class, of_schema, strict=True) if name != other)
        raise ConfigError(f"{path}.{first} has another position in the class than in the schema {node.name}")
    slots = []
    for entry in node.fields:
        where = f"{path}.{entry.name}"
        _check_default(of_class[entry.name], entry, where)
        shape = _match_type(hints[entry.name], entry.node, where, (*above, node.name))
        slots.append(Slot(entry.name, Other() if entry.aliases else shape, entry.default))
    return RecordShape(event_class, node.name, tuple(slots))


def _match_type(hint: Any, node: Node, path: str, above: tuple[str, ...]) -> Shape:
    if node.is_nullable:
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        is_union = typing.get_origin(hint) in (Union, types.UnionType)
        if not is_union or len(typing.get_args(hint)) != 2 or len(options) != 1:
            raise _drift_error(path, hint, "a union with null, which needs … | None")
        null_first = node.branches[0].kind == "null"
        return Nullable(_match_type(options[0], node.branches[1 if null_first else 0], path, above), null_first)
    if node.kind == "record":
        return _match_record(hint, node, path, above)
    if node.kind == "enum":
        return _match_enumeration(hint, node, path)
    if node.kind == "array" and node.items is not None:
        if typing.get_origin(hint) is not list:
            raise _drift_error(path, hint, "an array, which needs list[…]")
        return Sequence(_match_type(typing.get_args(hint)[0], node.items, f"{path}[]", above))
    if node.kind in PRIMITIVES:
        expected: Any = TimestampMillis if node.logical == "timestamp-millis" else PRIMITIVES[node.kind]
        if hint is not expected:
            raise _drift_error(path, hint, f"{node.logical or node.kind}, which needs {expected.__name__}")
        return Primitive(node.kind, node.logical)
    return Other()


def _match_enumeration(hint: Any, node: Node, path: str) -> Enumeration:
    if not (isinstance(hint, type) and issubclass(hint, Enum)):
        raise _drift_error(path, hint, f"the enum {node.name}")
    members = tuple(str(member.value) for member in hint)
    if members != node.symbols:
        raise ConfigError(
            f"{path}: the class {hint.__name__} has the members {', '.join(members)}, but the schema has"
            f" {', '.join(node.symbols)}"
        )
    return Enumeration(hint, node.symbols, node.default)


def _check_default(attribute: attrs.Attribute[Any], entry: Field, path: str) -> None:
    default: Any = attribute.default
    if hasattr(default, "factory"):
        default = default.factory()
    if (default is attrs.NOTHING) == entry.has_default:
        raise ConfigError(f"{path}: the class and the schema disagree on whether the field has a default")
    if entry.has_default and default != entry.default:
        raise ConfigError(f"{path}: the default is {default!r} in the class and {entry.default!r} in the schema")


def _drift_error(path: str, hint: Any, expected: str) -> ConfigError:
    shown = hint.__name__ if isinstance(hint, type) else str(hint)
    return ConfigError(f"{path} has the type {shown} in the class, but the schema has {expected}")
