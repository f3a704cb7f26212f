"""An Avro schema as a tree, in which every name is resolved and has its namespace. Pure.

``parse`` expects a valid schema, such as one from ``catalogue.read_schema``, and checks nothing. The codec and the
rules use the tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import NOTHING, define, field, frozen

PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")


@define(eq=False)
class Node:
    """One type of a schema. ``kind`` is the name of a primitive type, or record, enum, fixed, array, map or union.

    All uses of a named type refer to one node. The node of a recursive type therefore contains itself.
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
    """One field of a record. ``default`` is attrs.NOTHING if the field has no default."""

    name: str
    node: Node
    doc: str | None
    default: Any
    aliases: tuple[str, ...]

    @property
    def has_default(self) -> bool:
        """Whether the field has a default."""
        return self.default is not NOTHING


def parse(schema: Any) -> Node:
    """Parse ``schema`` into a tree."""
    return _build_node(schema, "", {})


def walk(node: Node, path: str = "", seen: frozenset[str] = frozenset()) -> Iterator[tuple[str, Node]]:
    """Yield (path, type) for ``node`` and for every type below it.

    A recursive type is yielded again inside itself, but the walk does not enter it a second time.
    """
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
    """Return the path of the field ``name`` in the record at ``path``."""
    return f"{path}.{name}" if path else name


def items_path(path: str, node: Node) -> str:
    """Return the path of the items of the array or map ``node`` at ``path``."""
    return path + ("{}" if node.kind == "map" else "[]")


def is_size(size: Any) -> bool:
    """Return whether ``size`` is a valid size of a fixed type. fastavro does not check this when it parses a schema."""
    return type(size) is int and size >= 0


def takes_no_bytes(node: Node, known: dict[int, bool]) -> bool:
    """Return whether every value of ``node`` is encoded as no bytes. ``known`` caches the results by ``id(node)``."""
    match node.kind:
        case "null":
            return True
        case "fixed":
            return node.size == 0
        case "record":
            if id(node) not in known:
                # A record that contains itself is assumed to take no bytes while its fields are checked. This does no
                # harm, because such a record has no finite value.
                known[id(node)] = True
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
