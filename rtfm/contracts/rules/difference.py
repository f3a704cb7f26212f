"""Descriptions of the changes between two versions of a schema. Pure."""

from __future__ import annotations

from rtfm.contracts.catalogue import Schema
from rtfm.contracts.tree import Field, Node, field_path, parse, walk


def describe_changes(old: Schema, new: Schema) -> list[str]:
    """Return one line for each change from ``old`` to ``new``, for people."""
    before, after = _fields(parse(old)), _fields(parse(new))
    removed, added = before.keys() - after.keys(), after.keys() - before.keys()
    # If an added or removed field holds an Avro record, only that field is listed, not the fields inside the record.
    lines = [f"field {path} is removed" for path in before if path in removed and _parent(path) not in removed]
    for path, entry in after.items():
        if path not in before:
            if _parent(path) not in added:
                default = f"default {entry.default!r}" if entry.has_default else "no default"
                lines.append(f"field {path} is added: {_type(entry.node)}, {default}")
            continue
        lines += [f"field {path}: {line}" for line in _describe_field(before[path], entry)]
    if list(before) != list(after) and sorted(before) == sorted(after):
        lines.append("the fields are in another order")
    lines += _describe_types(parse(old), parse(new))
    return lines


def _fields(node: Node) -> dict[str, Field]:
    return {field_path(path, entry.name): entry for path, part in walk(node) for entry in part.fields}


def _parent(path: str) -> str:
    return path.rpartition(".")[0].removesuffix("[]")


def _describe_field(old: Field, new: Field) -> list[str]:
    lines = []
    if _type(old.node) != _type(new.node):
        lines.append(f"type {_type(old.node)} becomes {_type(new.node)}")
    if old.has_default != new.has_default:
        lines.append(f"gets the default {new.default!r}" if new.has_default else "loses its default")
    elif old.default != new.default:
        lines.append(f"default {old.default!r} becomes {new.default!r}")
    if old.doc != new.doc:
        lines.append(f"doc becomes {new.doc!r}")
    return lines


def _describe_types(old: Node, new: Node) -> list[str]:
    before = {part.name: part for _, part in walk(old) if part.name}
    lines = []
    for name, part in {part.name: part for _, part in walk(new) if part.name}.items():
        was, at = before.get(name, part), f"{part.kind} {part.short_name}"
        lines += [f"{at}: symbol {symbol} is added" for symbol in part.symbols if symbol not in was.symbols]
        lines += [f"{at}: symbol {symbol} is removed" for symbol in was.symbols if symbol not in part.symbols]
        if was.default != part.default:
            lines.append(f"{at}: default {was.default} becomes {part.default}")
        if was.doc != part.doc:
            lines.append(f"{at}: doc becomes {part.doc!r}")
    return lines


def _type(node: Node) -> str:
    if node.kind == "union":
        return " or ".join(_type(branch) for branch in node.branches)
    if node.items is not None:
        return f"{node.kind} of {_type(node.items)}"
    return node.logical or node.name or node.kind
