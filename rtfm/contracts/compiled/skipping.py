"""Functions that skip a field of a record, for fields that the reader's schema does not have."""

from __future__ import annotations

from collections.abc import Callable

from rtfm.contracts.compiled import varints
from rtfm.contracts.tree import Node, is_size, takes_no_bytes


class Unresolvable(Exception):
    """No record of the writer's schema can be read as the event; the message names the field and the reason."""


Skip = Callable[[bytes, int], int]


def build_skipper(node: Node, skippers: dict[int, Skip], empty: dict[int, bool]) -> Skip:
    """Return a function that skips a value of the type ``node``.

    The function takes the data and the position of the value, and returns the position after the value. If the data end
    too early, the function raises IndexError or Misfit, or returns a position after the end of the data. ``skippers``
    contains the functions for the records that contain ``node``, so that a recursive record finds its own function.
    ``empty`` caches which records take no bytes. Raises Unresolvable for a fixed type of an invalid size.
    """
    if id(node) in skippers:
        return skippers[id(node)]
    if takes_no_bytes(node, empty):
        # The parts of a record without bytes are not visited, because nested records without bytes can have an
        # exponential number of parts.
        return lambda _, position: position
    if node.kind == "fixed" and not is_size(node.size):
        raise Unresolvable(f"{node.name} has the invalid size {node.size!r}")
    match node.kind:
        case "null" | "boolean" | "float" | "double" | "fixed":
            width = {"null": 0, "boolean": 1, "float": 4, "double": 8}.get(node.kind, node.size)
            return lambda _, position: position + width
        case "int" | "long" | "enum":
            return lambda data, position: varints.decode_long(data, position)[1]
        case "string" | "bytes":
            return lambda data, position: sum(varints.decode_length(data, position))
        case "union":
            branches = [build_skipper(branch, skippers, empty) for branch in node.branches]
            return lambda data, position: _skip_union(branches, data, position)
        case "record":
            parts: list[Skip] = []
            skippers[id(node)] = lambda data, position: _skip_all(parts, data, position)
            parts.extend(build_skipper(entry.node, skippers, empty) for entry in node.fields)
            return skippers[id(node)]
        case _:
            assert node.items is not None  # noqa: S101 - only arrays and maps remain
            inner = [build_skipper(node.items, skippers, empty)]
            if node.kind == "map":
                inner.insert(0, build_skipper(Node("string"), skippers, empty))
            return lambda data, position: _skip_blocks(inner, data, position)


def _skip_union(branches: list[Skip], data: bytes, position: int) -> int:
    index, position = varints.decode_long(data, position)
    if not 0 <= index < len(branches):
        raise varints.Misfit("the union has no such branch")
    return branches[index](data, position)


def _skip_all(parts: list[Skip], data: bytes, position: int) -> int:
    for part in parts:
        position = part(data, position)
    return position


def _skip_blocks(inner: list[Skip], data: bytes, position: int) -> int:
    while data[position]:
        count, size, position = varints.decode_count(data, position)
        if size >= 0:
            position += size
        else:
            for _ in range(count):
                before = position
                position = _skip_all(inner, data, position)
                if position == before:
                    # The items take no bytes, so further rounds of this loop would not change the position. A block may
                    # claim as many such items as the record has bytes, so these rounds are left out.
                    break
    return position + 1
