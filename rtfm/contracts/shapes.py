"""What an event looks like to a codec: an attrs class and an Avro schema, matched field by field.

Owns the rules of that match and names the field that drifted. A shape is made once, when a codec is built; it holds no
values and does no I/O. Every Avro type has a shape; ``Other`` marks those that only fastavro reads and writes.
"""

from __future__ import annotations

import types
import typing
from enum import Enum
from typing import Any, Union

import attrs
from attrs import frozen

from rtfm.contracts.catalogue import Schema
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


@frozen
class Primitive:
    """A value of one of Avro's primitive types; a timestamp in milliseconds is a ``long``."""

    kind: str


@frozen
class Enumeration:
    """One of ``symbols``, as a member of ``enum_class`` whose value is the symbol."""

    enum_class: type[Enum]
    symbols: tuple[str, ...]
    default: str | None


@frozen
class Sequence:
    """A list of ``items``."""

    items: Shape


@frozen
class Nullable:
    """None or ``value``; ``null_first`` tells which of the two union branches null is."""

    value: Shape
    null_first: bool


@frozen
class Record:
    """An attrs class whose fields are ``fields``, in the order of the schema."""

    event_class: type[Any]
    name: str
    fields: tuple[tuple[str, Shape], ...]


@frozen
class Other:
    """A type that the contracts do not use: maps, fixed, unions of several; the value is fastavro's own."""

    what: str


Shape = Primitive | Enumeration | Sequence | Nullable | Record | Other


def match(event_class: type[Any], schema: Schema) -> Record:
    """The shape of ``event_class`` under the record ``schema``.

    Raises ConfigError that names the class, the field and the difference.
    """
    shape = _record(event_class, schema, event_class.__name__, {}, schema.get("namespace", ""))
    if event_class.__name__ != schema["name"].rpartition(".")[2]:
        raise ConfigError(f"{event_class.__name__} does not match the schema {schema['name']}: the names differ")
    return shape


def is_covered(shape: Shape) -> bool:
    """Whether the compiled codec reads and writes all of ``shape``."""
    match shape:
        case Other():
            return False
        case Sequence(items=inner) | Nullable(value=inner):
            return is_covered(inner)
        case Record(fields=fields):
            return all(is_covered(inner) for _, inner in fields)
        case _:
            return True


def _record(event_class: type[Any], schema: Schema, path: str, named: dict[str, Any], namespace: str) -> Record:
    if not attrs.has(event_class):
        raise ConfigError(f"{path} is {event_class!r}, but the schema has a record {schema['name']}")
    namespace = _register(schema, named, namespace)
    hints = typing.get_type_hints(event_class)
    of_class = {attribute.name: attribute for attribute in attrs.fields(event_class)}
    of_schema = [entry["name"] for entry in schema["fields"]]
    if missing := [name for name in of_schema if name not in of_class]:
        raise ConfigError(f"{path}.{missing[0]} is in the schema {schema['name']}, but not in the class")
    if extra := [name for name in of_class if name not in of_schema]:
        raise ConfigError(f"{path}.{extra[0]} is in the class, but not in the schema {schema['name']}")
    if list(of_class) != of_schema:
        first = next(name for name, other in zip(of_class, of_schema, strict=True) if name != other)
        raise ConfigError(f"{path}.{first} stands in another place than in the schema {schema['name']}")
    fields = []
    for entry in schema["fields"]:
        where = f"{path}.{entry['name']}"
        shape = _shape(hints[entry["name"]], entry["type"], where, named, namespace)
        _check_default(of_class[entry["name"]], entry, where)
        fields.append((entry["name"], shape))
    return Record(event_class, schema["name"], tuple(fields))


def _shape(hint: Any, schema: Any, path: str, named: dict[str, Any], namespace: str) -> Shape:
    if isinstance(schema, str) and schema not in PRIMITIVES and schema != "null":
        schema = named[schema if "." in schema else f"{namespace}.{schema}".lstrip(".")]
    kind = schema if isinstance(schema, str) else "union" if isinstance(schema, list) else schema["type"]
    if kind == "union" and len(schema) == 2 and "null" in schema:
        return _nullable(hint, schema, path, named, namespace)
    if kind == "record":
        return _record(hint, schema, path, named, namespace)
    if kind == "enum":
        return _enumeration(hint, schema, path, named, namespace)
    if kind == "array":
        if typing.get_origin(hint) is not list:
            raise _drift(path, hint, "an array, which is list[…]")
        return Sequence(_shape(typing.get_args(hint)[0], schema["items"], f"{path}[]", named, namespace))
    if kind in PRIMITIVES:
        logical = schema.get("logicalType") if isinstance(schema, dict) else None
        wanted: Any = TimestampMillis if logical == "timestamp-millis" else PRIMITIVES[kind]
        if hint is not wanted:
            raise _drift(path, hint, f"{logical or kind}, which is {wanted.__name__}")
        return Primitive(kind)
    return Other(kind)


def _nullable(hint: Any, schema: list[Any], path: str, named: dict[str, Any], namespace: str) -> Nullable:
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if typing.get_origin(hint) not in (Union, types.UnionType) or len(typing.get_args(hint)) != 2 or len(options) != 1:
        raise _drift(path, hint, "a union with null, which is … | None")
    null_first = schema[0] == "null"
    return Nullable(_shape(options[0], schema[1 if null_first else 0], path, named, namespace), null_first)


def _enumeration(hint: Any, schema: Schema, path: str, named: dict[str, Any], namespace: str) -> Enumeration:
    _register(schema, named, namespace)
    symbols = tuple(schema["symbols"])
    if not (isinstance(hint, type) and issubclass(hint, Enum)):
        raise _drift(path, hint, f"the enum {schema['name']}")
    members = tuple(str(member.value) for member in hint)
    if members != symbols:
        raise ConfigError(f"{path}: {hint.__name__} is {', '.join(members)}; the schema has {', '.join(symbols)}")
    return Enumeration(hint, symbols, schema.get("default"))


def _register(schema: Schema, named: dict[str, Any], namespace: str) -> str:
    name = schema["name"]
    full = name if "." in name else f"{schema.get('namespace', namespace)}.{name}".lstrip(".")
    named[full] = schema
    return full.rpartition(".")[0]


def _check_default(attribute: attrs.Attribute[Any], entry: Schema, path: str) -> None:
    default: Any = attribute.default
    if hasattr(default, "factory"):
        default = default.factory()
    if (default is attrs.NOTHING) != ("default" not in entry):
        raise ConfigError(f"{path}: the class and the schema disagree on whether there is a default")
    if default is not attrs.NOTHING and default != entry["default"]:
        raise ConfigError(f"{path}: the default is {default!r} in the class and {entry['default']!r} in the schema")


def _drift(path: str, hint: Any, wanted: str) -> ConfigError:
    shown = hint.__name__ if isinstance(hint, type) else str(hint)
    return ConfigError(f"{path} is {shown} in the class; the schema has {wanted}")
