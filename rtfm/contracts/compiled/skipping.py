"""Functions that step over a field which the reader's schema does not have."""

from __future__ import annotations

from collections.abc import Callable

from rtfm.contracts.compiled import varints
from rtfm.contracts.tree import Node, is_size, takes_no_bytes


class Unresolvable(Exception):
    """Records of the writer's schema cannot be read as the event; the argument says where and why."""


Skip = Callable[[bytes, int], int]


def build_skipper(node: Node, made: dict[int, Skip], empty: dict[int, bool]) -> Skip:
    """A function from (data, position of a ``node``) to the position behind it; IndexError or Misfit when cut short.

    Raises Unresolvable for a type that cannot be. ``made`` holds the functions of the records above, so that a
    recursive one finds itself, ``empty`` which records take no bytes.
    """
    if id(node) in made:
        return made[id(node)]
    if takes_no_bytes(node, empty):
        # At once: such records can be nested so that they have more fields than anybody can step over.
        return lambda _, p: p
    if node.kind == "fixed" and not is_size(node.size):
        raise Unresolvable(f"{node.name} has the size {node.size!r}")
    match node.kind:
        case "null" | "boolean" | "float" | "double" | "fixed":
            width = {"null": 0, "boolean": 1, "float": 4, "double": 8}.get(node.kind, node.size)
            return lambda _, p: p + width
        case "int" | "long" | "enum":
            return lambda data, p: varints.decode_long(data, p)[1]
        case "string" | "bytes":
            return lambda data, p: sum(varints.decode_length(data, p))
        case "union":
            branches = [build_skipper(branch, made, empty) for branch in node.branches]
            return lambda data, p: _skip_union(branches, data, p)
        case "record":
            parts: list[Skip] = []
            made[id(node)] = lambda data, p: _skip_all(parts, data, p)
            parts.extend(build_skipper(entry.node, made, empty) for entry in node.fields)
            return made[id(node)]
        case _:
            assert node.items is not None  # noqa: S101 - what is left are arrays and maps
            inner = [build_skipper(node.items, made, empty)]
            if node.kind == "map":
                inner.insert(0, build_skipper(Node("string"), made, empty))
            return lambda data, p: _skip_blocks(inner, data, p)


def _skip_union(branches: list[Skip], data: bytes, p: int) -> int:
    index, p = varints.decode_long(data, p)
    if not 0 <= index < len(branches):
        raise varints.Misfit("no such branch of the union")
    return branches[index](data, p)


def _skip_all(parts: list[Skip], data: bytes, p: int) -> int:
    for part in parts:
        p = part(data, p)
    return p


def _skip_blocks(inner: list[Skip], data: bytes, p: int) -> int:
    while data[p]:
        count, size, p = varints.decode_count(data, p)
        if size >= 0:
            p += size
        else:
            for _ in range(count):
                before = p
                p = _skip_all(inner, data, p)
                if p == before:
                    break  # items that take no bytes: there may be as many as the record has bytes, in each block
    return p + 1
