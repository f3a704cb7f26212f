"""Checks of a schema by itself, without its earlier versions. Pure.

Avro's libraries treat invalid defaults and logical types differently: one library accepts a schema that another cannot
parse. These checks therefore refuse invalid defaults and logical types. They also require that every record, enum and
field has a doc, and that every enum has a default.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rtfm.contracts.catalogue import Schema
from rtfm.contracts.rules.findings import Breach
from rtfm.contracts.shapes import RANGES
from rtfm.contracts.tree import Field, Node, field_path, parse, walk

# The types on which a logical type may be used: https://avro.apache.org/docs/1.12.0/specification/#logical-types
LOGICAL_TYPE_BASES: dict[str, tuple[str, ...]] = {
    "decimal": ("bytes", "fixed"),
    "uuid": ("string", "fixed"),
    "date": ("int",),
    "time-millis": ("int",),
    "time-micros": ("long",),
    "timestamp-millis": ("long",),
    "timestamp-micros": ("long",),
    "timestamp-nanos": ("long",),
    "local-timestamp-millis": ("long",),
    "local-timestamp-micros": ("long",),
    "local-timestamp-nanos": ("long",),
    "duration": ("fixed",),
}


def find_breaches(schema: Schema) -> list[Breach]:
    """Return every place at which ``schema`` breaks a rule."""
    found = (breach for path, node in walk(parse(schema)) for breach in _check_type(path, node))
    return list({(breach.path, breach.rule): breach for breach in found}.values())


def _check_type(path: str, node: Node) -> Iterator[Breach]:
    at = f"`{path}`" if path else "the record"
    if node.kind in ("record", "enum") and not node.doc:
        yield Breach(path, "doc", f"the {node.kind} {node.short_name} has no doc", "describe it")
    if node.logical is not None:
        if node.logical not in LOGICAL_TYPE_BASES:
            yield Breach(
                path,
                "logical-type",
                f"{at} has the unknown logicalType {node.logical}",
                "use a logicalType that Avro defines",
            )
        elif node.kind not in LOGICAL_TYPE_BASES[node.logical]:
            bases = " or ".join(LOGICAL_TYPE_BASES[node.logical])
            yield Breach(
                path,
                "logical-type",
                f"{at} has the logicalType {node.logical} on the type {node.kind}",
                f"use it with {bases}",
            )
    if node.kind == "enum":
        if node.default is None:
            yield Breach(
                path,
                "enum-default",
                f"{at} is an enum without a default",
                "add a default, because otherwise no symbol can be added later",
            )
        elif node.default not in node.symbols:
            what = f"{at} has the enum default {node.default}, which is not a symbol"
            yield Breach(path, "enum-default", what, "use one of the enum's symbols")
    for entry in node.fields:
        yield from _check_field(field_path(path, entry.name), entry)


def _check_field(path: str, entry: Field) -> Iterator[Breach]:
    if not entry.doc:
        yield Breach(path, "doc", f"the field `{path}` has no doc", "describe it, with its unit")
    if not entry.has_default or is_valid_default(entry.default, entry.node):
        return
    if entry.node.kind == "union" and any(is_valid_default(entry.default, branch) for branch in entry.node.branches):
        fix = "put the branch of the default first"
        yield Breach(path, "default", f"the default of `{path}` does not fit the first branch of its union", fix)
    else:
        yield Breach(path, "default", f"the default of `{path}` does not fit its type", "use a default that fits")


def is_valid_default(value: Any, node: Node) -> bool:
    """Return whether ``value``, which is parsed JSON, is a valid default for the type ``node``.

    The default of a union must be valid for its first branch.
    """
    match node.kind:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "int" | "long":
            low, high = RANGES[node.kind]
            return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        case "float" | "double":
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case "string" | "bytes" | "fixed":
            return isinstance(value, str) and (node.kind != "fixed" or len(value) == node.size)
        case "enum":
            return value in node.symbols
        case "array":
            return isinstance(value, list) and all(
                node.items is not None and is_valid_default(item, node.items) for item in value
            )
        case "map":
            return isinstance(value, dict) and all(
                node.items is not None and is_valid_default(item, node.items) for item in value.values()
            )
        case "record":
            return isinstance(value, dict) and all(
                is_valid_default(value[entry.name], entry.node) if entry.name in value else entry.has_default
                for entry in node.fields
            )
        case _:
            return is_valid_default(value, node.branches[0])
