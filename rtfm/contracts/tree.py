"""An Avro schema as a tree: names resolved, namespaces spelled out, ready to be walked.

Pure. It takes schemas that parse (``catalogue.read_schema`` saw to that) and judges nothing; what a tree means is for
the codec, the compatibility rules and the lints to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import NOTHING, define, field, frozen

PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")


@define(eq=False)
class Node:
    """One type of a schema. ``kind`` is a primitive's name, or record, enum, fixed, array, map, union.

    A named type that occurs twice is one node, and a recursive one contains itself.
    """

    kind: str
    name: str = ""
    logical: str | None = None
    doc: str | None = None
    aliases: tuple[str, ...] = ()
    fields: tuple[Field, ...] = field(default=(), repr=False)
    symbols: tuple[str, ...] = ()
    default: str | None = None
    items: Node | None = None
    branches: tuple[Node, ...] = ()
    size: int = 0

    @property
    def short_name(self) -> str:
        """The name without its namespace."""
        return self.name.rpartition(".")[2]

    @property
    def is_nullable(self) -> bool:
        """Whether this is a union of null and one other type."""
        return len(self.branches) == 2 and any(branch.kind == "null" for branch in self.branches)


@frozen(eq=False)
class Field:
    """One field of a record; ``default`` is attrs.NOTHING where there is none."""

    name: str
    node: Node
    doc: str | None
    default: Any
    aliases: tuple[str, ...]

    @property
    def has_default(self) -> bool:
        """Whether a reader can do without the field."""
        return self.default is not NOTHING


def parse(schema: Any) -> Node:
    """The tree of ``schema``."""
    return _build_node(schema, "", {})


def walk(node: Node, path: str = "", seen: frozenset[str] = frozenset()) -> Iterator[tuple[str, Node]]:
    """Every type below ``node``, itself first, with its path; a recursive type is entered once."""
    yield path, node
    if node.name:
        if node.name in seen:
            return
        seen |= {node.name}
    for entry in node.fields:
        yield from walk(entry.node, field_path(path, entry.name), seen)
    for branch in node.branches:
        yield from walk(branch, path, seen)
    if node.items is not None:
        yield from walk(node.items, items_path(path, node), seen)


def field_path(path: str, name: str) -> str:
    """The path of the field ``name`` in the record at ``path``."""
    return f"{path}.{name}" if path else name


def items_path(path: str, node: Node) -> str:
    """The path of the items of the array or map ``node`` at ``path``."""
    return path + ("{}" if node.kind == "map" else "[]")


def is_size(size: Any) -> bool:
    """Whether a fixed can have this size; fastavro's check of a schema takes anything."""
    return type(size) is int and size >= 0


def takes_no_bytes(node: Node, known: dict[int, bool]) -> bool:
    """Whether every value of ``node`` is written as nothing at all; ``known`` keeps the verdicts, one a node."""
    match node.kind:
        case "null":
            return True
        case "fixed":
            return node.size == 0
        case "record":
            if id(node) not in known:
                known[id(node)] = True  # for a record that contains itself; no value of such a type can be written
                known[id(node)] = all(takes_no_bytes(entry.node, known) for entry in node.fields)
            return known[id(node)]
        case _:
            return False


def _build_node(schema: Any, namespace: str, named: dict[str, Node]) -> Node:
    if isinstance(schema, list):
        return Node("union", branches=tuple(_build_node(branch, namespace, named) for branch in schema))
    if isinstance(schema, str):
        return Node(schema) if schema in PRIMITIVES else named[_full_name(schema, namespace)]
    kind = schema["type"]
    if isinstance(kind, (dict, list)):
        return _build_node(kind, namespace, named)
    if kind in ("array", "map"):
        return Node(kind, items=_build_node(schema["items" if kind == "array" else "values"], namespace, named))
    if kind in PRIMITIVES:
        return Node(kind, logical=schema.get("logicalType"))
    if kind not in ("record", "enum", "fixed"):
        return named[_full_name(kind, namespace)]
    return _build_named(schema, namespace, named)


def _build_named(schema: dict[str, Any], namespace: str, named: dict[str, Node]) -> Node:
    name = _full_name(schema["name"], schema.get("namespace", namespace))
    size = schema.get("size", 0)
    inner = name.rpartition(".")[0]
    node = named[name] = Node(
        schema["type"],
        name=name,
        logical=schema.get("logicalType"),
        doc=schema.get("doc"),
        aliases=tuple(_full_name(alias, inner) for alias in schema.get("aliases", ())),
        symbols=tuple(schema.get("symbols", ())),
        default=schema.get("default") if schema["type"] == "enum" else None,
        size=size,
    )
    node.fields = tuple(
        Field(
            entry["name"],
            _build_node(entry["type"], inner, named),
            entry.get("doc"),
            entry.get("default", NOTHING),
            tuple(entry.get("aliases", ())),
        )
        for entry in schema.get("fields", ())
    )
    return node


def _full_name(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"
